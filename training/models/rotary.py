"""Rotary positions of a whole sequence, as a NumPy table that training and export share."""

from __future__ import annotations

import numpy as np

from training.config import TransformerConfig


def rotary_table(config: TransformerConfig) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines for the sequence [condition picture | text | target picture].

    Pair i of a head is its elements (2i, 2i + 1). The first half of the pairs turns with the row, the second half
    with the column, of a grid of twice a picture's side: the condition picture lies in its upper left quarter, the
    target in its lower right one. Text rows are ZERO in both tables, which sets queries and keys to zero there;
    every score against a text position is therefore 0. The official weights were trained so.

    Returns:
        (cos, sin), float32 [2 * block_size + cls_token_num, head_dim // 2] each.
    """
    half = config.head_dim // 2
    frequencies = config.rope_base ** -(np.arange(0, half, 2) / half)  # [head_dim // 4], radians a grid step
    row, column = np.divmod(np.arange(config.block_size), config.grid)

    def angles(offset: int) -> np.ndarray:
        return np.hstack([np.outer(row + offset, frequencies), np.outer(column + offset, frequencies)])

    text = np.zeros((config.cls_token_num, half))
    condition, target = angles(0), angles(config.grid)
    cos = np.concatenate([np.cos(condition), text, np.cos(target)])
    sin = np.concatenate([np.sin(condition), text, np.sin(target)])
    return cos.astype(np.float32), sin.astype(np.float32)
