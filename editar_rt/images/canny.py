"""Canny edges as in EditAR's training: those of the kornia library with thresholds 0.1 and 0.2.

The steps are those of kornia 0.7 (the version at the model's time), in NumPy: grey from 0 to 1, a Gaussian of 1 pixel
cut to 5×5 with reflected borders, Sobel gradients not divided by 8 with repeated borders, non-maximum suppression along
the direction rounded to 45°, and hysteresis. scikit-image and OpenCV scale, round and cut differently, and place a
tenth of the edges elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LOW, HIGH = 0.1, 0.2  # of the gradient's length: 8 times the change of grey (0 to 1) per pixel
GREY = np.asarray([0.299, 0.587, 0.114], np.float32)
SOBEL = np.asarray([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)
SIGMA, REACH = 1.0, 2  # pixels
# (rows, columns) to the neighbour in direction k; 0 is right, and each step turns by 45° towards down.
NEIGHBOURS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


def canny_edges(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The edges of a picture uint8 [H, W, 3], white on black, uint8 [H, W, 3]."""
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
    """Sobel gradients, downwards and to the right."""
    padded, (height, width) = np.pad(grey, 1, mode="edge"), grey.shape
    gradients = []
    for kernel in (SOBEL.T, SOBEL):
        # Add the products in a fixed order: if neighbours are equal, the last bit of the sum decides.
        total = np.zeros_like(grey)
        for row, column in zip(*kernel.nonzero()):
            total += kernel[row, column] * padded[row : row + height, column : column + width]
        gradients.append(total)
    return gradients[0], gradients[1]


def _is_ridge(length: Array, angle: Array) -> Mask:
    """Whether a pixel's gradient is longer than at both neighbours in its direction; it is 0 beyond the border."""
    height, width = length.shape
    padded = np.pad(length, 1)
    direction = np.rint(angle * np.float32(4 / np.pi)).astype(np.int64) % 4
    ridge = np.zeros(length.shape, bool)
    for k in range(4):  # the neighbour in direction k + 4 lies opposite
        pair = [padded[1 + r : 1 + r + height, 1 + c : 1 + c + width] for r, c in (NEIGHBOURS[k], NEIGHBOURS[k + 4])]
        ridge |= (direction == k) & (length > pair[0]) & (length > pair[1])
    return ridge


def _reached(strong: Mask, weak: Mask) -> Mask:
    """Hysteresis: the strong pixels, and the weak ones that a chain of weak neighbours connects to them."""
    waiting = np.pad(weak & ~strong, 1).ravel()
    edges = np.pad(strong, 1).ravel()
    stride = strong.shape[1] + 2
    steps = np.asarray([row * stride + column for row, column in NEIGHBOURS])
    front: NDArray[Any] = np.flatnonzero(edges)
    while len(front):
        around = (front[:, None] + steps).ravel()
        front = np.unique(around[waiting[around]])
        edges[front], waiting[front] = True, False
    return edges.reshape(-1, stride)[1:-1, 1:-1]
