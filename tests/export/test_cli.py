"""`python -m export onnx` from checkpoints to a bundle, and what it says about options that cannot be."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import editar_rt
from editar_rt.errors import OptionError
from export import cli
from tests.commands import Command
from tests.conftest import golden_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "gpt_tiny.pt"
    torch.save({"module": golden_weights("gpt_tiny"), "steps": 1}, path)
    return path


def test_a_checkpoint_becomes_a_bundle(exporter: Command, checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    arguments = ["onnx", "--transformer", str(checkpoint), "--heads", "4", "-o", str(bundle)]
    done = exporter(*arguments, "--default", "temperature=0.9", "--default", "top_k=100")
    assert done.code == 0
    lines = done.stdout.splitlines()
    assert "logits, prefill" in lines[-4]
    assert lines[-1].startswith(f"wrote {bundle}: prefix, decoder, decoder_chunks; ")

    editor = editar_rt.load(bundle, device="cpu")
    assert editor.default_sampling == editar_rt.Sampling(temperature=0.9, top_k=100, noise="gumbel")
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
        (["onnx", "-o", "{out}", "--default", "seed=1"], 2, "one of the names cfg_scale, .*, noise; got 'seed=1'"),
        (["onnx", "-o", "{out}", "--default", "top_k=many"], 2, "top_k must be an integer, got 'many'"),
        (["onnx", "-o", "{out}", "--default", "top_p=1.5"], 2, r"top_p must be in \(0, 1\], got 1.5"),
    ],
)
def test_bad_options_are_said_in_one_line(
    exporter: Command, arguments: list[str], code: int, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    filled = [a.format(out=tmp_path / "bundle", checkpoint=checkpoint) for a in arguments]
    done = exporter(*filled)
    assert done.code == code and re.search(message, done.stderr.splitlines()[-1])
    assert not (tmp_path / "bundle").exists()


def test_nowhere_to_write(exporter: Command, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_bytes(b"picture")
    common = ["onnx", "--transformer", str(checkpoint), "--heads", "4", "--force", "-o"]
    done = exporter(*common, tmp_path / "file" / "bundle")
    assert done.code == 1 and "cannot write to" in done.stderr
    done = exporter(*common, tmp_path / "holiday")
    assert done.code == 1 and "is not a bundle, so it is not replaced" in done.stderr
    assert (tmp_path / "holiday" / "photo.jpg").exists()


def test_a_library_that_is_not_installed_is_named_with_what_a_clone_runs(
    exporter: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "export.official", raising=False)
    done = exporter("official", "--only-look")
    assert done.code == 1
    assert done.stderr.startswith(
        "export: huggingface_hub is not installed; run in the clone: pip install -c constraints.txt"
    )


@pytest.mark.parametrize(("command", "precision"), [("onnx", "fp32"), ("convert", "fp32"), ("official", "fp16")])
def test_help_says_one_precision(command: str, precision: str) -> None:
    text = " ".join(CliRunner().invoke(cli.cli, [command, "--help"]).output.split())
    assert f"Weight precision (default {precision})." in text


def test_the_weights_of_a_file_with_both_are_chosen(exporter: Command, tmp_path: Path) -> None:
    weights = golden_weights("gpt_tiny")
    torch.save({"model": weights, "ema": {**weights, "norm.weight": torch.zeros(3)}}, tmp_path / "a.pt")
    common = ["onnx", "--transformer", str(tmp_path / "a.pt"), "--heads", "4", "-o", str(tmp_path / "b")]
    done = exporter(*common)
    assert done.code == 1 and "norm.weight has shape [3]" in done.stderr
    assert exporter(*common, "--weights", "model").code == 0


def test_help_names_every_option() -> None:
    text = CliRunner().invoke(cli.cli, ["onnx", "--help"]).output
    for option in ("--transformer", "--vq", "--text-encoder", "--heads", "--image-size", "--precision", "--default"):
        assert option in text


def test_help_loads_neither_pytorch_nor_onnx() -> None:
    program = (
        "import sys\n"
        "from export.cli import cli\n"
        "cli.main(['onnx', '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'transformers', 'huggingface_hub'} & sys.modules.keys()\n"
        "print('imported:', *heavy)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize("text", ["temperature", "temperature=", "=1"])
def test_a_default_needs_name_and_value(text: str) -> None:
    with pytest.raises(OptionError):
        cli.parse_defaults((text,))
