"""A head start for small transformers trained from nothing: what tokens look like, and where to look.

Tokens: embeddings and output rows start from each token's codebook vector and decoded colours, so that tokens that
look alike begin alike and what is learned of one helps with the others.

Heads: what an edit needs first is to look at the right cells: the condition's cell that is about to be painted, the
ones around it, the target's cell above, and the text. From random weights small models find these places only after
tens of thousands of pictures. A rotary score depends on the offset between two cells alone, so a head can be aimed:
give every token one constant element, and set the columns of the query and key matrices that read it to vectors whose
score peaks at the wanted offset. Everything stays trainable, and the model's mathematics is unchanged.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.models.transformer import Transformer
from training.models.vq import VQModel

# Offsets (rows, columns) from the position that predicts a cell, which is the cell before it, to where it looks.
# In the condition picture, one grid up and to the left, the cell to be painted itself is (0, +1).
PAINTED = (0, 1)
# Around it, two of these a layer, as far as an object reaches.
CONDITION_CELLS = ((1, 1), (0, 2), (0, 0), (-1, 1), (2, 1), (1, 2), (1, 0), (-1, 2), (-1, 0), (0, 3), (2, 2), (-2, 1))
# In the grid that the position itself belongs to, one a layer; the condition's own cells learn their surroundings so.
OWN_CELLS = ((-1, 0), (0, -1), (-1, 1), (-1, 0), (0, -1), (-1, 1))
SHARPNESS = 6.0  # score of an aimed head for each of its four fastest pairs, at its offset
TEXT_BIAS = 5.0  # how far a text head's scores of picture cells lie below the 0 of text
SPREAD = 0.02  # standard deviation of an embedding's elements


@torch.no_grad()
def token_features(vq: VQModel) -> Tensor:
    """What each token is like, [V, 8 + 12]: its codebook row and the mean colours of its decoded quarters.

    Columns have mean 0 and standard deviation 1.
    """
    size, cells = vq.config.codebook_size, 3  # the middle one of 3 x 3 equal tokens, away from the border
    tokens = torch.arange(size)[:, None].expand(size, cells * cells)
    side = vq.config.downsampling
    middle = torch.cat([vq.decode(part)[:, :, side : 2 * side, side : 2 * side] for part in tokens.split(128)])
    colours = F.adaptive_avg_pool2d(middle, 2).flatten(1)
    features = torch.cat([vq.quantize.normalized(), colours], dim=1)
    return (features - features.mean(0)) / features.std(0)


@torch.no_grad()
def start_tokens(model: Transformer, features: Tensor) -> None:
    """Embeddings and output rows as random projections of `features` [V, *], and a little of their own."""
    for table, share in ((model.tok_embeddings.weight, 0.9), (model.output.weight, 0.9)):
        projection = torch.randn(features.shape[1], table.shape[1]) / math.sqrt(features.shape[1])
        own = torch.randn_like(table)
        table.copy_(SPREAD * (share * features @ projection + math.sqrt(1 - share**2) * own))
    model.img_uncond_embedding.normal_(0, SPREAD)


@torch.no_grad()
def aim_heads(model: Transformer) -> None:
    """Every layer gets a head for the text, one for the cell to be painted and three for others in turn.

    The remaining heads stay random. Needs a head width of at least 16, and five heads.
    """
    config = model.config
    constant = SPREAD * math.sqrt(config.dim)  # half of a token's squared length
    for table in (model.tok_embeddings.weight, model.img_uncond_embedding):
        table[:, 0] = constant
    # What the constant element is after the first normalization, whose mean square is 2 · SPREAD².
    reading = constant / math.sqrt(2 * SPREAD**2)
    condition = [(r - config.grid, c - config.grid) for r, c in CONDITION_CELLS]
    painted = (PAINTED[0] - config.grid, PAINTED[1] - config.grid)
    for i, layer in enumerate(model.layers):
        queries, keys, _ = layer.attention.wqkv.weight.unflatten(0, (3, config.n_head, config.head_dim))
        q, k = text_head(config.head_dim)
        _set_column(queries[0], keys[0], q, k, reading)
        turn = condition[2 * i % len(condition)], condition[(2 * i + 1) % len(condition)]
        for head, offset in enumerate((painted, *turn, OWN_CELLS[i % len(OWN_CELLS)]), start=1):
            _set_column(queries[head], keys[head], *aimed_head(config.head_dim, config.rope_base, offset), reading)


def _set_column(queries: Tensor, keys: Tensor, q: np.ndarray, k: np.ndarray, reading: float) -> None:
    queries[:, 0] = torch.from_numpy(q / reading)
    keys[:, 0] = torch.from_numpy(k / reading)


def aimed_head(head_dim: int, base: float, offset: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Query and key [head_dim] whose rotated product, over sqrt(head_dim), peaks at `offset` (key minus query)."""
    half = head_dim // 2
    frequencies = base ** -(np.arange(0, half, 2) / half)  # as in `training.models.rotary`
    length = math.sqrt(SHARPNESS * math.sqrt(head_dim))
    q, k = np.zeros(head_dim, np.float32), np.zeros(head_dim, np.float32)
    for axis in range(2):
        for i in range(2):  # the two fastest frequencies tell neighbours apart, and far cells of the same phase
            pair = axis * half // 2 + i
            angle = offset[axis] * frequencies[i]
            k[2 * pair] = length
            q[2 * pair : 2 * pair + 2] = length * math.cos(angle), length * math.sin(angle)
    return q, k


def text_head(head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Query and key [head_dim] whose product is low for every picture cell: pairs that hardly turn, opposed."""
    half = head_dim // 2
    length = math.sqrt(TEXT_BIAS / 2 * math.sqrt(head_dim))
    q, k = np.zeros(head_dim, np.float32), np.zeros(head_dim, np.float32)
    for pair in (half // 2 - 1, half - 1):  # the slowest of the row's and of the column's pairs
        q[2 * pair], k[2 * pair] = -length, length
    return q, k
