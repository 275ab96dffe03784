"""Splits a picture of any of Pillow's modes into colours and transparency, with the correct white.

Pillow's own conversions clip grey of more than 8 bits, compare transparent values with values other than the file's,
and leave some TIFFs inverted. Here colours and transparency are correct within 1/255, and pictures that Pillow would
read incorrectly are rejected. Pillow reads the upper 8 bits of colours with 16 bits per channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from editar_rt.errors import PictureError

BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT, SUBSAMPLING = 258, 259, 262, 284, 339, 530  # of TIFF
WHITE_IS_ZERO, TIFF_RGB, TIFF_CMYK, TIFF_YCBCR = 0, 2, 5, 6
SIGNED = 2  # sample format

_SPACES = {"1": "L", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB", "RGBX": "RGB"}
_WITH_ALPHA = {"LA": "L", "RGBA": "RGB"}
_PLAIN = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}  # modes with transparency that need another conversion first


@dataclass(frozen=True)
class Planes:
    """A picture's decoded pixels, in the orientation of the file."""

    colors: Image.Image | NDArray[np.float32]
    """An image of mode L, RGB or CMYK; grey of more than 8 bits as float32 [H, W] from 0 to 255."""
    alpha: Image.Image | None
    """Mode L, 255 is opaque; None if all pixels are."""


def read_planes(image: Image.Image, name: str) -> Planes:
    """Decode a picture. If it was decoded before, the information that Pillow kept of its file is used.

    Raises:
        PictureError: its format does not define which value is white, or Pillow reads it incorrectly.
    """
    raw = _raw_mode(image)
    _refuse_unreadable(image, name)
    white, inverted = _white(image, name), _left_inverted(image, raw)
    image.load()
    if image.mode in _PLAIN:
        image = image.convert(_PLAIN[image.mode])
    if image.mode in _WITH_ALPHA:
        return Planes(image.convert(_WITH_ALPHA[image.mode]), image.getchannel("A"))
    if image.mode == "P":
        return _looked_up(image)
    alpha = _keyed_alpha(image, _key_step(image, raw))
    if image.mode.startswith("I") or image.mode == "F":
        return Planes(_deep_grey(image, white, inverted), alpha)
    colors = image.convert(_SPACES.get(image.mode, image.mode))
    return Planes(colors.point(lambda value: 255 - value) if inverted else colors, alpha)


def _looked_up(image: Image.Image) -> Planes:
    """The colours of a picture with a palette."""
    if image.has_transparency_data:
        both = image.convert("RGBA")
        return Planes(both.convert("RGB"), both.getchannel("A"))
    return Planes(image.convert("RGB"), None)


# Transparency given as one value or colour.


def _keyed_alpha(image: Image.Image, step: int) -> Image.Image | None:
    """The alpha of a picture of mode 1, L, I;16, I or RGB in which one value means transparent."""
    key: Any = image.info.get("transparency")
    if isinstance(key, int) and not image.mode.startswith("RGB"):
        values = np.asarray(image)
        match = values == bool(key) if image.mode == "1" else values == key * step
    elif isinstance(key, tuple) and len(key) == 3 and image.mode == "RGB":
        match = (np.asarray(image) == np.array(key)).all(axis=-1)
    else:
        return None
    return Image.fromarray(np.where(match, np.uint8(0), np.uint8(255)))


def _key_step(image: Image.Image, raw: str) -> int:
    """The factor by which Pillow multiplies grey of 2 or 4 bits, but not the transparent value."""
    return {"L;2": 85, "L;4": 17}.get(raw, 1) if image.format == "PNG" else 1


# White.


