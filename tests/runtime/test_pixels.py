"""Pictures of every kind to arrays, and those that are refused."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from editar_rt.errors import PictureError
from editar_rt.images.fit import fit_square
from editar_rt.images.pixels import open_picture, read_pixels, to_pictures, to_pixels


def test_pixels_and_pictures_are_inverse_for_all_values() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    pixels = to_pixels(values)
    assert pixels.dtype == np.float32 and pixels.min() == -1 and pixels.max() == 1
    assert np.array_equal(to_pictures(pixels), values)


def test_pixels_outside_are_clipped() -> None:
    assert to_pictures(np.float32([[[[-3]], [[0]], [[3]]]])).tolist() == [[[[0, 128, 255]]]]


def test_transparency_is_blended_on_white(tmp_path: Path) -> None:
    path = tmp_path / "alpha.png"
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(path)
    assert open_picture(path).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("LA", (8, 8), (0, 128))
    assert abs(open_picture(half).getpixel((0, 0))[0] - 127) <= 1


def test_transparent_palettes_are_blended_on_white(tmp_path: Path) -> None:
    path = tmp_path / "palette.png"
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((0, 0), 0)
    picture.save(path, transparency=0)
    opened = open_picture(path)
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((1, 1)) == (200, 100, 50)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(path)
    assert open_picture(path).getpixel((0, 0)) == (128, 128, 128)


def test_a_dark_sixteen_bit_picture_stays_dark() -> None:
    """Mode I;16 is scaled whatever its values: 250 of 65535 is all but black."""
    assert open_picture(Image.fromarray(np.full((8, 8), 250, np.uint16))).getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize(("value", "grey"), [(0.5, 128), (1.0, 255), (200.0, 200), (65535.0, 255), (np.nan, 0)])
def test_floating_grey_is_scaled_by_its_range(value: float, grey: int) -> None:
    assert open_picture(Image.fromarray(np.full((8, 8), value, np.float32))).getpixel((0, 0)) == (grey,) * 3


def test_cmyk_jpegs_keep_their_colours(tmp_path: Path) -> None:
    path = tmp_path / "print.jpg"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, quality=95)
    red, green, blue = open_picture(path).getpixel((8, 8))
    assert red > 240 and green < 15 and blue < 15


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    picture = Image.new("RGB", (40, 20), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path, exif=exif)
    assert open_picture(path).size == (20, 40)


@pytest.mark.parametrize(
    "mode", ["1", "L", "La", "LA", "PA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "I;16B", "F"]
)
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert open_picture(Image.new(mode, (8, 8))).mode == "RGB"


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (9, 8, 3), (9, 8, 4)])
def test_arrays_of_uint8_are_pictures(shape: tuple[int, ...]) -> None:
    assert open_picture(np.zeros(shape, np.uint8)).size == (8, 9)


@pytest.mark.parametrize("array", [np.zeros((8, 8, 3)), np.zeros((8,), np.uint8), np.zeros((8, 8, 2), np.uint8)])
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(PictureError, match=r"must be uint8 \[H, W, 3\]"):
        open_picture(array)


# Files that are not at a path.


def content_of(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_bytes_and_files_in_memory_are_pictures(kind: Callable[[bytes], Any]) -> None:
    content = content_of(Image.new("RGB", (8, 9), "red"))
    assert open_picture(kind(content)).getpixel((0, 0)) == (255, 0, 0)


def test_an_open_file_is_read_from_where_it_stands_and_left_open(tmp_path: Path) -> None:
    (tmp_path / "two").write_bytes(b"header" + content_of(Image.new("RGB", (8, 9), "red")))
    with open(tmp_path / "two", "rb") as file:
        file.seek(6)
        assert open_picture(file).size == (8, 9)
        assert not file.closed


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("opened", [True, False], ids=["file-object", "path"])
def test_pipes_are_read(tmp_path: Path, opened: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    content = content_of(Image.new("RGB", (8, 9), "red"))
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,), daemon=True)
    writer.start()
    if opened:
        with open(tmp_path / "pipe", "rb") as stream:
            assert open_picture(stream).size == (8, 9)
    else:
        assert open_picture(tmp_path / "pipe").size == (8, 9)
    writer.join()


def test_bad_files_in_memory_are_refused_by_their_name(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="the picture is not a picture in a format"):
        open_picture(b"hello")
    (tmp_path / "notes.txt").write_text("hello")
    with open(tmp_path / "notes.txt", "rb") as file, pytest.raises(PictureError, match=r"notes\.txt is not a picture"):
        open_picture(file)
    with (
        open(tmp_path / "notes.txt", encoding="utf-8") as text,
        pytest.raises(PictureError, match="open a picture's file in mode 'rb'"),
    ):
        open_picture(text)  # type: ignore[arg-type]
    with pytest.raises(PictureError, match="a path, bytes, a binary file, a PIL image or a uint8 array, got int"):
        open_picture(3)  # type: ignore[arg-type]


def test_no_more_is_read_from_a_file_object_than_a_picture_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("editar_rt.images.pixels.MAX_BYTES", 1 << 20)
    with io.BytesIO(bytes(2 << 20)) as large, pytest.raises(PictureError, match="more than 1 MB"):
        open_picture(large)


def test_reading_pictures_changes_nothing_of_the_process() -> None:
    """Warning filters are of all threads: who sets them for a while loses them to another who does so too."""
    before = list(warnings.filters)
    seen = []

    class Watching(io.BytesIO):
        def read(self, *count: int) -> bytes:
            seen.append(list(warnings.filters))
            return super().read(*count)

    open_picture(Image.open(Watching(content_of(Image.new("RGB", (8, 8))))))
    assert seen and all(filters == before for filters in seen)


# Into the model's square.


@pytest.mark.parametrize("size", [(100, 40), (40, 100), (64, 64), (3, 1), (2000, 5)])
def test_the_middle_square_is_cut_out(size: tuple[int, int]) -> None:
    assert fit_square(Image.new("RGB", size), 64).size == (64, 64)
    assert read_pixels(Image.new("RGB", size), 64).shape == (1, 3, 64, 64)


def test_the_cut_is_centred() -> None:
    picture = Image.new("RGB", (192, 64), "black")
    picture.paste("white", (64, 0, 128, 64))
    assert np.asarray(fit_square(picture, 64)).min() == 255


def huge_png(path: Path, side: int) -> Path:
    """A valid header of a side × side picture; nobody should get as far as its data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("side", [8_001, 9_500, 30_000])
