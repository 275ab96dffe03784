"""What the command line writes to, and what it never writes over; in this process, on the demo bundle."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editar_rt.images.writing import read_parameters
from tests.commands import Done
from tests.runtime.demo import BUNDLE, PICTURE, SAMPLES, WORDS

STILL = ("--box", "0,0,8,8", "--mask-margin", 0)  # one token drawn: quick


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return Path(shutil.copy(PICTURE, tmp_path / "photo-1.png"))


# Names and streams.


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "JPEG"), (".webp", "WEBP"), (".TIFF", "TIFF")])
def test_the_suffix_decides_the_format_of_a_picture_and_its_variants(
    editar: Callable[..., Done], tmp_path: Path, suffix: str, kind: str
) -> None:
    out = tmp_path / f"out{suffix}"
    done = editar("edit", BUNDLE, PICTURE, WORDS, "-o", out, "-n", 2, *STILL)
    assert done.code == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"out-0{suffix}", f"out-1{suffix}", f"out{suffix}"]
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert picture.format == kind
        assert (read_parameters(path) or {})["instruction"] == WORDS


def test_no_metadata_writes_none(editar: Callable[..., Done], tmp_path: Path) -> None:
    done = editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "out.png", "--no-metadata", "-n", 2, *STILL)
    assert done.code == 0, done.stderr
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert not picture.info and not picture.getexif()


def test_numbers_are_numbers_in_json(editar: Callable[..., Done], tmp_path: Path) -> None:
    done = editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "out.jpg", "--json", "--quality", 80, *STILL)
    found = done.document["parameters"]
    kinds = {"seed": int, "top_k": int, "temperature": float, "top_p": float, "cfg_scale": float, "greedy": bool}
    kinds |= {"quality": int, "mask_margin": int, "composite": bool}
    assert {name: type(found[name]) for name in kinds} == kinds
    texts = read_parameters(tmp_path / "out.jpg")
    assert texts is not None and texts.keys() == found.keys() and float(texts["temperature"]) == found["temperature"]


@pytest.mark.parametrize(("fit", "size"), [("crop", (96, 64)), ("pad", (96, 64)), ("stretch", (96, 64))])
def test_a_result_goes_back_into_its_picture(
    editar: Callable[..., Done], tmp_path: Path, fit: str, size: tuple[int, int]
) -> None:
    with Image.open(PICTURE) as picture:
        wide = picture.convert("RGB").resize(size)
    wide.save(tmp_path / "wide.png")
    box = ("--box", "40,20,8,8", "--mask-margin", 0)
    done = editar(
        "edit", BUNDLE, tmp_path / "wide.png", WORDS, "-o", tmp_path / "o.png", "--fit", fit, "--restore", *box
    )
    assert done.code == 0, done.stderr
    with Image.open(tmp_path / "o.png") as found:
        assert found.size == size
        changed = np.any(np.asarray(found) != np.asarray(wide), axis=2)
    assert changed[20:28, 40:48].any() and not np.delete(changed, np.s_[18:30], axis=0).any()
    assert (read_parameters(tmp_path / "o.png") or {}).get("fit", "crop") == fit


class Stream(io.StringIO):
    """A text stream over bytes, as stdin and stdout are."""

    def __init__(self, content: bytes = b"") -> None:
        super().__init__()
        self.buffer = io.BytesIO(content)


def test_a_picture_goes_from_stdin_to_stdout(
    editar: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "out.png", *STILL)
    stdout = Stream()
    monkeypatch.setattr(sys, "stdin", Stream(PICTURE.read_bytes()))
    monkeypatch.setattr(sys, "stdout", stdout)
    done = editar("edit", BUNDLE, "-", WORDS, "-o", "-", "--json", *STILL)
    assert done.code == 0 and stdout.getvalue() == "", done.stderr
    assert stdout.buffer.getvalue() == (tmp_path / "out.png").read_bytes()
    assert json.loads(done.stderr)["output"] == "-"  # stdout is the picture's


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "stdin is empty"), (b"words", "stdin is not a picture"), (None, "stdin is closed")],
)
def test_what_stdin_lacks_is_said(
    editar: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, says: str
) -> None:
    monkeypatch.setattr(sys, "stdin", None if content is None else Stream(content))
    done = editar("edit", BUNDLE, "-", WORDS, "-o", tmp_path / "out.png")
    assert done.code == 1 and says in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 are Linux's")
def test_a_name_that_is_not_utf8_is_read_and_written(tmp_path: Path) -> None:
    source, out = tmp_path / "in-\udcff.png", tmp_path / "out-\udcff.png"
    shutil.copy(PICTURE, source)
    words = ("edit", BUNDLE, source, WORDS, "-o", out, *STILL)
    command = [sys.executable, "-m", "editar_rt", *map(str, words)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0 and b"out-\\udcff.png" in done.stdout and out.exists(), done.stderr


# What is never written over.


@pytest.mark.parametrize(
    "arguments",
    [
        ("-o", "photo.png", "--then", "remove the cube"),  # photo-1.png would be the result on the way
        ("-o", "photo.png", "-n", "2"),
        ("-o", "photo-1.png"),
        ("-o", "./photo-1.png"),
        ("-o", "link.png"),
        ("-o", "mask.png", "--mask", "mask.png"),
        ("-o", "out.png", "--animate", "photo-1.png"),
        ("-o", "out.png", "--preview", "previews"),
        ("-o", "out.png", "--trace", "states.npz", "--text-states", "states.npz"),
    ],
)
def test_an_input_of_an_edit_is_not_written_over(
    editar: Callable[..., Done], photo: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(photo.parent)
    image = photo.name
    if "link.png" in arguments:
        Path("link.png").symlink_to(photo)
    Path("states.npz").write_bytes(b"states")
    Image.new("L", (10, 10)).save("mask.png")
    if "--preview" in arguments:
        Path("previews").mkdir()
        image = str(photo.rename("previews/08.png"))
    before = {path: path.read_bytes() for path in Path().rglob("*.*")}
    done = editar("edit", BUNDLE, image, WORDS, *arguments)
    assert done.code == 2 and "would overwrite the input" in done.stderr, done.stderr
    assert {path: path.read_bytes() for path in Path().rglob("*.*")} == before


@pytest.mark.parametrize(
    "command",
    [
        ("edit", PICTURE, WORDS, "-o"),
        ("sweep", PICTURE, WORDS, "-o"),
        ("text", WORDS, "-o"),
        ("bench", "--chart"),
    ],
)
def test_no_file_of_the_bundle_is_written_over(
    editar: Callable[..., Done], tmp_path: Path, command: tuple[object, ...]
) -> None:
    (tmp_path / "out.png").symlink_to(SAMPLES / "add-1.png")
    before = (SAMPLES / "add-1.png").read_bytes()
    done = editar(command[0], BUNDLE, *command[1:], tmp_path / "out.png")
    assert done.code == 2 and "would overwrite the input" in done.stderr and "add-1.png" in done.stderr, done.stderr
    assert (SAMPLES / "add-1.png").read_bytes() == before


def test_the_pictures_of_a_folder_are_not_written_over(editar: Callable[..., Done], photo: Path) -> None:
    folder, out = photo.parent / "in", photo.parent / "out"
    folder.mkdir()
    out.mkdir()
    shutil.copy(photo, out / "photo.png")
    (folder / "photo.png").symlink_to(out / "photo.png")
    done = editar("edit", BUNDLE, folder, WORDS, "-o", out)
    assert done.code == 2 and "would overwrite the input" in done.stderr
    assert (out / "photo.png").read_bytes() == photo.read_bytes()


def test_a_sweep_and_a_heat_map_do_not_write_over_what_they_read(editar: Callable[..., Done], photo: Path) -> None:
    done = editar("sweep", BUNDLE, photo, WORDS, "-o", photo)
    assert done.code == 2 and "would overwrite the input" in done.stderr
    (trace := photo.with_name("trace.png")).write_bytes(b"trace")
    done = editar("heatmap", trace, "-o", trace)
    assert done.code == 2 and "would overwrite the input" in done.stderr and trace.read_bytes() == b"trace"


# Folders whose results are there.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    shutil.copy(PICTURE, tmp_path / "in" / "a.png")
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--seed", 9), "seed"),
        (("--temperature", 0.5), "temperature"),
        (("--box", "8,0,8,8"), "mask_from"),
        (("--mask-margin", 1), "mask_margin"),
        (("--no-composite",), "composite"),
        (("--then", "remove the cube"), "a-1.png next to it is missing"),
        (("-n", 1), "a-0.png next to it is missing"),
    ],
)
def test_a_result_of_other_settings_is_made_again(
    editar: Callable[..., Done], folder: Path, tmp_path: Path, change: tuple[object, ...], named: str
) -> None:
    out = tmp_path / "out"
    command = ("edit", BUNDLE, folder, WORDS, "-o", out, "--json", *STILL)
    assert editar(*command).code == 0
    assert editar(*command).document["skipped"] == [str(out / "a.png")]
    changed = editar(*command, *change)
    assert named in changed.document["made_again"][str(out / "a.png")]
    assert "a.png is made again: " in changed.stderr
    again = editar(*command, *change)
    assert again.document["skipped"] == [str(out / "a.png")] and not again.document["pictures"]


def test_a_result_of_another_instruction_or_picture_is_made_again(
    editar: Callable[..., Done], folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("-o", out, "--json", *STILL)
    assert editar("edit", BUNDLE, folder, WORDS, *command).code == 0
    other = editar("edit", BUNDLE, folder, "remove the cube", *command)
    assert other.document["made_again"] == {str(out / "a.png"): "it was made with a different instruction"}
    shutil.copy(SAMPLES / "add-1.png", folder / "a.png")
    replaced = editar("edit", BUNDLE, folder, "remove the cube", *command)
    assert replaced.document["made_again"] == {str(out / "a.png"): "it was made with a different picture"}
    assert not np.array_equal(Image.open(out / "a.png"), Image.open(PICTURE))


def test_a_result_that_cannot_tell_is_made_again(editar: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"finished")
    done = editar("edit", BUNDLE, folder, WORDS, "-o", out, "--json", *STILL)
    assert done.document["made_again"] == {str(out / "a.png"): "it has no record of how it was made"}
    assert read_parameters(out / "a.png")
