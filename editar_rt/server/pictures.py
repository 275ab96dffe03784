"""Pictures that came in a request, read within its limits, and results as files. Nothing touches the disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from editar_rt.errors import PictureError
from editar_rt.images.masks import THRESHOLD
from editar_rt.images.orientation import turn_of
from editar_rt.images.pixels import open_grey, open_picture
from editar_rt.images.writing import LOSSY, picture_bytes
from editar_rt.server.errors import ApiError, bad

FORMATS = ("PNG", "JPEG", "WEBP")
READS = 100_000  # of a file; a picture of 20 MiB takes fewer, unless it is made of millions of empty segments
DECODE_SECONDS = 10.0  # of the CPU, for one picture
JPEG_READ = 4 << 10  # so that the clock is looked at between scans: a progressive JPEG may have thousands


class _Watched:
    """A picture's file, which gives up if the decoder asks for too much of it."""

    def __init__(self, file: BinaryIO, what: str) -> None:
        self._file, self._what, self._left = file, what, READS
        self._until = time.thread_time() + DECODE_SECONDS
        self.block = 0
        """The size in which a decoder reads, of which it gets less; 0 leaves it alone."""

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0 or time.thread_time() > self._until:
            raise PictureError(f"the {self._what} takes too long to read; save it again with an image editor")
        return self._file.read(JPEG_READ if size == self.block > 0 else size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def _opened(file: BinaryIO, what: str, max_pixels: int) -> Iterator[Image.Image]:
    """Open a picture; its size is compared with the limit before anything is decoded."""
    try:
        watched = _Watched(file, what)
        with Image.open(cast(BinaryIO, watched), formats=FORMATS) as image:
            if image.format in ("JPEG", "MPO"):
                watched.block = ImageFile.MAXBLOCK
            width, height = image.size
            if width * height > max_pixels:
                raise bad(
                    f"the {what} has {width}×{height} pixels; at most {max_pixels / 1e6:g} million are read, "
                    "make it smaller",
                    what,
                )
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise bad(f"the {what} has more than {max_pixels / 1e6:g} million pixels; make it smaller", what) from None
    except UnidentifiedImageError:
        raise bad(f"the {what} is not a PNG, JPEG or WebP picture", what) from None
    except PictureError as error:
        raise bad(str(error), what) from None
    except ApiError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise bad(f"the {what} cannot be read ({str(error)[:120]})", what) from None


def read_image(file: BinaryIO, max_pixels: int) -> Image.Image:
    """The picture to edit, upright RGB.

    Raises:
        ApiError: it is no picture, too large or damaged.
    """
    with _opened(file, "image", max_pixels) as image:
        return open_picture(image)


def read_mask(file: BinaryIO, max_pixels: int) -> NDArray[np.bool_]:
    """A mask, bool [H, W], true where the picture may change.

    With an alpha channel it is OpenAI's: transparent pixels may change. Without one, white pixels may.

    Raises:
        ApiError: as `read_image`, or no pixel of an alpha channel is transparent.
    """
    with _opened(file, "mask", max_pixels) as image:
        if not image.has_transparency_data:
            return np.asarray(open_grey(image)) >= THRESHOLD
        turn = turn_of(image)
        alpha = image.convert("RGBA").getchannel("A")
        opaque = np.asarray(alpha if turn is None else alpha.transpose(turn)) >= THRESHOLD
    if opaque.all():
        raise bad(
            "the mask has an alpha channel in which nothing is transparent: with an alpha channel, transparent pixels "
            "may change; to mark pixels by white, send a mask without an alpha channel",
            "mask",
        )
    return np.asarray(~opaque)


def encode(image: Image.Image, output_format: str, quality: int | None, parameters: dict[str, str]) -> bytes:
    """A result as a file, with its metadata."""
    name = output_format.upper()
    return picture_bytes(image, name, parameters, quality if name in LOSSY else None)
