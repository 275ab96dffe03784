"""Canny edges as EditAR's training made them: those of the kornia library at the thresholds 0.1 and 0.2.

The steps are kornia's (0.7, of the model's time), in NumPy: grey of 0 … 1, a Gaussian of 1 pixel cut to 5×5 over
mirrored borders, Sobel gradients that are not divided by 8 over repeated ones, a maximum along the direction rounded to
45°, and weak edges kept where they touch strong ones. scikit-image and OpenCV scale, round and cut otherwise, and put a
tenth of the edges elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LOW, HIGH = 0.1, 0.2  # of the gradient's length, in 8 times grey levels of 0 … 1 a pixel
GREY = np.asarray([0.299, 0.587, 0.114], np.float32)
SOBEL = np.asarray([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)
SIGMA, REACH = 1.0, 2  # pixels
# (rows, columns) to the neighbour in direction k, k times 45° from right towards below.
NEIGHBOURS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


def canny_edges(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """White edges on black, uint8 [H, W, 3], of a picture uint8 [H, W, 3]."""
    red, green, blue = (picture[..., i].astype(np.float32) / 255 for i in range(3))
    grey = GREY[0] * red + GREY[1] * green + GREY[2] * blue
    down, right = _gradients(_blurred(grey))
    length = np.sqrt(right * right + down * down + np.float32(1e-6))
    length *= _is_ridge(length, np.arctan2(down, right))
    edges = _reached(length > HIGH, length > LOW)
    return np.repeat(edges[..., None].astype(np.uint8) * 255, 3, axis=2)


def _blurred(grey: Array) -> Array:
    offsets = np.arange(-REACH, REACH + 1, dtype=np.float32)
    taps = np.exp(-(offsets**2) / (2 * SIGMA**2))
    taps /= taps.sum()
    for axis in (1, 0):
        margin = [(REACH, REACH) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(grey, margin, mode="reflect")
        size = grey.shape[axis]
        grey = sum((t * padded.take(range(i, i + size), axis) for i, t in enumerate(taps)), np.zeros_like(grey))
    return grey


def _gradients(grey: Array) -> tuple[Array, Array]:
    """Sobel's, downwards and to the right."""
    padded, (height, width) = np.pad(grey, 1, mode="edge"), grey.shape
    found = []
    for kernel in (SOBEL.T, SOBEL):
        # One product after the other: where neighbours tie, the last bit of such a sum decides.
        total = np.zeros_like(grey)
        for row, column in zip(*kernel.nonzero()):
            total += kernel[row, column] * padded[row : row + height, column : column + width]
        found.append(total)
    return found[0], found[1]


def _is_ridge(length: Array, angle: Array) -> Mask:
    """Whether a pixel's gradient is longer than at both neighbours in its direction; beyond the border it is 0."""
    height, width = length.shape
    padded = np.pad(length, 1)
    direction = np.rint(angle * np.float32(4 / np.pi)).astype(np.int64) % 4
    ridge = np.zeros(length.shape, bool)
    for k in range(4):  # the neighbour in direction k + 4 lies opposite
        pair = [padded[1 + r : 1 + r + height, 1 + c : 1 + c + width] for r, c in (NEIGHBOURS[k], NEIGHBOURS[k + 4])]
        ridge |= (direction == k) & (length > pair[0]) & (length > pair[1])
    return ridge


def _reached(strong: Mask, weak: Mask) -> Mask:
    """The strong pixels, and the weak ones that a chain of weak neighbours joins to them."""
    waiting = np.pad(weak & ~strong, 1).ravel()
    found = np.pad(strong, 1).ravel()
    stride = strong.shape[1] + 2
    steps = np.asarray([row * stride + column for row, column in NEIGHBOURS])
    front: NDArray[Any] = np.flatnonzero(found)
    while len(front):
        around = (front[:, None] + steps).ravel()
        front = np.unique(around[waiting[around]])
        found[front], waiting[front] = True, False
    return found.reshape(-1, stride)[1:-1, 1:-1]
