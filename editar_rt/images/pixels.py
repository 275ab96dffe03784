"""Pictures to float32 arrays and back.

Pictures come from strangers: their size is read from the header and bounded before anything is decoded.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from editar_rt.errors import PictureError

MAX_PIXELS = 64_000_000
"""Larger pictures are refused; decoded they would take hundreds of megabytes for a result of a fraction of that."""

VECTOR_FORMATS = ("EPS", "WMF")
"""Pillow hands these to other programs of the system; files from strangers are not passed on to those."""

Pixels = NDArray[np.float32]  # [B, 3, H, W] in [-1, 1]
Picture = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]


def open_picture(picture: Picture) -> Image.Image:
    """Any picture as upright 8-bit RGB.

    Transparency is blended on white, 16-bit grey is scaled, palettes are looked up, EXIF rotation is applied.

    Args:
        picture: a path, a PIL image, or a uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].

    Raises:
        PictureError: the file is missing, truncated or no picture, or has more than `MAX_PIXELS` pixels.
    """
    return _open(picture, _rgb)


def open_grey(picture: Picture) -> Image.Image:
    """Any picture as upright 8-bit grey, transparency blended on black; arrays and errors as `open_picture`."""
    return _open(picture, _grey)


def _open(picture: Picture, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    if isinstance(picture, np.ndarray):
        return convert(_from_array(picture))
    if not isinstance(picture, str | os.PathLike | Image.Image):
        raise PictureError(f"a picture is a path, a PIL image or a uint8 array, got {type(picture).__name__}")
    path = "the picture" if isinstance(picture, Image.Image) else str(Path(picture))
    try:
        with warnings.catch_warnings():
            # Its warnings are about size, which our lower bound refuses, and about metadata, which is not used.
            warnings.simplefilter("ignore")
            if isinstance(picture, Image.Image):
                _check_size(picture, path)
                return convert(picture)  # may only now read its file
            with Image.open(path) as image:
                if image.format in VECTOR_FORMATS:
                    raise PictureError(f"{path} is a drawing ({image.format}), not a picture; save it as a PNG first")
                _check_size(image, path)
                return convert(image)
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(f"there is no picture {path}") from None
    except IsADirectoryError:
        raise PictureError(f"{path} is a folder, not a picture") from None
    except UnidentifiedImageError:
        raise PictureError(f"{path} is not a picture in a format that can be read (PNG, JPEG, WebP, …)") from None
    except Image.DecompressionBombError:
        raise PictureError(f"{path} has more than {MAX_PIXELS / 1e6:.0f} million pixels; make it smaller") from None
    except Exception as e:  # Pillow's decoders raise many kinds on damaged files: OSError, SyntaxError, struct.error, …
        if isinstance(e, OSError) and e.strerror:
            raise PictureError(f"{path} cannot be read: {e.strerror}") from None
        raise PictureError(f"{path} cannot be read ({e}); is it truncated?") from None


def _check_size(image: Image.Image, what: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"{what} has {width}×{height} pixels; at most {MAX_PIXELS / 1e6:.0f} million are read, make it smaller"
        )
    if width == 0 or height == 0:
        raise PictureError(f"{what} is empty ({width}×{height} pixels)")


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise PictureError(f"a picture array must be uint8 [H, W, 3], got {array.dtype} {list(array.shape)}")
    if array.size == 0 or array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise PictureError(f"a picture array must have 1 to {MAX_PIXELS / 1e6:.0f} million pixels, got {array.shape}")
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _rgb(image: Image.Image) -> Image.Image:
    return _on(image, "white").convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    return _on(image, "black").convert("L")


def _on(image: Image.Image, ground: str) -> Image.Image:
    """Upright, of a mode that Pillow converts, and without transparency."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_deep_to_8_bits(image))
    elif image.mode == "La":  # Pillow converts grey with premultiplied alpha to its plain form alone
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, ground), image).convert("RGB")
    return image


def _deep_to_8_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Grey of 16 or 32 bits, whole or floating, to 0 … 255.

    Only mode I;16 says how large its values may be; 32-bit ones hold anything, so they are taken as 16-bit if any
    is above 255, as 8-bit values stored wide if not, and floats of at most 1 as shares of full white.
    """
    values = np.nan_to_num(np.asarray(image, np.float32), nan=0.0)
    largest = values.max(initial=0)
    if image.mode.startswith("I;16") or largest > 255:
        values = values / np.float32(257)  # 65535 = 257 · 255
    elif image.mode == "F" and largest <= 1:
        values = values * np.float32(255)
    return (np.clip(values, 0, 255) + np.float32(0.5)).astype(np.uint8)


def fitted_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height with the shorter side resized to `side`, aspect kept."""
    scale = side / min(size)
    return max(side, round(size[0] * scale)), max(side, round(size[1] * scale))


def fit_square(image: Image.Image, side: int) -> Image.Image:
    """The shorter side resized to `side` (Lanczos, aspect kept), the centre square cut out."""
    width, height = image.size
    size = fitted_size(image.size, side)
    if size != image.size:
        # Only the middle of a very long picture is needed; the box keeps the resized one from growing without bound.
        crop = min(width, height) / 2
        box = (width / 2 - crop, height / 2 - crop, width / 2 + crop, height / 2 + crop)
        if max(size) > 8 * side:
            return image.resize((side, side), Image.Resampling.LANCZOS, box=box)
        image = image.resize(size, Image.Resampling.LANCZOS)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def to_pixels(pictures: NDArray[np.uint8]) -> Pixels:
    """uint8 [B, H, W, 3] → float32 [B, 3, H, W] in [-1, 1]."""
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32) / np.float32(127.5) - np.float32(1)


def to_pictures(pixels: Pixels) -> NDArray[np.uint8]:
    """float32 [B, 3, H, W] → uint8 [B, H, W, 3]; values outside [-1, 1] are clipped."""
    scaled = (np.clip(pixels, -1, 1) + np.float32(1)) * np.float32(127.5) + np.float32(0.5)
    return scaled.astype(np.uint8).transpose(0, 2, 3, 1)


def read_pixels(picture: Picture, side: int) -> Pixels:
    """Any picture → the model's input, float32 [1, 3, side, side] in [-1, 1]."""
    return to_pixels(np.asarray(fit_square(open_picture(picture), side))[None])
