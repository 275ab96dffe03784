"""`editar-cli`, in plain C, does what Python's command does, with the same JSON."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editar_rt.__main__ import main
from tests.commands import Command, Done, in_process
from tests.cpp.installed import engine_library, installed
from tests.runtime.demo import BUNDLE, PICTURE, SIDE, WORDS


def cli(*arguments: object) -> Done:
    environment = os.environ | {"EDITAR_ONNXRUNTIME": str(engine_library())}
    command = [str(installed() / "bin/editar-cli"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def editar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return in_process(main, monkeypatch, capsys)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[30:90, 20:71] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


OPTIONS = [
    ["--seed", 3],
    ["--seed", 2**64 - 1, "--cfg-scale", "linear:1,5", "--cfg-interval", "3,20", "--temperature", 0.7],
    ["--cfg-scale", 1, "--top-k", 0, "--top-p", 0.9, "--cfg-interval", 30],
    ["--greedy", "--task", "depth"],
    ["--mask", "mask", "--mask-margin", 0, "--no-composite"],
    ["--noise", "gumbel", "--threads", 1],
]


@pytest.mark.parametrize("options", OPTIONS)
def test_an_edit(editar: Command, tmp_path: Path, mask: Path, options: list[object]) -> None:
    given = [mask if option == "mask" else option for option in options]
    made, documents = {}, {}
    for name, run in (("mine", cli), ("theirs", editar)):
        path = tmp_path / f"{name}.png"
        done = run("edit", BUNDLE, PICTURE, WORDS, "-o", path, "--json", *given)
        assert done.code == 0, done.stderr
        made[name], documents[name] = Image.open(path), done.document
    assert np.array_equal(np.asarray(made["mine"]), np.asarray(made["theirs"]))
    assert made["mine"].info == made["theirs"].info
    assert documents["mine"]["parameters"] == documents["theirs"]["parameters"]
    assert documents["mine"]["timings"].keys() == documents["theirs"]["timings"].keys()


def test_variants_lie_side_by_side(editar: Command, tmp_path: Path) -> None:
    done = cli("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "mine.png", "-n", 2, "--seed", 7, "--json")
    assert done.code == 0, done.stderr
    theirs = editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "theirs.png", "-n", 2, "--seed", 7, "--json")
    for seed, mine, expected in zip((7, 8), done.document["pictures"], theirs.document["pictures"], strict=True):
        assert mine["parameters"] == expected["parameters"]
        pixels = [np.asarray(Image.open(tmp_path / f"{name}-{seed}.png")) for name in ("mine", "theirs")]
        assert np.array_equal(*pixels)


BAD: list[tuple[int, str, list[object]]] = [
    (2, "there is no command paint", ["paint"]),
    (2, "edit needs BUNDLE, IMAGE and INSTRUCTION", ["edit", BUNDLE]),
    (2, "there is no option --sed", ["edit", BUNDLE, PICTURE, WORDS, "-o", "o.png", "--sed", 1]),
    (2, "seed must be 0 to 2^64 - 1, got -4", ["edit", BUNDLE, PICTURE, WORDS, "-o", "o.png", "--seed", -4]),
    (2, "top_p must be in (0, 1], got 4.0", ["edit", BUNDLE, PICTURE, WORDS, "-o", "o.png", "--top-p", 4]),
    (2, "a picture's name must end with .png", ["edit", BUNDLE, PICTURE, WORDS, "-o", "o.bmp"]),
    (2, "cfg_scale has 3 values, but a picture has 64",
     ["edit", BUNDLE, PICTURE, WORDS, "-o", "o.png", "--cfg-scale", "values:1,2,3"]),
    (1, "there is no file nope.png", ["edit", BUNDLE, "nope.png", WORDS, "-o", "o.png"]),
    (1, "bundle.json", ["info", "/"]),
    (1, "PNG", ["edit", BUNDLE, BUNDLE / "bundle.json", WORDS, "-o", "o.png"]),
]  # fmt: skip


@pytest.mark.parametrize(("code", "message", "arguments"), BAD)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str, arguments: list[object]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli(*arguments)
    assert (done.code, done.stdout) == (code, "")
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_info_and_verify(editar: Command) -> None:
    assert cli("info", BUNDLE, "--json").document == editar("info", BUNDLE, "--json").document
    assert cli("verify", BUNDLE, "--json").document == editar("verify", BUNDLE, "--json").document
    assert json.loads(cli("bench", BUNDLE, "--repeats", 1, "--warmup", 0, "--steps", 2).stdout)["steps"] == 2
