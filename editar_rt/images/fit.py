"""Fits pictures of any shape to the model's square, and pastes results back.

placement = Placement(picture.size, side=editor.image_size, how="pad")
square = placement.fit(picture)
...                                          # edit the square
whole = placement.restore(result, picture)   # at the picture's size
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from editar_rt.arguments import as_integer, as_integers, as_one_of
from editar_rt.errors import OptionError, PictureError

Bools = NDArray[np.bool_]
Size = tuple[int, int]  # width, height
Fit = Literal["crop", "pad", "stretch"]
FITS: tuple[Fit, ...] = get_args(Fit)

LONG = 8
"""Only the middle of pictures with a larger aspect ratio is resized."""
LANCZOS_SUPPORT = 3  # in pixels of the coarser side
SEAM = 1 / 16
"""Width of the blended seam when a cropped square is pasted back, as a share of the square's side."""


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in the model's square, and the conversion in both directions.

    `crop` takes the middle square; the model does not see the rest. `pad` shows the whole picture, scaled down and
    extended to a square by repeating its border. `stretch` distorts the whole picture to a square.

    Raises:
        OptionError: an unknown value of `how`, or a size below 1.
    """

    size: Size
    """Width and height of the picture, pixels."""
    side: int
    """Side of the square, pixels."""
    how: Fit = "crop"

    def __post_init__(self) -> None:
        as_one_of("fit", self.how, FITS)
        as_integer("side", self.side, 1)
        if min(as_integers("size", self.size, 2)) < 1:
            raise OptionError(f"size must be a width and a height of 1 or more, got {self.size}")

    @property
    def scaled(self) -> Size:
        """Width and height of the whole picture at the square's scale; larger than the square for `crop`."""
        if self.how == "crop":
            return fitted_size(self.size, self.side)
        if self.how == "stretch":
            return self.side, self.side
        scale = self.side / max(self.size)
        width, height = (max(1, round(length * scale)) for length in self.size)
        return width, height

    @property
    def offset(self) -> tuple[int, int]:
        """Position of the scaled picture's upper left corner in the square; negative if it is cut off there."""
        width, height = self.scaled
        return -((width - self.side) // 2), -((height - self.side) // 2)

    @property
    def covered(self) -> tuple[int, int, int, int]:
        """The part of the square that shows the picture: left, top, right, bottom."""
        (width, height), (left, top) = self.scaled, self.offset
        return max(left, 0), max(top, 0), min(left + width, self.side), min(top + height, self.side)

    def fit(self, picture: Image.Image) -> Image.Image:
        """Convert a picture of `size` to the model's square, [side, side], in the same mode.

        Raises:
            PictureError: a picture of another size.
        """
        self._check(picture)
        if self.how == "crop":
            return fit_square(picture, self.side)
        scaled = resize(picture, self.scaled)
        if self.how == "stretch":
            return scaled
        return _padded(scaled, self.covered, self.side)

    def fit_mask(self, white: Bools) -> Bools:
        """Convert a mask [H, W] of the picture, in any size of its aspect ratio, to a mask of the square, [side, side].

        A pixel is true if it contains any white, so that fine strokes and single points are not lost. Pixels outside
        the picture are false.
        """
        height, width = white.shape
        (across, down), (x, y) = self.scaled, self.offset
        left, top, right, bottom = self.covered
        columns = _spans(np.arange(left, right + 1) - x, width, across)
        rows = _spans(np.arange(top, bottom + 1) - y, height, down)
        square = np.zeros((self.side, self.side), bool)
        square[top:bottom, left:right] = _any_in(_any_in(white, rows, axis=0), columns, axis=1)
        return square

    def restore(
        self,
        square: Image.Image,
        original: Image.Image,
        feather: bool = True,
        share: NDArray[np.float32] | None = None,
    ) -> Image.Image:
        """Paste an edited square back into its picture, at the picture's size.

        Args:
            square: the result, [side, side] pixels RGB.
            original: the picture that the square was made of, RGB.
            feather: blend over a strip along the edges where `crop` cut; otherwise the edge is hard.
            share: weight of the result in each pixel of the square, [side, side] from 0 to 1, as returned by
                `masks.feather`; None means 1. Where it is 0, the original's pixels stay exactly, at full resolution.

        Returns:
            a new image of `size`, which equals the original outside the square.

        Raises:
            PictureError: a picture of another size.
        """
        self._check(original)
        if square.size != (self.side, self.side):
            raise PictureError(f"the result has {square.width}×{square.height} pixels, not {self.side}×{self.side}")
        if self.how == "crop" and feather:
            seam = self._seam()
            share = seam if share is None else share * seam
        left, top, right, bottom = self._seen()
        (x, y), scale_x, scale_y = self.offset, self.scaled[0] / self.size[0], self.scaled[1] / self.size[1]
        seen = (left * scale_x + x, top * scale_y + y, right * scale_x + x, bottom * scale_y + y)
        # Of a picture one pixel high or wide the square may show half a pixel, which then takes what is there.
        box = (max(0.0, seen[0]), max(0.0, seen[1]), min(self.side, seen[2]), min(self.side, seen[3]))
        size = (right - left, bottom - top)
        whole = original.copy()
        mask = None if share is None else _enlarged(share, size, box)
        whole.paste(resize(square, size, box), (left, top), mask)
        return whole

    def _seen(self) -> tuple[int, int, int, int]:
        """The complete pixels of the picture that the square shows: left, top, right, bottom."""
        ends: list[tuple[int, int]] = []
        for length, scaled, start in zip(self.size, self.scaled, self.offset, strict=True):
            first = max(0.0, -start * length / scaled)
            last = min(float(length), (self.side - start) * length / scaled)
            # Rounding errors must not lose a pixel; more than half of a single pixel may be outside.
            begin = min(math.ceil(first - 1e-6), length - 1)
            ends.append((begin, max(math.floor(last + 1e-6), begin + 1)))
        (left, right), (top, bottom) = ends
        return left, top, right, bottom

    def _seam(self) -> NDArray[np.float32]:
        """Weights [side, side]: 1 in the middle of the square, falling to 0 at the edges that were cut."""
        (width, height), place = self.scaled, np.arange(self.side) + 0.5
        depth = np.minimum(place, self.side - place) / max(1.0, self.side * SEAM)
        ramp, flat = np.minimum(depth, 1), np.ones(self.side)
        across, down = (ramp if length > self.side else flat for length in (width, height))
        return (down[:, None] * across).astype(np.float32)

    def _check(self, picture: Image.Image) -> None:
        if picture.size != self.size:
            raise PictureError(
                f"the picture has {picture.width}×{picture.height} pixels, "
                f"but its placement was made for {self.size[0]}×{self.size[1]}"
            )


@dataclass(frozen=True, eq=False)
class Fitted:
    """A picture as the model's square. The picture itself is only kept if results will be pasted back into it."""

    placement: Placement
    square: Image.Image
    original: Image.Image | None

    @classmethod
    def of(cls, picture: Image.Image, side: int, fit: Fit | None = None, keep: bool = False) -> Fitted:
        """Fit an RGB picture.

        Args:
            side: of the square, pixels.
            fit: None is `crop`.

        Raises:
            OptionError: an unknown fit.
        """
        placement = Placement(picture.size, side, "crop" if fit is None else fit)
        return cls(placement, placement.fit(picture), picture if keep else None)

    def restored(self, square: Image.Image, share: NDArray[np.float32] | None = None) -> Image.Image:
        """A result pasted back into the picture, if it was kept; `share` as in `Placement.restore`."""
        return square if self.original is None else self.placement.restore(square, self.original, share=share)


def fitted_size(size: Size, side: int) -> Size:
    """Width and height after the shorter side is resized to `side`, with the same aspect ratio."""
    scale = side / min(size)
    return max(side, round(size[0] * scale)), max(side, round(size[1] * scale))


def fit_square(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to `side` (Lanczos, same aspect ratio) and crop the centre square."""
    size = fitted_size(image.size, as_integer("side", side, 1))
    if max(size) > LONG * side:
        # Resizing only the box bounds the size of the resized picture.
        (width, height), half = image.size, min(image.size) / 2
        box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
        return resize(image, (side, side), box)
    image = resize(image, size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def resize(image: Image.Image, size: Size, box: tuple[float, float, float, float] | None = None) -> Image.Image:
    """Resize with Lanczos, horizontally and then vertically: the same pixels with every version of Pillow.

    Pillow rounds between its two passes, and their order depends on its version and on their cost.

    Args:
        box: the part of the image to resize (left, top, right, bottom); None means all of it.
    """
    left, top, right, bottom = box or (0, 0, *image.size)
    reach = LANCZOS_SUPPORT * max(1.0, (bottom - top) / size[1])
    first, last = max(0, math.floor(top - reach)), min(image.height, math.ceil(bottom + reach))
    if (first, last) != (0, image.height):
        image = image.crop((0, first, image.width, last))  # only these rows contribute
    across = image.resize((size[0], image.height), Image.Resampling.LANCZOS, box=(left, 0, right, image.height))
    return across.resize(size, Image.Resampling.LANCZOS, box=(0, top - first, size[0], bottom - first))


def _padded(scaled: Image.Image, covered: tuple[int, int, int, int], side: int) -> Image.Image:
    left, top, right, bottom = covered
    pixels = np.asarray(scaled)
    around = ((top, side - bottom), (left, side - right), *((0, 0),) * (pixels.ndim - 2))
    return Image.fromarray(np.pad(pixels, around, mode="edge"))


def _enlarged(share: NDArray[np.float32], size: Size, box: tuple[float, float, float, float]) -> Image.Image:
    """Weights of the square, resized to a part of the picture, as an image of mode L; 0 stays 0."""
    # Rounded up, so that a small weight does not become 0 in 8 bits.
    layer = Image.fromarray(np.ceil(np.clip(share, 0, 1) * 255).astype(np.uint8))
    any_share = layer.point(lambda value: 255 * (value > 0)).resize(size, Image.Resampling.NEAREST, box=box)
    return ImageChops.darker(layer.resize(size, Image.Resampling.BILINEAR, box=box), any_share)


def _spans(edges: NDArray[np.int_], length: int, scaled: int) -> NDArray[np.int_]:
    """For each new pixel, the range [first, last) of old pixels whose centres lie in it, [new, 2].

    At least one: the old pixel that contains the new pixel's centre. Integer arithmetic avoids rounding.

    Args:
        edges: of the new pixels, [new + 1], in units of new pixels.
        length: number of old pixels, which are resized to `scaled`.
    """
    bounds = (2 * edges * length + scaled) // (2 * scaled)
    middle = (2 * edges[:-1] + 1) * length // (2 * scaled)
    empty = bounds[1:] <= bounds[:-1]
    spans = np.stack([np.where(empty, middle, bounds[:-1]), np.where(empty, middle + 1, bounds[1:])], axis=1)
    return np.asarray(np.clip(spans, [0, 1], [length - 1, length]), int)


def _any_in(white: Bools, spans: NDArray[np.int_], axis: int) -> Bools:
    """Whether any value is true in each of the spans along an axis."""
    padding = [(0, 0), (0, 0)]
    padding[axis] = (0, 1)  # the last span's end must be an index too
    return np.logical_or.reduceat(np.pad(white, padding), spans.ravel(), axis=axis).take(
        np.arange(0, 2 * len(spans), 2), axis=axis
    )
