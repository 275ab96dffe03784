"""`editar-cli`, in plain C, does what Python's command does, with the same JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import editar_rt
from editar_rt import names
from editar_rt.__main__ import main
from editar_rt.editor import Editor
from tests.commands import Command, Done, in_process
from tests.cpp.installed import engine_library, installed
from tests.runtime.demo import BUNDLE, PICTURE, SIDE, WORDS
from tests.runtime.edges import REFUSED, option, pairs, rounds
from tests.runtime.test_numbers import numbers
from tests.runtime.test_selftest import changed_self_test, other_bit


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
    ["--noise", "gumbel", "--speculate", 8],
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
    assert documents["mine"]["passes"] == documents["theirs"]["passes"]
    assert documents["mine"].keys() == documents["theirs"].keys()
    assert documents["mine"]["timings"].keys() == documents["theirs"]["timings"].keys()


@pytest.mark.parametrize("texts", rounds())
def test_numbers_at_the_edge_give_what_they_give_in_python(
    texts: dict[str, str], demo_editor: Editor, mask: Path, tmp_path: Path
) -> None:
    options = [option(*pair) for pair in texts.items()]
    done = cli("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "a.png", "--mask", mask, *options)
    assert done.code == 0, done.stderr
    expected = demo_editor.edit(PICTURE, WORDS, mask=mask, **numbers(texts))
    with Image.open(tmp_path / "a.png") as made:
        assert np.array_equal(np.asarray(made), np.asarray(expected.image))


@pytest.mark.parametrize(("name", "text"), pairs(REFUSED))
def test_a_number_beyond_the_edge_is_refused_as_in_python(name: str, text: str, tmp_path: Path) -> None:
    done = cli("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "a.png", option(name, text))
    assert (done.code, done.stdout) == (2, "") and not list(tmp_path.iterdir())
    assert re.fullmatch(f"editar-cli: {name} (must be .+, got|has 1 values, but) .+\n", done.stderr)


def test_variants_lie_side_by_side(editar: Command, tmp_path: Path) -> None:
    options = ["-n", 2, "--seed", 7, "--speculate", 4, "--json"]
    done = cli("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "mine.png", *options)
    assert done.code == 0, done.stderr
    theirs = editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "theirs.png", *options)
    for seed, mine, expected in zip((7, 8), done.document["pictures"], theirs.document["pictures"], strict=True):
        assert mine["parameters"] == expected["parameters"] and mine["passes"] == expected["passes"]
        pixels = [np.asarray(Image.open(tmp_path / f"{name}-{seed}.png")) for name in ("mine", "theirs")]
        assert np.array_equal(*pixels)


BAD: list[tuple[int, str, list[object]]] = [
    (2, "there is no command paint", ["paint"]),
    (2, "edit needs BUNDLE, IMAGE and INSTRUCTION", ["edit", BUNDLE]),
    (2, "there is no option --sed", ["edit", BUNDLE, PICTURE, WORDS, "-o", "o.png", "--sed", 1]),
    (2, "seed must be 0 to 2^64 - 1, got -4", ["edit", BUNDLE, PICTURE, WORDS, "-o", "o.png", "--seed", -4]),
    (2, "top_p must be in (0, 1], got 4", ["edit", BUNDLE, PICTURE, WORDS, "-o", "o.png", "--top-p", 4]),
    (2, "n must be 1 to 64, got 65", ["edit", BUNDLE, PICTURE, WORDS, "-o", "o.png", "-n", 65]),
    (2, "the name of the output is too long", ["edit", BUNDLE, PICTURE, WORDS, "-o", "o" * 4100 + ".png"]),
    (2, "a picture's name must end with .png", ["edit", BUNDLE, PICTURE, WORDS, "-o", "o.bmp"]),
    (1, "there is no folder nowhere", ["edit", BUNDLE, PICTURE, WORDS, "-o", "nowhere/o.png"]),
    (1, "there is no folder nowhere", ["edit", BUNDLE, PICTURE, WORDS, "-o", "nowhere/o.png", "-n", 2]),
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


@pytest.mark.parametrize("name", ["in.png", "link.png", "in-8.png", "bundle/samples/add-0.png", "folder.png"])
def test_nothing_that_is_there_is_lost(tmp_path: Path, name: str) -> None:
    """An output that would overwrite what is read is refused before the edit; of variants, before any is written."""
    bundle = Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))
    (tmp_path / "folder.png").mkdir()
    picture = tmp_path / ("in-8.png" if name == "in-8.png" else "in.png")
    shutil.copy(PICTURE, picture)
    (tmp_path / "link.png").symlink_to(picture)
    variants = ["-n", 2, "--seed", 7] if name == "in-8.png" else []
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = cli("edit", bundle, picture, WORDS, "-o", tmp_path / name.replace("-8", ""), *variants)
    says = "it is a folder" if name == "folder.png" else "would overwrite"
    assert done.code == (1 if name == "folder.png" else 2) and says in done.stderr and done.stdout == ""
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_other_files_in_a_bundles_folder_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shutil.copytree(BUNDLE, tmp_path / "bundle"))
    for _ in range(2):
        assert cli("edit", ".", PICTURE, WORDS, "-o", "out.png").code == 0


@pytest.mark.parametrize("command", [["--version"], ["info", BUNDLE]])
@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_what_cannot_be_printed_is_an_error(command: list[object]) -> None:
    words = [str(installed() / "bin/editar-cli"), *map(str, command)]
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "editar-cli: what was to be printed cannot be written\n")


def test_of_an_option_given_twice_the_last_one_counts(tmp_path: Path) -> None:
    first = ["--cfg-scale", "linear:1,5", "--cfg-interval", 30]
    last = ["--cfg-scale", 4, "--cfg-interval", "0,20"]
    done = cli("edit", BUNDLE, PICTURE, "-o", tmp_path / "out.png", "--json", *first, *last, "--", "-0.5")
    told = done.document["parameters"]
    assert (told["cfg_scale"], told["cfg_interval"], told["instruction"]) == (4.0, [0, 20], "-0.5")


def test_words_that_are_not_utf8_are_told_as_utf8(editar: Command, tmp_path: Path) -> None:
    words = os.fsdecode(b"caf\xe9")
    mine, theirs = (run("edit", BUNDLE, PICTURE, words, "-o", tmp_path / "out.png", "--json") for run in (cli, editar))
    told = [run.document["parameters"]["instruction"] for run in (mine, theirs)]
    assert told == ["caf\ufffd"] * 2


def altered_answers(tiny_bundle: Path, quantized: Path, folder: Path) -> dict[str, Path]:
    """Bundles whose exporters answered otherwise than this machine does."""
    zeros = changed_self_test(tiny_bundle, folder / "zeros", names.DECODER, names.LOGITS, values=[0.0] * 16, sha256="")
    tokens = changed_self_test(tiny_bundle, folder / "tokens", names.DECODER, "greedy_tokens", tokens=[-1] * 8)
    return {
        "decoder: logits": zeros,
        "decoder: greedy_tokens": tokens,
        "the exporter's version, 1.27.0 (decoder: logits)": other_bit(quantized, folder, onnxruntime="1.27.0"),
    }


def test_verify_names_what_differs_as_pythons_does(
    editar: Command, tiny_bundle: Path, golden_gpt_bundle_quantized: Path, tmp_path: Path
) -> None:
    for said, bundle in altered_answers(tiny_bundle, golden_gpt_bundle_quantized, tmp_path).items():
        mine, theirs = (run("verify", bundle, "--json", "--device", "cpu") for run in (cli, editar))
        assert (mine.code, theirs.code) == (1, 1)
        assert said in mine.stderr and said in theirs.stderr and len(mine.stderr.splitlines()) == 1
        failed = [[not check["holds"] for check in run.document["checks"]] for run in (mine, theirs)]
        assert failed[0] == failed[1]


def test_a_self_test_without_margins_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = changed_self_test(tiny_bundle, tmp_path, names.DECODER, "greedy_tokens", tokens=[-1] * 8, margins=[])
    done = cli("verify", bundle)
    assert done.code == 1 and "self-test is not complete; export it again" in done.stderr


def test_text_states_are_read_from_a_file(tmp_path: Path) -> None:
    states = editar_rt.load(BUNDLE).encode_text([WORDS])
    np.save(tmp_path / "states.npy", states)
    for name, more in (("words", []), ("states", ["--text-states", tmp_path / "states.npy"])):
        assert cli("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / f"{name}.png", *more).code == 0
    words, given = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("words", "states"))
    assert np.array_equal(words, given)


@pytest.mark.parametrize("change", ["short", "double", "fortran", "header", "empty"])
def test_other_files_are_no_text_states(tmp_path: Path, change: str) -> None:
    states = editar_rt.load(BUNDLE).encode_text([WORDS])
    file = tmp_path / "states.npy"
    np.save(file, {"double": states.astype(np.float64), "fortran": np.asfortranarray(states[0])}.get(change, states))
    content = file.read_bytes()
    # A header that leads past the end, and one without its words.
    changed = {"short": content[:-4], "header": content[:8] + b"\xff\xff" + content[10:], "empty": content[:12]}
    file.write_bytes(changed.get(change, content))
    done = cli("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "out.png", "--text-states", file)
    assert done.code == 1 and "must be a .npy of 5120 little-endian float32" in done.stderr


def ended(*arguments: object, before: Callable[[], object] | None = None) -> Done:
    """A command that is told to end by SIGTERM after it has opened its engine.

    Args:
        before: called in the new process.
    """
    command = [str(installed() / "bin/editar-cli"), *map(str, arguments)]
    environment = os.environ | {"EDITAR_ONNXRUNTIME": str(engine_library())}
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=before
    )
    while started.poll() is None and "libonnxruntime" not in Path(f"/proc/{started.pid}/maps").read_text("utf-8"):
        time.sleep(0.01)
    started.terminate()
    try:
        output, said = started.communicate(timeout=120)
    finally:
        started.kill()
    return Done(started.returncode, output, said)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_edit_that_is_told_to_end_writes_nothing(tmp_path: Path) -> None:
    done = ended("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "out.png", "-n", 64, "--threads", 1)
    assert (done.code, done.stderr) == (143, "editar-cli: stopped\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """As in the background of a script, which Ctrl-C does not end."""
    options = ["-o", tmp_path / "out.png", "-n", 8, "--threads", 1]
    done = ended("edit", BUNDLE, PICTURE, WORDS, *options, before=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    assert (done.code, done.stderr, len(list(tmp_path.iterdir()))) == (0, "", 8)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_measurement_ends_at_once() -> None:
    done = ended("bench", BUNDLE, "--repeats", 100_000)
    assert (done.code, done.stdout) == (-signal.SIGTERM, "")


def test_info_and_verify(editar: Command) -> None:
    assert cli("info", BUNDLE, "--json").document == editar("info", BUNDLE, "--json").document
    assert cli("verify", BUNDLE, "--json").document == editar("verify", BUNDLE, "--json").document
    assert json.loads(cli("bench", BUNDLE, "--repeats", 1, "--warmup", 0, "--steps", 2).stdout)["steps"] == 2
