"""The suffix of a name decides the format of a picture, and every format keeps how it was made."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from editar_rt.errors import EditarWarning, OptionError, PictureError
from editar_rt.images.writing import FORMATS, check_picture_name, read_parameters, save_picture

PARAMETERS = {"instruction": 'make the "ball" réd 🙂', "seed": str(2**64 - 1), "cfg_scale": "linear:1,5"}
WRITTEN = [suffix for suffix, name in FORMATS.items() if name != "AVIF" or features.check("avif")]
LOSSLESS = ("PNG", "TIFF")


@pytest.fixture
def picture() -> Image.Image:
    ramp = np.arange(64, dtype=np.uint8) * 4
    return Image.fromarray(np.stack([*np.meshgrid(ramp, ramp), np.full((64, 64), 90, np.uint8)], axis=-1))


@pytest.mark.parametrize("suffix", [*WRITTEN, ".JPG"])
def test_every_suffix_is_its_format_and_keeps_the_parameters(picture: Image.Image, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    save_picture(picture, path, PARAMETERS)
    with Image.open(path) as found:
        assert found.format == FORMATS[suffix.lower()]
        error = np.abs(np.asarray(found.convert("RGB"), np.int16) - np.asarray(picture, np.int16))
        assert error.max() == 0 if found.format in LOSSLESS else error.mean() < 3
    assert read_parameters(path) == PARAMETERS


@pytest.mark.parametrize("suffix", WRITTEN)
def test_without_metadata_a_file_says_nothing(picture: Image.Image, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    save_picture(picture, path, PARAMETERS, metadata=False)
    assert read_parameters(path) is None and b"ball" not in path.read_bytes()


@pytest.mark.parametrize("suffix", [suffix for suffix in WRITTEN if FORMATS[suffix] not in LOSSLESS])
def test_a_higher_quality_is_a_larger_file(picture: Image.Image, tmp_path: Path, suffix: str) -> None:
    sizes = []
    for quality in (10, 60, 100):
        save_picture(picture, tmp_path / f"out{suffix}", quality=quality)
        sizes.append((tmp_path / f"out{suffix}").stat().st_size)
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("name", "quality", "says"),
    [
        ("out.txt", None, "a picture's name must end with .png, .jpg, .jpeg, .webp, .avif, .tif, .tiff, got 'out.txt'"),
        ("out", None, "a picture's name must end with"),
        ("out.png.", None, "a picture's name must end with"),
        ("out.png", 90, "PNG is lossless and has no quality"),
        ("out.jpg", 0, "quality must be 1 to 100, got 0"),
        ("out.jpg", 90.5, "quality must be an integer, got 90.5"),
    ],
)
def test_names_and_qualities_that_say_nothing_are_refused(
    picture: Image.Image, tmp_path: Path, name: str, quality: int | None, says: str
) -> None:
    with pytest.raises(OptionError, match=says):
        save_picture(picture, tmp_path / name, quality=quality)
    assert not list(tmp_path.iterdir())


def test_a_format_that_this_pillow_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(Image.SAVE, "AVIF", raising=False)
    with pytest.raises(OptionError, match="this version of Pillow cannot write AVIF"):
        check_picture_name(Path("out.avif"))


def test_settings_too_long_for_a_jpeg_are_left_out_and_the_picture_is_not(picture: Image.Image, tmp_path: Path) -> None:
    long = {"instruction": "word " * 20_000}
    with pytest.warns(EditarWarning, match="more than a JPEG can store"):
        save_picture(picture, tmp_path / "out.jpg", long)
    save_picture(picture, tmp_path / "out.webp", long)
    assert read_parameters(tmp_path / "out.jpg") is None and read_parameters(tmp_path / "out.webp") == long


def test_a_picture_larger_than_its_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="a picture of 20000×1 pixels cannot be written as WEBP"):
        save_picture(Image.new("RGB", (20_000, 1)), tmp_path / "out.webp")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_file_object_and_a_fifo_get_a_png(picture: Image.Image, tmp_path: Path) -> None:
    buffer, fifo, read = io.BytesIO(), tmp_path / "fifo", []
    save_picture(picture, buffer, PARAMETERS)
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    save_picture(picture, fifo, PARAMETERS)
    reader.join(10)
    assert read == [buffer.getvalue()] and read[0].startswith(b"\x89PNG")


@pytest.mark.parametrize("description", ["", "a ball", "[1]", '{"editar": 5}', '{"editar": {"seed": 5}}', "[" * 5000])
def test_descriptions_of_others_tell_nothing(picture: Image.Image, tmp_path: Path, description: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = description
    picture.save(tmp_path / "other.jpg", exif=exif)
    assert read_parameters(tmp_path / "other.jpg") is None


def test_files_that_are_no_pictures_tell_nothing(tmp_path: Path) -> None:
    (tmp_path / "out.png").write_bytes(b"finished")
    assert read_parameters(tmp_path / "out.png") is None and read_parameters(tmp_path / "none.png") is None
