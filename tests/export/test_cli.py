"""`python -m export onnx` from checkpoints to a bundle, and what it says about options that cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import editar_rt
from editar_rt.errors import OptionError
from export import cli
from export.__main__ import main
from tests.conftest import golden_weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "gpt_tiny.pt"
    torch.save({"module": golden_weights("gpt_tiny"), "steps": 1}, path)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `python -m export ARGUMENTS`, in this process."""
    monkeypatch.setattr("sys.argv", ["export", *arguments])
    try:
        main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def test_a_checkpoint_becomes_a_bundle(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    arguments = ["onnx", "--transformer", str(checkpoint), "--heads", "4", "-o", str(bundle)]
    assert run(monkeypatch, *arguments, "--default", "temperature=0.9", "--default", "top_k=100") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "logits, prefill" in lines[-3]
    assert lines[-1].startswith(f"wrote {bundle}: prefix, decoder; ")

    editor = editar_rt.load(bundle, device="cpu")
    assert editor.default_sampling == editar_rt.Sampling(temperature=0.9, top_k=100)
    # What made it, without the folders of this machine.
    command = editor.bundle.manifest.made_by["command"]
    assert command.startswith("python -m export onnx --transformer gpt_tiny.pt --heads 4 -o bundle --default temp")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["onnx"], 2, "Missing option '-o'"),
        (["onnx", "-o", "{out}"], 2, "nothing to export"),
        (["onnx", "-o", "{out}", "--precision", "int3"], 2, "'int3' is not one of 'fp32', 'fp16'"),
        (["onnx", "-o", "{out}", "--heads", "0"], 2, "0 is not in the range"),
        (["onnx", "-o", "{out}", "--transformer", "none.pt"], 1, "none.pt is not a file"),
        (["onnx", "-o", "{out}", "--transformer", "{checkpoint}"], 1, "give --heads N"),
        (["onnx", "-o", "{out}", "--vq", "{checkpoint}"], 1, "lacks encoder.conv_in.weight"),
        (["onnx", "-o", "{out}", "--text-encoder", "{out}"], 1, "holds no readable config.json"),
        (["onnx", "-o", "{out}", "--default", "seed=1"], 2, "a name of cfg_scale, .*, top_p; got 'seed=1'"),
        (["onnx", "-o", "{out}", "--default", "top_k=many"], 2, "top_k must be a whole number, got 'many'"),
        (["onnx", "-o", "{out}", "--default", "top_p=1.5"], 2, r"top_p must be in \(0, 1\], got 1.5"),
    ],
)
def test_bad_options_are_said_in_one_line(
    arguments: list[str],
    code: int,
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [a.format(out=tmp_path / "bundle", checkpoint=checkpoint) for a in arguments]
    assert run(monkeypatch, *filled) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, last)
    assert not (tmp_path / "bundle").exists()


def test_nowhere_to_write(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_bytes(b"picture")
    common = ["onnx", "--transformer", str(checkpoint), "--heads", "4", "--force", "-o"]
    assert run(monkeypatch, *common, str(tmp_path / "file" / "bundle")) == 1
    assert "cannot write to" in capsys.readouterr().err
    assert run(monkeypatch, *common, str(tmp_path / "holiday")) == 1
    assert "is not a bundle, so it is not replaced" in capsys.readouterr().err
    assert (tmp_path / "holiday" / "photo.jpg").exists()


def test_help_names_every_option() -> None:
    text = CliRunner().invoke(cli.cli, ["onnx", "--help"]).output
    for option in ("--transformer", "--vq", "--text-encoder", "--heads", "--image-size", "--precision", "--default"):
        assert option in text


@pytest.mark.parametrize("text", ["temperature", "temperature=", "=1"])
def test_a_default_needs_name_and_value(text: str) -> None:
    with pytest.raises(OptionError):
        cli.parse_defaults((text,))
