"""Pictures: the same pixels as Python's, for PNG and JPEG of every mode, orientation, subsampling and size."""

from __future__ import annotations

import ctypes
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from editar_rt.errors import PictureError
from editar_rt.images.fit import fit_square
from editar_rt.images.masks import read_mask
from editar_rt.images.pixels import MAX_PIXELS, open_grey, open_picture
from editar_rt.images.writing import read_parameters
from tests.cpp.inside import BAD_ARGUMENT, BAD_PICTURE, Failed, Inside
from tests.runtime import picture_files as files
from tests.runtime import test_picture_kinds as kinds
from tests.runtime.picture_files import GREY, GREY_ALPHA, RGB, RGB_ALPHA, png

Sizes = ctypes.c_int32 * 3
SAMPLES = sorted(Path("engines/demo/samples").glob("*.png"))


def read(inside: Inside, file: bytes, grey: bool = False) -> np.ndarray:
    """uint8 [H, W, 3], or [H, W] for grey."""
    sizes = Sizes()
    content = inside.call("picture", file, ctypes.c_size_t(len(file)), int(grey), sizes)
    width, height, channels = sizes
    pixels = np.frombuffer(content, np.uint8).reshape(height, width, channels)
    inside.call("picture_size", file, ctypes.c_size_t(len(file)), sizes)
    assert (width, height) == (sizes[0], sizes[1])
    return pixels[..., 0] if grey else pixels


def square(inside: Inside, pixels: np.ndarray, side: int) -> np.ndarray:
    """The model's square of pixels [H, W, C] in memory; at side 0, all of them as RGB."""
    sizes = Sizes()
    pixels = np.ascontiguousarray(pixels)
    height, width, channels = pixels.shape
    data = pixels.ctypes.data_as(ctypes.c_void_p)
    content = inside.call("square", data, width, height, channels, ctypes.c_int64(0), side, sizes)
    return np.frombuffer(content, np.uint8).reshape(sizes[1], sizes[0], 3)


