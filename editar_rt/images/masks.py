"""Masks: the pixels that may change, the tokens to sample, and compositing the result into the picture.

White pixels may change. A mask is fitted to the model's square in the same way as its picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from editar_rt.arguments import as_integers
from editar_rt.errors import OptionError, PictureError
from editar_rt.images.fit import Bools, Fit, Placement
from editar_rt.images.pixels import MAX_PIXELS, Picture, open_grey, open_picture

Box = tuple[int, int, int, int]  # x, y, width, height in the picture's pixels
THRESHOLD = 128  # grey values from here on count as white


@dataclass(frozen=True, eq=False)
class FittedMask:
    """A mask that `read_mask` has read, for a picture that is fitted in the same way."""

    square: Bools
    """[side, side]"""


Mask = Picture | Bools | Box | FittedMask


def read_mask(mask: Mask, size: tuple[int, int], side: int, fit: Fit = "crop") -> Bools:
    """Read the mask of a picture of `size` (width, height) as bool [side, side], true where the square may change.

    A pixel of the square is true if it contains any white, so that fine strokes and single points are not lost.

    Args:
        mask: a picture in any size of the same aspect ratio, white where grey is at least 128 and opaque; an array of
            uint8 or bool [H, W]; a box (x, y, width, height) in the picture's pixels; or one that was read before.
        fit: how the picture is fitted to the square; see `Placement`.

    Raises:
        PictureError: the mask cannot be read, or its aspect ratio differs from the picture's.
        OptionError: the box does not lie in the picture.
    """
    if isinstance(mask, FittedMask):
        return mask.square
    if isinstance(mask, tuple):
        mask = box_mask(mask, size)
    if isinstance(mask, np.ndarray) and mask.dtype == bool:
        mask = np.where(mask, np.uint8(255), np.uint8(0))
    grey = open_grey(cast(Picture, mask))
    scale = max(grey.width / size[0], grey.height / size[1])
    if abs(grey.width - size[0] * scale) > 1 or abs(grey.height - size[1] * scale) > 1:
        raise PictureError(
            f"the mask has {grey.width}×{grey.height} pixels and the picture {size[0]}×{size[1]}: "
            "a mask may have any size, but must have the picture's aspect ratio"
        )
    return Placement(size, side, fit).fit_mask(np.asarray(grey) >= THRESHOLD)


def box_mask(box: Box, size: tuple[int, int]) -> Bools:
    """The mask of a box, bool [H, W].

    Raises:
        OptionError: the box is empty or does not lie in the picture.
    """
    x, y, width, height = as_integers("a box", box, 4)
    if min(x, y) < 0 or min(width, height) < 1 or x + width > size[0] or y + height > size[1]:
        raise OptionError(
            f"the box {x},{y},{width},{height} (x, y, width, height) must lie in the picture, "
            f"which has {size[0]}×{size[1]} pixels"
        )
    mask = np.zeros((size[1], size[0]), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def outpainted(picture: Picture, margins: tuple[int, int, int, int]) -> tuple[Image.Image, Bools]:
    """Extend a picture to a larger square. Returns the square and the mask of the added pixels.

    The added pixels repeat the picture's border; the model sees them there before it replaces them.

    Args:
        margins: pixels to add at the left, top, right and bottom, 0 or more. If the result is not square, it is
            extended equally on both of its long sides, so zeros turn any picture into a square.

    Raises:
        OptionError: a margin is negative, or there is nothing to add.
        PictureError: the picture cannot be read, or the square is too large.
    """
    image = open_picture(picture)
    left, top, right, bottom = margins = as_integers("the margins", margins, 4)  # type: ignore[assignment]
    if min(margins) < 0:
        raise OptionError(f"the margins must be 0 or more, got {','.join(map(str, margins))}")
    width, height = left + image.width + right, top + image.height + bottom
    side = max(width, height)
    left, top = left + (side - width) // 2, top + (side - height) // 2
    if image.size == (side, side):
        raise OptionError("there is nothing to add to a square picture with margins of 0; give a larger margin")
    if side * side > MAX_PIXELS:
        raise PictureError(
            f"with its margins the picture would have {side}×{side} pixels; "
            f"at most {MAX_PIXELS / 1e6:.0f} million are read"
        )
    around = ((top, side - top - image.height), (left, side - left - image.width))
    mask = np.pad(np.zeros((image.height, image.width), bool), around, constant_values=True)
    return Image.fromarray(np.pad(np.asarray(image), (*around, (0, 0)), mode="edge")), mask


def touched_cells(mask: Bools, grid: int) -> Bools:
    """The cells (tokens) that a mask [H, W] touches, bool [grid, grid]; H and W are multiples of grid."""
    height, width = mask.shape
    return np.asarray(mask.reshape(grid, height // grid, grid, width // grid).any(axis=(1, 3)))


def dilate(cells: Bools, margin: int) -> Bools:
    """Cells [H, W] and all cells within `margin` of them, including diagonals."""
    for axis in (0, 1):
        grown = cells.copy()
        for step in range(1, min(margin, cells.shape[axis] - 1) + 1):
            before, after = [slice(None)] * 2, [slice(None)] * 2
            before[axis], after[axis] = slice(None, -step), slice(step, None)
            grown[tuple(after)] |= cells[tuple(before)]
            grown[tuple(before)] |= cells[tuple(after)]
        cells = grown
    return cells


def feather(mask: Bools, grid: int) -> NDArray[np.float32]:
    """Weight of the edited picture in each pixel, float32 [H, W]: 0 outside the mask, rising to 1 inside.

    It rises over a quarter of a token's cell from the mask's edge, or faster where the mask is narrow, so that a fine
    stroke still takes effect. The picture's border is not an edge of the mask.
    """
    width = len(mask) // grid // 4
    layer = Image.fromarray(mask.astype(np.uint8))
    depth = np.asarray(layer, np.uint8)  # pixels from the edge, up to width + 1
    for _ in range(width):
        layer = layer.filter(ImageFilter.MinFilter(3))
        depth = depth + np.asarray(layer)
    deepest = np.asarray(Image.fromarray(depth).filter(ImageFilter.MaxFilter(2 * width + 1)), np.float32)
    return np.asarray(np.where(mask, depth / np.maximum(deepest, 1), 0), np.float32)


def composite(edited: NDArray[np.uint8], source: NDArray[np.uint8], share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Blend edited pictures [..., H, W, 3] into their source by weights `share` [H, W]; 0 keeps the source exactly."""
    mixed = source + share[..., None] * (edited.astype(np.float32) - source)
    return (mixed + np.float32(0.5)).astype(np.uint8)
