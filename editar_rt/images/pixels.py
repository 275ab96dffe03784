"""Converts pictures to float32 arrays and back.

Pictures are untrusted: their size is read from the header and checked before anything is decoded.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from editar_rt.errors import EditarWarning, PictureError
from editar_rt.images.color import to_srgb
from editar_rt.images.fit import fit_square
from editar_rt.images.modes import read_planes
from editar_rt.images.orientation import turn_of

MAX_PIXELS = 64_000_000
"""Larger pictures are rejected: decoding them would take hundreds of megabytes for a much smaller result."""

MAX_SIDE = 65_535
"""Longer pictures are rejected, as JPEG does: resizing a line of millions of pixels would take gigabytes."""

MAX_BYTES = 1 << 30
"""Limit for file objects and pipes: twice the size of `MAX_PIXELS` in the widest format."""

VECTOR_FORMATS = ("EPS", "WMF")
"""Pillow passes these to other programs, which must not receive untrusted files."""

DATA_FORMATS = ("BUFR", "FITS", "GRIB", "HDF5", "MCIDAS", "SPIDER")
"""These contain measurements, in which no value means white."""

Pixels = NDArray[np.float32]  # [B, 3, H, W] in [-1, 1]
Picture = str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | NDArray[np.uint8]


def open_picture(picture: Picture) -> Image.Image:
    """Read any picture as upright 8-bit RGB in sRGB.

    The ICC profile is applied, transparency is blended with white, grey of more than 8 bits is scaled, palettes are
    looked up, and EXIF's orientation is applied. The returned image has no metadata.

    Args:
        picture: a path, a file's bytes, a binary file object (read from its position to its end, and left open), a
            PIL image, or a uint8 array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].

    Raises:
        PictureError: the file is missing, truncated or not a picture, has more than `MAX_PIXELS` pixels, or is of a
            kind that cannot be read correctly.

    Warns:
        ColorProfileWarning: the ICC profile cannot be used; the colours are taken as sRGB.
    """
    return _open(picture, "white").convert("RGB")


def open_grey(picture: Picture) -> Image.Image:
    """Read any picture as upright 8-bit grey, with transparency blended with black; otherwise as `open_picture`."""
    return _open(picture, "black").convert("L")


def _open(picture: Picture, ground: str) -> Image.Image:
    if isinstance(picture, np.ndarray):
        return _decoded(_from_array(picture), "the picture", ground)
    if isinstance(picture, Image.Image):
        with _sentences(name := "the picture"):
            return _decoded(picture, name, ground)
    name, source = _source(picture)
    with _sentences(name), Image.open(source) as image:
        return _decoded(image, name, ground)


def _source(picture: Any) -> tuple[str, str | io.BytesIO]:
    """The name of a picture for messages, and the source for Pillow to open."""
    if isinstance(picture, str | os.PathLike):
        name = str(Path(picture))
        with _sentences(name):
            if not Path(name).exists() or Path(name).is_dir() or Path(name).is_file():
                return name, name
            with open(name, "rb") as stream:  # a pipe, in which Pillow cannot seek
                return name, _whole(stream, name)
    if isinstance(picture, bytes | bytearray | memoryview):
        return "the picture", io.BytesIO(picture)
    if hasattr(picture, "read"):
        label = getattr(picture, "name", None)
        name = label if isinstance(label, str) else "the picture"
        with _sentences(name):
            return name, _whole(picture, name)
    raise PictureError(
        f"a picture must be a path, bytes, a binary file, a PIL image or a uint8 array, got {type(picture).__name__}"
    )


def _whole(stream: IO[bytes], name: str) -> io.BytesIO:
    """The rest of a file object's content."""
    content = stream.read(MAX_BYTES + 1)
    if not isinstance(content, bytes):
        raise PictureError(f"{name} is open in text mode; open a picture's file in mode 'rb'")
    if len(content) > MAX_BYTES:
        raise PictureError(f"{name} has more than {MAX_BYTES >> 20} MB; at most that much is read")
    return io.BytesIO(content)


