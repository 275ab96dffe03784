"""Every mode, bit depth, photometric interpretation and transparency: right within 1/255, or refused in a sentence."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from editar_rt.errors import PictureError
from editar_rt.images.masks import read_mask
from editar_rt.images.pixels import open_grey, open_picture
from tests.runtime import picture_files as files
from tests.runtime.picture_files import GREY, GREY_ALPHA, RGB, RGB_ALPHA, png, tiff

RAMP = np.linspace(0, 1, 32).reshape(4, 8)  # shares of white
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)
ALPHA = np.linspace(1, 0, 32).reshape(4, 8).T.reshape(4, 8)
BLACK, WHITE, RGB_PHOTO, PALETTE, CMYK, YCBCR, LAB = 1, 0, 2, 3, 5, 6, 8  # TIFF's; which one is zero
COLOUR_MAP, SUBSAMPLING = 320, 530  # tags
ORDERS = {"<": "II", ">": "MM"}

Kind = tuple[str, bytes, np.ndarray | str]  # name, file, shares [H, W] or [H, W, 3], or what the refusal says


def codes(shares: np.ndarray, bits: int) -> np.ndarray:
    return np.round(shares * (2**bits - 1)).astype(np.int64)


def shown(shares: np.ndarray, bits: int) -> np.ndarray:
    """Shares after they were rounded to codes."""
    return codes(shares, bits) / (2**bits - 1)


def on_white(shares: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha if shares.ndim == 2 else alpha[..., None]
    return shares * alpha + 1 - alpha


def with_alpha(shares: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    shares = shares if shares.ndim == 3 else shares[..., None]
    shares = shares * ALPHA[..., None] if premultiplied else shares
    return np.concatenate([shares, ALPHA[..., None]], axis=-1)


def pngs() -> Iterator[Kind]:
    for bits in (1, 2, 4, 8, 16):
        grey = codes(RAMP, bits)
        yield f"png-grey-{bits}", png(grey, bits, GREY), grey / (2**bits - 1)
        for key in (0, grey[2, 5], 2**bits - 1):
            keyed = np.where(grey == key, 1, grey / (2**bits - 1))
            yield f"png-grey-{bits}-transparent-{key}", png(grey, bits, GREY, [key]), keyed
    for bits in (8, 16):
        colours, key = codes(COLOURS, bits), codes(COLOURS, bits)[1, 3]
        keyed = np.where((colours == key).all(axis=-1, keepdims=True), 1, colours / (2**bits - 1))
        yield f"png-rgb-{bits}", png(colours, bits, RGB), shown(COLOURS, bits)
        refused = "marks a colour of 16 bits per channel as transparent"
        yield f"png-rgb-{bits}-transparent", png(colours, bits, RGB, key), keyed if bits == 8 else refused
        for colour, shares in ((GREY_ALPHA, RAMP), (RGB_ALPHA, COLOURS)):
            content = png(codes(with_alpha(shares), bits), bits, colour)
            yield f"png-{'grey' if colour == GREY_ALPHA else 'rgb'}-alpha-{bits}", content, on_white(shares, ALPHA)
    yield "png-grey-16-dark", png(codes(RAMP / 300, 16), 16, GREY), RAMP / 300


def grey_tiffs() -> Iterator[Kind]:
    refused = "not a picture in a format"  # Pillow knows no such TIFF
    for order, mark in ORDERS.items():
        for bits in (1, 2, 4, 8, 12, 16, 32):
            read: Any = shown(RAMP, bits)
            for photometric, name in ((BLACK, "black"), (WHITE, "white")):
                values = codes(RAMP if photometric == BLACK else 1 - RAMP, bits)
                known = bits <= 8 or (order == "<" and (photometric == BLACK or bits == 16))
                known = known or (bits == 16 and photometric == BLACK)
                content = tiff(values, bits, photometric, order)
                yield f"tiff-{mark}-grey-{bits}-{name}-is-zero", content, read if known else refused
        for bits in (8, 16, 32):
            content = tiff(codes(RAMP / 2, bits), bits, BLACK, order, sample_format=2)
            yield f"tiff-{mark}-grey-{bits}-signed", content, "signed numbers"
        content = tiff(RAMP, 32, BLACK, order, sample_format=3)
        yield f"tiff-{mark}-grey-float", content, RAMP
        content = tiff(RAMP, 32, WHITE, order, sample_format=3)
        yield f"tiff-{mark}-grey-float-white-is-zero", content, "floating-point values with white at zero"
        dark = tiff(codes(RAMP / 300, 16), 16, BLACK, order)
        yield f"tiff-{mark}-grey-16-dark", dark, RAMP / 300


def colour_tiffs() -> Iterator[Kind]:
    for order, mark in ORDERS.items():
        for bits in (8, 16):
            colours, both = codes(COLOURS, bits), codes(with_alpha(COLOURS), bits)
            planes: Any = COLOURS if bits == 8 else "separate planes of 16 bits"
            yield f"tiff-{mark}-rgb-{bits}", tiff(colours, bits, RGB_PHOTO, order), COLOURS
            yield f"tiff-{mark}-rgb-{bits}-planes", tiff(colours, bits, RGB_PHOTO, order, planes=True), planes
            yield f"tiff-{mark}-rgb-{bits}-more", tiff(both, bits, RGB_PHOTO, order, extra=0), COLOURS
            blended = on_white(COLOURS, ALPHA)
            yield f"tiff-{mark}-rgb-{bits}-alpha", tiff(both, bits, RGB_PHOTO, order, extra=2), blended
            multiplied = tiff(codes(with_alpha(COLOURS, True), bits), bits, RGB_PHOTO, order, extra=1)
            yield f"tiff-{mark}-rgb-{bits}-premultiplied", multiplied, blended
            inks = codes(np.concatenate([1 - COLOURS, np.zeros((4, 8, 1))], axis=-1), bits)
            yield f"tiff-{mark}-cmyk-{bits}", tiff(inks, bits, CMYK, order), COLOURS
        alpha = tiff(codes(with_alpha(RAMP), 8), 8, BLACK, order, extra=2)
        yield f"tiff-{mark}-grey-alpha", alpha, on_white(RAMP, ALPHA)
        alpha = tiff(codes(with_alpha(RAMP, True), 8), 8, BLACK, order, extra=1)
        yield f"tiff-{mark}-grey-premultiplied", alpha, on_white(RAMP, ALPHA)
        planes = tiff(codes(with_alpha(COLOURS), 8), 8, RGB_PHOTO, order, extra=2, planes=True)
        yield f"tiff-{mark}-rgb-8-alpha-planes", planes, on_white(COLOURS, ALPHA)
        for bits in (1, 2, 4, 8):
            index = codes(RAMP, bits)
            table = np.stack([np.linspace(a, b, 2**bits) for a, b in ((0, 1), (1, 0.5), (0.3, 0.6))])
            content = tiff(index, bits, PALETTE, order, more=[(COLOUR_MAP, codes(table, 16).ravel().tolist())])
            yield f"tiff-{mark}-palette-{bits}", content, table.T[index]
        lab = np.stack([codes(RAMP, 8), np.zeros((4, 8)), np.zeros((4, 8))], axis=-1).astype(int)
        yield f"tiff-{mark}-lab", tiff(lab, 8, LAB, order), of_lightness(RAMP)
        yield f"tiff-{mark}-lab-planes", tiff(lab, 8, LAB, order, planes=True), "separate planes"
        grey = np.stack([codes(RAMP, 8), np.full((4, 8), 128), np.full((4, 8), 128)], axis=-1)
        whole, halved = (SUBSAMPLING, [1, 1]), (SUBSAMPLING, [2, 2])
        refused = "YCbCr colours without compression"
        yield f"tiff-{mark}-ycbcr", tiff(grey, 8, YCBCR, order, more=[whole]), shown(RAMP, 8)
        yield f"tiff-{mark}-ycbcr-halved", tiff(grey, 8, YCBCR, order, more=[halved]), refused
        yield f"tiff-{mark}-ycbcr-planes", tiff(grey, 8, YCBCR, order, planes=True), "separate planes"


def of_lightness(lightness: np.ndarray) -> np.ndarray:
    """sRGB's grey of Lab's L, both in 0 to 1."""
    light = np.where(lightness > 0.08, ((lightness * 100 + 16) / 116) ** 3, lightness * 100 / 903.3)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def others() -> Iterator[Kind]:
    for white in (1, 100, 255, 1023, 65535):
        grey = np.round(RAMP * white).astype(">u2" if white > 255 else "u1")
        yield f"pgm-{white}", b"P5 8 4 %d\n" % white + grey.tobytes(), grey / white
        colours = np.round(COLOURS * white).astype(">u2" if white > 255 else "u1")
        yield f"ppm-{white}", b"P6 8 4 %d\n" % white + colours.tobytes(), colours / white
    dark = np.round(RAMP * 200).astype(">u2")
    yield "pgm-65535-dark", b"P5 8 4 65535\n" + dark.tobytes(), dark / 65535
    yield "pfm", b"Pf\n8 4\n-1.0\n" + RAMP[::-1].astype("<f4").tobytes(), RAMP
    yield "fits", fits(), r"contains measurements \(FITS\)"
    yield "psd-1", psd(1, 0, np.packbits(codes(RAMP, 1).astype(np.uint8) ^ 1, axis=1).tobytes(), 1), shown(RAMP, 1)
    yield "psd-rgb", psd(8, 3, codes(np.moveaxis(COLOURS, 2, 0), 8).astype(np.uint8).tobytes(), 3), COLOURS


def fits() -> bytes:
    cards = ["SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2"]
    cards += ["NAXIS1  =                    8", "NAXIS2  =                    4", "END"]
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(2880)


def psd(bits: int, mode: int, pixels: bytes, channels: int) -> bytes:
    return struct.pack(">4sH6xHIIHH", b"8BPS", 1, channels, 4, 8, bits, mode) + bytes(12) + b"\0\0" + pixels


KINDS = [*pngs(), *grey_tiffs(), *colour_tiffs(), *others()]


def tolerance(name: str) -> float:
    """Levels: one; where colours and alpha were both rounded before they are blended, one more for either."""
    return 2.2 if "premultiplied" in name else 1.6 if name.endswith(("-16-alpha", "-alpha-16")) else 1.01


@pytest.mark.parametrize(("name", "content", "expected"), KINDS, ids=[kind[0] for kind in KINDS])
def test_a_picture_is_right_within_one_level_or_refused(name: str, content: bytes, expected: np.ndarray | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(PictureError, match=expected):
            open_picture(content)
        return
    expected = expected if expected.ndim == 3 else expected[..., None]
    assert np.abs(np.asarray(open_picture(content), float) - 255 * expected).max() <= tolerance(name)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "La", "RGBa"]
)
def test_every_mode_of_pillow_shows_its_colours(mode: str) -> None:
    """White, black and a grey, which every mode has."""
    picture = Image.fromarray(np.uint8([[255, 0, 255 if mode == "1" else 119]]))
    if mode in ("La", "RGBa"):
        picture = picture.convert(mode.replace("a", "A"))
    if mode in ("LAB", "HSV", "YCbCr"):
        picture = picture.convert("RGB")
    made = np.asarray(open_picture(picture.convert("P").convert("PA") if mode == "PA" else picture.convert(mode)))
    assert np.abs(made[0].astype(int) - np.asarray(picture.convert("L"))[0][:, None]).max() <= 1


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("JPEG2000", "RGBA"), ("WEBP", "RGBA")])
@pytest.mark.parametrize("kind_of_alpha", [255, 0])
def test_formats_with_losses_show_about_the_colours_given(kind: str, mode: str, kind_of_alpha: int) -> None:
    picture = Image.new("RGBA", (16, 16), (180, 90, 90, kind_of_alpha)).convert("RGB" if mode == "CMYK" else mode)
    stream = io.BytesIO()
    picture.convert(mode).save(stream, kind)
    expected = Image.new("RGB", (1, 1), "white") if kind_of_alpha == 0 and mode == "RGBA" else picture.convert("RGB")
    made = np.subtract(open_picture(stream.getvalue()).getpixel((8, 8)), expected.getpixel((0, 0)))
    assert np.abs(made).max() <= 3


def test_white_is_zero_frees_the_right_half_of_a_mask() -> None:
    half = np.zeros((8, 8), int)
    half[:, :4] = 65535
    for photometric in (BLACK, WHITE):
        mask = tiff(half, 16, photometric)
        white = read_mask(mask, (8, 8), 8)
        assert white[:, :4].all() == (photometric == BLACK) and white[:, 4:].all() == (photometric == WHITE)


def test_what_is_transparent_is_black_in_masks() -> None:
    grey = np.full((4, 8), 3)
    assert np.asarray(open_grey(png(grey, 2, GREY, [3]))).max() == 0
    assert np.asarray(open_grey(png(grey * 257, 16, GREY, [3 * 257]))).max() == 0


# Turned by EXIF's tag.

CORNERS = np.uint8([[0, 85], [170, 255], [255, 255]])
TURNED = {
    1: CORNERS, 2: CORNERS[:, ::-1], 3: CORNERS[::-1, ::-1], 4: CORNERS[::-1], 5: CORNERS.T,
    6: np.rot90(CORNERS, -1), 7: np.rot90(CORNERS, 2).T, 8: np.rot90(CORNERS),
}  # fmt: skip


def turned(orientation: int, kind: str, more: tuple[int, int, int] | None = None) -> bytes:
    """`CORNERS` with an orientation, and perhaps one more tag of a type and count."""
    stream = io.BytesIO()
    options = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = files.exif(orientation, *more) if more else files.exif(orientation)
    Image.fromarray(CORNERS).convert("RGB").save(stream, kind, exif=data, **options)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_turned_upright(kind: str, orientation: int) -> None:
    if kind == "TIFF":
        stream = io.BytesIO()
        Image.fromarray(CORNERS).save(stream, kind, tiffinfo={0x0112: orientation})
        content = stream.getvalue()
    else:
        content = turned(orientation, kind)
    made = np.asarray(open_picture(content))[..., 0].astype(int)
    assert made.shape == TURNED[orientation].shape and np.abs(made - TURNED[orientation]).max() <= 3


def test_no_other_tag_of_any_type_keeps_a_picture_from_being_turned() -> None:
    """Pillow cannot write 641 of such back into EXIF; nothing has to be written."""
    tags = [0x010E, 0x011A, 0x0132, 0x8298, 0x8769, 0x8825, 0x9000, 0x927C, 0xA005, 0xC4A5]
    for tag in tags:
        for kind in range(15):
            for count in (0, 1, 2, 2**31):
                content = turned(6, "JPEG", (tag, kind, count))
                assert open_picture(content).size == (3, 2), (tag, kind, count)


@pytest.mark.parametrize("content", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0rubbish", b"rubbish" * 9])
def test_damaged_exif_leaves_the_picture_as_it_lies(content: bytes) -> None:
    stream = io.BytesIO()
    Image.fromarray(CORNERS).save(stream, "JPEG", exif=content)
    assert open_picture(stream.getvalue()).size == (2, 3)


def test_a_picture_is_turned_once() -> None:
    once = open_picture(turned(6, "JPEG"))
    assert open_picture(once).size == once.size == (3, 2)