def _white(image: Image.Image, name: str) -> float | None:
    """The value of white in grey of more than 8 bits; None if it must be guessed from the values.

    Raises:
        PictureError: the format does not define which value is white.
    """
    if image.mode.startswith("I;16"):
        return float(2 ** _bits(image) - 1) if image.format == "TIFF" else 65535.0
    if image.mode == "I" and image.format == "TIFF":
        return float(2 ** _bits(image) - 1)
    if image.mode == "I" and image.format is not None:
        if image.format not in ("PNG", "PPM"):
            raise PictureError(
                f"{name} has 32-bit integers, for which {image.format} does not define white; save it as a PNG first"
            )
        return 65535.0
    return None


def _deep_grey(image: Image.Image, white: float | None, inverted: bool) -> NDArray[np.float32]:
    """Grey of more than 8 bits, [H, W] from 0 to 255.

    If the value of white is not known, it is 65535 if any value is above 255, 1 for floats of at most 1, and 255
    otherwise.
    """
    values = np.asarray(image)
    if white == 2**32 - 1:
        values = values.view(np.uint32)  # Pillow has no unsigned mode for it
    values = np.nan_to_num(values.astype(np.float32), nan=0.0)
    if white is None:
        largest = values.max(initial=0)
        white = 65535.0 if largest > 255 else 1.0 if image.mode == "F" and largest <= 1 else 255.0
    values = np.clip(values * np.float32(255 / white), 0, 255)
    return 255 - values if inverted else values


# Pictures that Pillow reads incorrectly.


def _refuse_unreadable(image: Image.Image, name: str) -> None:
    """Reject pictures that Pillow would read incorrectly."""
    if image.format == "TIFF" and (wrong := _wrong_in_tiff(image)):
        raise PictureError(f"{name} has {wrong}; save it as a PNG, or as a plain TIFF of 8 bits")
    if image.format == "PNG" and _raw_mode(image) == "RGB;16B" and "transparency" in image.info:
        raise PictureError(
            f"{name} marks a colour of 16 bits per channel as transparent, but only 8 bits are read; "
            "save it with an alpha channel instead"
        )


def _wrong_in_tiff(image: Image.Image) -> str | None:
    tags, photometric = _tags(image), _photometric(image)
    bits = tags.get(BITS_PER_SAMPLE, (1,))
    if SIGNED in tags.get(SAMPLE_FORMAT, (1,)):
        return "signed numbers, for which TIFF does not define white"
    if tags.get(PLANAR, 1) == 2 and len(bits) > 1:
        if set(bits) != {8}:
            return f"separate planes of {max(bits)} bits"
        if photometric not in (TIFF_RGB, TIFF_CMYK):
            return "separate planes that are not RGB"
    # Pillow reads uncompressed YCbCr as if it were of full resolution; older versions read some of it as RGB.
    full = image.mode != "RGB" and tags.get(SUBSAMPLING, (2, 2)) == (1, 1)
    if photometric == TIFF_YCBCR and len(bits) > 1 and tags.get(COMPRESSION, 1) == 1 and not full:
        return "YCbCr colours without compression"
    if image.mode == "F" and photometric == WHITE_IS_ZERO:
        return "floating-point values with white at zero"
    return None


def _left_inverted(image: Image.Image, raw: str) -> bool:
    """Whether Pillow leaves black and white swapped."""
    if image.format == "TIFF":
        plain = image.mode.startswith("I") and "I" not in raw.partition(";")[2]
        return plain and _photometric(image) == WHITE_IS_ZERO
    return image.format == "PSD" and image.mode == "1" and not raw.endswith("I")


def _raw_mode(image: Image.Image) -> str:
    """The raw mode of the file in Pillow's terms; empty after decoding."""
    tiles: list[Any] = getattr(image, "tile", None) or []
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _tags(image: Image.Image) -> dict[int, Any]:
    """A TIFF's tags; bits and sample formats are always tuples."""
    return dict(getattr(image, "tag_v2", {}))


def _bits(image: Image.Image) -> int:
    return int(_tags(image).get(BITS_PER_SAMPLE, (1,))[0])


def _photometric(image: Image.Image) -> int:
    return int(_tags(image).get(PHOTOMETRIC, WHITE_IS_ZERO))
