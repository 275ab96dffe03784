"""Masks: which pixels may change, the tokens that follow from them, and putting the result back into the picture.

White may change. A mask belongs to a picture and is fitted to the model's square as that is.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from editar_rt.arguments import as_integers
from editar_rt.errors import OptionError, PictureError
from editar_rt.images.fit import Bools, Fit, Placement
from editar_rt.images.pixels import MAX_PIXELS, Picture, open_grey, open_picture

Box = tuple[int, int, int, int]  # x, y, width, height in the picture's pixels
Mask = Picture | Bools | Box
THRESHOLD = 128  # grey from here on is white


def read_mask(mask: Mask, size: tuple[int, int], side: int, fit: Fit = "crop") -> Bools:
    """A mask of a picture of `size` (width, height) pixels → bool [side, side], true where the square may change.

    A pixel of the square is true if any white lies in it, so that fine strokes and lone points are not lost.

    Args:
        mask: a picture in any size of the same aspect, grey from 128 on and not transparent being white; an array of
            uint8 or bool [H, W]; or a box (x, y, width, height) in the picture's pixels.
        fit: how the picture was fitted to the square: see `Placement`.

    Raises:
        PictureError: unreadable, or of another aspect.
        OptionError: a box that does not lie in the picture.
    """
    if isinstance(mask, tuple):
        mask = box_mask(mask, size)
    if isinstance(mask, np.ndarray) and mask.dtype == bool:
        mask = np.where(mask, np.uint8(255), np.uint8(0))
    grey = open_grey(cast(Picture, mask))
    scale = max(grey.width / size[0], grey.height / size[1])
    if abs(grey.width - size[0] * scale) > 1 or abs(grey.height - size[1] * scale) > 1:
        raise PictureError(
            f"the mask has {grey.width}×{grey.height} pixels and the picture {size[0]}×{size[1]}: "
            "a mask may have any size, but must have the picture's aspect"
        )
    return Placement(size, side, fit).fit_mask(np.asarray(grey) >= THRESHOLD)


def box_mask(box: Box, size: tuple[int, int]) -> Bools:
    """A box as a mask of its picture, bool [H, W].

    Raises:
        OptionError: an empty box, or one that does not lie in the picture.
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
    """A picture on a larger square, and the mask of what was added.

    The border continues the picture's edge; it is what the model sees there before it paints it.

    Args:
        margins: pixels to add at the left, top, right and bottom, 0 or more. What is then not square grows on both
            of its short sides, so that zeros make a square of a picture that is not one.

    Raises:
        OptionError: negative margins, or nothing to add.
        PictureError: the picture cannot be read, or the square is too large.
    """
    image = open_picture(picture)
    left, top, right, bottom = margins = as_integers("the margins", margins, 4)  # type: ignore[assignment]
    if min(margins) < 0:
        raise OptionError(f"the margins to paint must be 0 or more, got {','.join(map(str, margins))}")
    width, height = left + image.width + right, top + image.height + bottom
    side = max(width, height)
    left, top = left + (side - width) // 2, top + (side - height) // 2
    if image.size == (side, side):
        raise OptionError("there is nothing to paint around a square picture with margins of 0; give some pixels")
    if side * side > MAX_PIXELS:
        raise PictureError(
            f"with its margins the picture would have {side}×{side} pixels; "
            f"at most {MAX_PIXELS / 1e6:.0f} million are read"
        )
    around = ((top, side - top - image.height), (left, side - left - image.width))
    mask = np.pad(np.zeros((image.height, image.width), bool), around, constant_values=True)
    return Image.fromarray(np.pad(np.asarray(image), (*around, (0, 0)), mode="edge")), mask


def touched_cells(mask: Bools, grid: int) -> Bools:
    """The tokens that a mask [H, W] touches, bool [grid, grid]; H and W are multiples of grid."""
    height, width = mask.shape
    return np.asarray(mask.reshape(grid, height // grid, grid, width // grid).any(axis=(1, 3)))


def dilate(cells: Bools, margin: int) -> Bools:
    """Cells [H, W] and all within `margin` cells of them, diagonals too."""
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
    """How much of the edited picture each pixel takes, float32 [H, W]: 0 outside the mask, rising to 1 inside it.

    It rises over a quarter of a token's cell from the mask's edge, and sooner where the mask is too narrow for that,
    so that a fine stroke takes effect too; the picture's own edge is no edge of the mask.
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
    """Edited pictures [..., H, W, 3] put into their source by `share` [H, W]; where that is 0 the source, exactly."""
    mixed = source + share[..., None] * (edited.astype(np.float32) - source)
    return (mixed + np.float32(0.5)).astype(np.uint8)