def scene(width: int, height: int, channels: int = 3) -> np.ndarray:
    """Edges, ramps and noise, uint8 [H, W, C]."""
    rng = np.random.default_rng(width * 1009 + height)
    y, x = np.mgrid[:height, :width] / max(width, height)
    planes = [np.sin(9 * x + c) * np.cos(7 * y - c) + (x * y * 8 % 1 > 0.5) for c in range(channels)]
    return np.clip(np.stack(planes, -1) * 90 + 128 + rng.normal(0, 12, (height, width, channels)), 0, 255).astype(
        np.uint8
    )


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpegs() -> Iterator[tuple[str, bytes]]:
    sizes = [(1, 1), (7, 5), (16, 16), (17, 33), (64, 48), (200, 3)]
    for width, height in sizes:
        image = Image.fromarray(scene(width, height))
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            for quality in (30, 75, 95):
                yield (
                    f"{subsampling}-{quality}-{width}x{height}",
                    saved(image, "JPEG", subsampling=subsampling, quality=quality),
                )
    image = Image.fromarray(scene(45, 61))
    yield "progressive", saved(image, "JPEG", progressive=True, quality=80)
    yield "restarts", saved(image, "JPEG", restart_marker_rows=1)
    yield "optimized", saved(image, "JPEG", optimize=True, quality=50)
    yield "rgb", saved(image, "JPEG", keep_rgb=True)
    yield "grey", saved(image.convert("L"), "JPEG")
    yield "cmyk", saved(image.convert("CMYK"), "JPEG")
    yield "comment", saved(image, "JPEG", comment=b"\xff\xd9 no end")
    yield "4:4:0", files_440(image)
    yield "trailing", saved(image, "JPEG") + b"more"
    for orientation in range(10):
        yield f"exif-{orientation}", saved(image, "JPEG", exif=files.exif(orientation))
    yield "exif-big-endian", saved(image, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0")
    yield "exif-damaged", saved(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\0\0")
    yield "exif-and-damaged-tag", saved(image, "JPEG", exif=files.exif(6, tag=0x9286, kind=2, count=99))
    yield "xmp", saved(image, "JPEG", xmp=b'<x tiff:Orientation="8"/>')
    yield "xmp-element", saved(image, "JPEG", xmp=b"<tiff:Orientation>3</tiff:Orientation>")
    yield "exif-before-xmp", saved(image, "JPEG", exif=files.exif(6), xmp=b'<x tiff:Orientation="8"/>')
    profiles = {
        "srgb": files.SRGB, "p3": files.DISPLAY_P3, "p3-gamma": files.P3_GAMMA_22, "adobe": files.ADOBE_RGB,
        "damaged": b"no profile", "grey": files.LINEAR_GREY,
    }  # fmt: skip
    for name, profile in profiles.items():
        yield f"profile-{name}", saved(image, "JPEG", icc_profile=profile)
        yield f"profile-{name}-on-grey", saved(image.convert("L"), "JPEG", icc_profile=profile)
    yield "profile-in-parts", saved(image, "JPEG", icc_profile=files.DISPLAY_P3 + bytes(100_000))
    yield "profile-cmyk", saved(image.convert("CMYK"), "JPEG", icc_profile=files.cmyk_profile([10, 20, 30, 60]))


def files_440(image: Image.Image) -> bytes:
    """Turned by a quarter without decoding, 4:2:2 would be 4:4:0: the frame's factors are swapped by hand."""
    file = bytearray(saved(image, "JPEG", subsampling="4:2:2"))
    frame = file.index(b"\xff\xc0")
    assert file[frame + 11] == 0x21
    file[frame + 11] = 0x12
    return bytes(file)


def interlaced(codes: np.ndarray, bits: int, colour: int) -> bytes:
    """A PNG by Adam7, line by line without filters."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b""
    for y, x, down, across in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        part = codes[y::down, x::across]
        if part.size:
            lines += b"".join(b"\0" + files.packed(line[None], bits) for line in part)
    head = struct.pack(">IIBBBBB", codes.shape[1], codes.shape[0], bits, colour, 0, 0, 1)
    chunks = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def pngs() -> Iterator[tuple[str, bytes]]:
    yield from ((name, file) for name, file, _ in kinds.pngs())
    for path in SAMPLES:
        yield path.name, path.read_bytes()
    for width, height in ((1, 1), (7, 5), (33, 17)):
        for bits in (1, 2, 4, 8, 16):
            grey = scene(width, height, 1)[..., 0].astype(int) * 257 >> (16 - bits)
            yield f"grey-{bits}-{width}x{height}", png(grey, bits, GREY)
            yield f"grey-{bits}-{width}x{height}-interlaced", interlaced(grey, bits, GREY)
        for bits in (8, 16):
            for colour, channels in ((RGB, 3), (GREY_ALPHA, 2), (RGB_ALPHA, 4)):
                codes = scene(width, height, channels).astype(int) * 257 >> (16 - bits)
                yield f"colour-{colour}-{bits}-{width}x{height}", png(codes, bits, colour)
                yield f"colour-{colour}-{bits}-{width}x{height}-interlaced", interlaced(codes, bits, colour)
    for codes in (np.arange(65536).reshape(256, 256), np.repeat(np.arange(65536), 2).reshape(256, 512)):
        yield f"grey-16-every-value-{codes.shape}", png(codes, 16, GREY)
    every = np.stack(np.meshgrid(np.arange(256), np.arange(256)), -1)
    yield "every-grey-and-alpha", png(every, 8, GREY_ALPHA)
    image = Image.fromarray(scene(45, 61))
    for colors in (2, 4, 16, 200, 256):
        palette = image.quantize(colors)
        yield f"palette-{colors}", saved(palette, "PNG")
        yield f"palette-{colors}-optimized", saved(palette, "PNG", optimize=True)
        yield f"palette-{colors}-transparent", saved(palette, "PNG", transparency=1)
        yield (
            f"palette-{colors}-alpha",
            saved(palette, "PNG", transparency=bytes(3 * n % 256 for n in range(colors))),
        )
    for mode in ("1", "L", "LA", "RGBA", "P", "I;16"):
        yield f"mode-{mode}", saved(image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode), "PNG")
    for orientation in range(1, 9):
        yield f"exif-{orientation}", saved(image, "PNG", exif=files.exif(orientation))
        yield f"exif-{orientation}-alpha", saved(image.convert("RGBA"), "PNG", exif=files.exif(orientation))
    for compressed in (False, True):
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=compressed)
        yield f"xmp-{compressed}", saved(image, "PNG", pnginfo=info)
        info = PngImagePlugin.PngInfo()
        info.add_text("Raw profile type exif", f"\nexif\n  100\n{files.exif(8).hex()}\n", zip=compressed)
        yield f"raw-profile-{compressed}", saved(image, "PNG", pnginfo=info)
    for name, profile in {"srgb": files.SRGB, "p3": files.DISPLAY_P3, "damaged": b"no profile"}.items():
        yield f"profile-{name}", saved(image, "PNG", icc_profile=profile)
        yield f"profile-{name}-alpha", saved(image.convert("RGBA"), "PNG", icc_profile=profile)
        yield f"profile-{name}-palette", saved(image.quantize(20), "PNG", icc_profile=profile)
        for grey in (files.LINEAR_GREY, files.SRGB_GREY, profile):
            for bits in (8, 16):
                codes = scene(33, 17, 1)[..., 0].astype(int) * 257 >> (16 - bits)
                yield f"profile-{name}-grey-{bits}-{len(grey)}", png(codes, bits, GREY, icc=grey)


JPEGS, PNGS = dict(jpegs()), dict(pngs())


def expected(call: Callable[[], Image.Image]) -> np.ndarray | str:
    """Python's pixels, or its refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return np.asarray(call())
        except PictureError as error:
            return str(error)


def assert_same(inside: Inside, file: bytes) -> None:
    for grey, opener in ((False, open_picture), (True, open_grey)):
        wanted = expected(lambda opener=opener: opener(file))  # type: ignore[misc]
        if isinstance(wanted, str):
            with pytest.raises(Failed) as failed:
                read(inside, file, grey)
            assert failed.value.status == BAD_PICTURE
            assert str(failed.value) == wanted
        else:
            np.testing.assert_array_equal(read(inside, file, grey), wanted)


@pytest.mark.parametrize("file", JPEGS.values(), ids=list(JPEGS))
def test_a_jpeg_has_pythons_pixels(inside: Inside, file: bytes) -> None:
    assert_same(inside, file)


@pytest.mark.parametrize("file", PNGS.values(), ids=list(PNGS))
def test_a_png_has_pythons_pixels(inside: Inside, file: bytes) -> None:
    assert_same(inside, file)


# Resizing.


@pytest.mark.parametrize("side", [16, 128, 512])
@pytest.mark.parametrize(
    "size",
    [(1, 1), (16, 16), (128, 128), (129, 128), (100, 37), (37, 100), (640, 481), (1000, 90), (90, 1000), (3, 200),
     (200, 3), (1, 300), (2000, 1501), (513, 512), (127, 9), (1, 65_535)],
)  # fmt: skip
def test_the_square_is_pythons(inside: Inside, size: tuple[int, int], side: int) -> None:
    pixels = scene(*size)
    np.testing.assert_array_equal(square(inside, pixels, side), np.asarray(fit_square(Image.fromarray(pixels), side)))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_in_memory_have_pythons_pixels(inside: Inside, channels: int) -> None:
    pixels = scene(33, 21, channels)
    np.testing.assert_array_equal(square(inside, pixels, 0), np.asarray(open_picture(pixels)))


def test_lines_may_have_gaps(inside: Inside) -> None:
    wide = scene(40, 21)
    data, sizes = wide.ctypes.data_as(ctypes.c_void_p), Sizes()
    content = inside.call("square", data, 33, 21, 3, ctypes.c_int64(120), 0, sizes)
    np.testing.assert_array_equal(np.frombuffer(content, np.uint8).reshape(21, 33, 3), wide[:, :33])


@pytest.mark.parametrize(
    ("width", "height", "channels", "stride", "status", "says"),
    [
        (0, 1, 3, 0, BAD_ARGUMENT, "width and height must be 1 or more, got 0×1"),
        (1, -1, 3, 0, BAD_ARGUMENT, "width and height must be 1 or more, got 1×-1"),
        (1, 1, 2, 0, BAD_ARGUMENT, "channels must be 1, 3 or 4, got 2"),
        (4, 1, 3, 11, BAD_ARGUMENT, "stride must be 0, or at least its 12 bytes of a line, got 11"),
        (4, 1, 3, -12, BAD_ARGUMENT, "stride must be 0, or at least its 12 bytes of a line, got -12"),
        (8001, 8000, 3, 0, BAD_PICTURE, "has 8001×8000 pixels; at most 64 million are read, make it smaller"),
        (2**31 - 1, 2**31 - 1, 4, 0, BAD_PICTURE, "at most 64 million are read"),
    ],
)
def test_a_picture_that_cannot_be_is_one_sentence(
    inside: Inside, width: int, height: int, channels: int, stride: int, status: int, says: str
) -> None:
    data, sizes = np.zeros(64, np.uint8).ctypes.data_as(ctypes.c_void_p), Sizes()
    with pytest.raises(Failed, match=says) as failed:
        inside.call("square", data, width, height, channels, ctypes.c_int64(stride), 0, sizes)
    assert failed.value.status == status


# Masks.


def mask_of(inside: Inside, mask: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    mask = np.ascontiguousarray(mask)
    data = mask.ctypes.data_as(ctypes.c_void_p)
    content = inside.call("mask", data, mask.shape[1], mask.shape[0], *size, side)
    return np.frombuffer(content, np.uint8).reshape(side, side).astype(bool)


@pytest.mark.parametrize("side", [16, 128])
@pytest.mark.parametrize(
    ("mask_size", "size"),
    [((128, 128), (128, 128)), ((3968, 3968), (3968, 3968)), ((64, 48), (640, 480)), ((640, 480), (64, 48)),
     ((7, 5), (70, 50)), ((300, 1), (300, 1)), ((65_535, 1), (65_535, 1)),
     ((1, 1), (500, 500)), ((333, 250), (1000, 751))],
)  # fmt: skip
def test_a_mask_is_pythons(inside: Inside, mask_size: tuple[int, int], size: tuple[int, int], side: int) -> None:
    rng = np.random.default_rng(0)
    for share in (0.001, 0.5):
        mask = np.where(rng.random(mask_size[::-1]) < share, rng.integers(120, 256), 0).astype(np.uint8)
        np.testing.assert_array_equal(mask_of(inside, mask, size, side), read_mask(mask, size, side))


def test_a_lone_white_pixel_survives_any_reduction(inside: Inside) -> None:
    for place in ((0, 0), (1983, 77), (3967, 3967)):
        mask = np.zeros((3968, 3968), np.uint8)
        mask[place] = 255
        found = mask_of(inside, mask, (3968, 3968), 128)
        assert found.sum() == 1 and found[place[0] // 31, place[1] // 31]
        assert np.array_equal(found, read_mask(mask, (3968, 3968), 128))


def test_a_mask_of_another_shape_is_refused(inside: Inside) -> None:
    mask = np.zeros((50, 100), np.uint8)
    with pytest.raises(PictureError) as pythons:
        read_mask(mask, (100, 100), 16)
    with pytest.raises(Failed) as failed:
        mask_of(inside, mask, (100, 100), 16)
    assert failed.value.status == BAD_PICTURE and str(failed.value) == str(pythons.value)


# Damage.


def cut(file: bytes) -> list[bytes]:
    return [file[: len(file) * n // 8] for n in range(1, 8)] + [file[:-1], file[:-2]]


@pytest.mark.parametrize("file", [JPEGS["4:2:0-75-64x48"], JPEGS["progressive"], PNGS["colour-2-8-33x17"]])
def test_a_truncated_file_is_refused_in_a_sentence(inside: Inside, file: bytes) -> None:
    for part in cut(file)[:-2]:
        assert isinstance(expected(lambda part=part: open_picture(part)), str)  # type: ignore[misc]
        with pytest.raises(Failed, match=r"is it truncated\?|is not a PNG or JPEG") as failed:
            read(inside, part)
        assert failed.value.status == BAD_PICTURE


@pytest.mark.parametrize("marker", [b"\xff\xdb", b"\xff\xc0", b"\xff\xda"])
def test_bytes_between_the_markers_of_a_jpeg_are_skipped(inside: Inside, marker: bytes) -> None:
    """As some cameras write them; and a revision of JFIF that nobody knows."""
    file = JPEGS["4:2:0-75-64x48"]
    place = file.index(marker)
    for altered in (file[:place] + b"\x11\x22\x33" + file[place:], file[:11] + b"\x07" + file[12:]):
        assert np.array_equal(read(inside, altered), np.asarray(open_picture(altered)))


@pytest.mark.parametrize("name", ["4:2:0-75-64x48", "progressive", "grey", "colour-6-8-33x17", "palette-16-alpha"])
def test_altered_files_have_pythons_pixels_or_are_refused(inside: Inside, name: str) -> None:
    """What Pillow refuses may be read, where libraries differ about a damage that does no harm, but not by a crash."""
    file = (JPEGS | PNGS)[name]
    rng, alike, refused = np.random.default_rng(0), 0, 0
    for _ in range(80):
        altered = bytearray(file)
        for place in rng.integers(2, len(file), rng.integers(1, 4)):
            altered[place] = rng.integers(256)
        wanted = expected(lambda altered=altered: open_picture(bytes(altered)))  # type: ignore[misc]
        try:
            found = read(inside, bytes(altered))
        except Failed as error:
            assert error.status == BAD_PICTURE
            refused += isinstance(wanted, str)
            continue
        if not isinstance(wanted, str):
            np.testing.assert_array_equal(found, wanted)
            alike += 1
    assert alike + refused > 70


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (b"", "is not a PNG or JPEG"),
        (b"GIF89a" + bytes(100), "is not a PNG or JPEG, which this library reads; convert it to one of them"),
        (b"\xff\xd8\xff", "is it truncated"),
        (b"\xff\xd8\xff\xd9", "is it truncated"),
        (b"\x89PNG\r\n\x1a\n", "is it truncated"),
        (png(np.zeros((1, 1), int), 8, GREY)[:-20], "is it truncated"),
    ],
)
def test_what_is_no_picture_is_one_sentence(inside: Inside, file: bytes, says: str) -> None:
    with pytest.raises(Failed, match=says) as failed:
        read(inside, file)
    assert failed.value.status == BAD_PICTURE


def huge(kind: str, width: int = int(MAX_PIXELS**0.5) + 1, height: int = int(MAX_PIXELS**0.5) + 1) -> bytes:
    """A head that claims more pixels than are read."""
    if kind == "PNG":
        file = png(np.zeros((1, 1), int), 8, GREY)
        head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        return file[:12] + head + struct.pack(">I", zlib.crc32(head)) + file[33:]
    jpeg = bytearray(saved(Image.new("L", (1, 1)), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(jpeg)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_that_is_too_large_is_refused_by_its_head(inside: Inside, kind: str) -> None:
    with pytest.raises(Failed, match="pixels; at most 64 million are read, make it smaller") as failed:
        read(inside, huge(kind))
    assert failed.value.status == BAD_PICTURE


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536)])
def test_a_picture_that_is_too_long_is_refused_as_pythons(inside: Inside, size: tuple[int, int]) -> None:
    file = saved(Image.new("L", size), "PNG")
    with pytest.raises(PictureError) as refused:
        open_picture(file)
    with pytest.raises(Failed) as failed:
        read(inside, file)
    assert str(failed.value) == str(refused.value)


def test_a_small_file_that_claims_many_pixels_takes_no_memory_for_them(inside: Inside) -> None:
    file = png(np.zeros((1, 1), int), 8, GREY)
    head = b"IHDR" + struct.pack(">IIBBBBB", 7000, 7000, 16, 6, 0, 0, 0)
    file = file[:12] + head + struct.pack(">I", zlib.crc32(head)) + file[33:]
    with pytest.raises(Failed, match="too few bytes for its pixels"):
        inside.call("picture", file, ctypes.c_size_t(len(file)), 0, Sizes())


# Writing.


def write(inside: Inside, path: Path, pixels: np.ndarray, texts: dict[str, str]) -> None:
    pairs = [each.encode() for pair in texts.items() for each in pair]
    array = (ctypes.c_char_p * (len(pairs) + 1))(*pairs, None)
    height, width, channels = pixels.shape
    data = np.ascontiguousarray(pixels).ctypes.data_as(ctypes.c_void_p)
    inside.call("write_png", str(path).encode(), data, width, height, channels, array)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_written_png_has_its_pixels_and_texts(inside: Inside, tmp_path: Path, channels: int) -> None:
    pixels, texts = scene(33, 21, channels), {"instruction": "färbe den Ball 红色", "seed": "1", "empty": ""}
    path = tmp_path / "bild-束.png"
    write(inside, path, pixels, texts)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)
    assert read_parameters(path) == texts
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_png_without_texts_has_none(inside: Inside, tmp_path: Path) -> None:
    write(inside, tmp_path / "x.png", scene(3, 2), {})
    assert read_parameters(tmp_path / "x.png") is None


def test_an_older_file_is_replaced_and_a_links_target_too(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(b"old")
    (tmp_path / "old.png").chmod(0o600)
    (tmp_path / "link.png").symlink_to("old.png")
    write(inside, tmp_path / "link.png", scene(3, 2), {})
    assert (tmp_path / "link.png").is_symlink()
    assert Image.open(tmp_path / "old.png").size == (3, 2)
    assert (tmp_path / "old.png").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.png", "old.png"]


@pytest.mark.parametrize(
    ("name", "says"),
    [("none/x.png", "No such file or directory"), ("folder", "Is a directory"), ("n" * 300, "too long")],
)
def test_a_place_that_cannot_be_written_is_one_sentence(inside: Inside, tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(Failed, match=f"cannot write .*{says}") as failed:
        write(inside, tmp_path / name, scene(3, 2), {})
    assert failed.value.status == BAD_PICTURE
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_name_of_255_bytes_is_written(inside: Inside, tmp_path: Path) -> None:
    path = tmp_path / f"{'é' * 125}x.png"
    write(inside, path, scene(3, 2), {})
    assert list(tmp_path.iterdir()) == [path]