@pytest.mark.filterwarnings("error")
def test_huge_pictures_are_refused_from_their_header(tmp_path: Path, side: int) -> None:
    """Below Pillow's limit, where it warns, and where it raises; its settings are the caller's and stay."""
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(PictureError, match=r"(at most|more than) 64 million"):
        open_picture(huge_png(tmp_path / "huge.png", side))
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536)])
def test_pictures_that_are_too_long_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(PictureError, match="at most 65535 on a side"):
        open_picture(Image.new("L", size))
    assert open_picture(Image.new("L", tuple(min(side, 65_535) for side in size))).width


def test_missing_damaged_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="there is no picture"):
        open_picture(tmp_path / "none.png")
    with pytest.raises(PictureError, match="is a folder"):
        open_picture(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(PictureError, match="not a picture in a format"):
        open_picture(tmp_path / "text.png")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    with pytest.raises(PictureError, match="truncated"):
        open_picture(tmp_path / "cut.png")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_no_damage_ends_in_anything_but_a_sentence(tmp_path: Path, kind: str) -> None:
    """Bytes overwritten and cut anywhere: the picture opens, or PictureError says in one line that it does not."""
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged"
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(path, format=kind)
    whole, refused = path.read_bytes(), 0
    for _ in range(60):
        content = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, min(len(content), 200), 8):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            assert open_picture(path).mode == "RGB"
        except PictureError as e:
            refused += 1
            assert "\n" not in str(e)
    assert refused


def test_a_picture_that_is_already_open_but_truncated_is_refused_too(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:3000])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(PictureError, match="the picture cannot be read"):
        open_picture(image)


def test_drawings_are_not_handed_to_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "drawing.eps"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(PictureError, match=r"is a drawing \(EPS\)"):
        open_picture(path)