@contextlib.contextmanager
def _sentences(path: str) -> Iterator[None]:
    """Convert every error while a picture is read to a PictureError."""
    try:
        yield
    except (PictureError, EditarWarning):  # the latter if warnings are errors
        raise
    except FileNotFoundError:
        raise PictureError(f"there is no picture {path}") from None
    except IsADirectoryError:
        raise PictureError(f"{path} is a folder, not a picture") from None
    except UnidentifiedImageError:
        raise PictureError(f"{path} is not a picture in a format that can be read (PNG, JPEG, WebP, …)") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the latter where warnings are errors
        raise PictureError(f"{path} has more than {MAX_PIXELS / 1e6:.0f} million pixels; make it smaller") from None
    except Exception as e:  # Pillow's decoders raise many kinds on damaged files: OSError, SyntaxError, struct.error, …
        if isinstance(e, OSError) and e.strerror:
            raise PictureError(f"{path} cannot be read: {e.strerror}") from None
        raise PictureError(f"{path} cannot be read ({e}); is it truncated?") from None


def _decoded(image: Image.Image, name: str, ground: str) -> Image.Image:
    """Decode to mode L or RGB, upright and in sRGB, with transparency blended with `ground`."""
    if image.format in VECTOR_FORMATS:
        raise PictureError(f"{name} is a drawing ({image.format}), not a picture; save it as a PNG first")
    if image.format in DATA_FORMATS:
        raise PictureError(f"{name} contains measurements ({image.format}), not a picture; save it as a PNG first")
    _check_size(image, name)
    planes = read_planes(image, name)
    profile = image.info.get("icc_profile", None) or (b"" if "icc_profile" in image.info else None)
    colors = to_srgb(planes.colors, profile, name)
    if planes.alpha is not None:
        colors = colors.convert("RGB")
        colors.putalpha(planes.alpha)
        colors = Image.alpha_composite(Image.new("RGBA", colors.size, ground), colors).convert("RGB")
    turn = turn_of(image)
    # Always a new image: not the caller's, and without metadata that could be applied a second time.
    upright = colors.copy() if turn is None else colors.transpose(turn)
    upright.info = {}
    return upright


def _check_size(image: Image.Image, what: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"{what} has {width}×{height} pixels; at most {MAX_PIXELS / 1e6:.0f} million are read, make it smaller"
        )
    if width == 0 or height == 0:
        raise PictureError(f"{what} is empty ({width}×{height} pixels)")
    if max(width, height) > MAX_SIDE:
        raise PictureError(f"{what} has {width}×{height} pixels; at most {MAX_SIDE} on a side are read, cut it")


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise PictureError(f"a picture array must be uint8 [H, W, 3], got {array.dtype} {list(array.shape)}")
    if array.size == 0 or array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise PictureError(f"a picture array must have 1 to {MAX_PIXELS / 1e6:.0f} million pixels, got {array.shape}")
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def to_pixels(pictures: NDArray[np.uint8]) -> Pixels:
    """uint8 [B, H, W, 3] → float32 [B, 3, H, W] in [-1, 1]."""
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32) / np.float32(127.5) - np.float32(1)


def to_pictures(pixels: Pixels) -> NDArray[np.uint8]:
    """float32 [B, 3, H, W] → uint8 [B, H, W, 3]; values outside [-1, 1] are clipped."""
    scaled = (np.clip(pixels, -1, 1) + np.float32(1)) * np.float32(127.5) + np.float32(0.5)
    return scaled.astype(np.uint8).transpose(0, 2, 3, 1)


def read_pixels(picture: Picture, side: int) -> Pixels:
    """Read any picture as the model's input, float32 [1, 3, side, side] in [-1, 1]."""
    return to_pixels(np.asarray(fit_square(open_picture(picture), side))[None])
