"""The loop: prefill, then one step a token. Nothing else steps a decoder.

It is a generator that yields after every token; progress, cancelling, benchmarks and tests are consumers of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from editar_rt.backends.base import Backend
from editar_rt.sampling import Sampling, guide, pick_tokens


class Step(NamedTuple):
    """One target token of every picture."""

    position: int  # 0 to N - 1
    tokens: NDArray[np.int32]  # [B]


class Prefix(NamedTuple):
    """What comes before the target tokens, of rows that go through the decoder together."""

    tokens: NDArray[np.int32]  # [R, N + T], negative where `states` is taken
    states: NDArray[np.float32]  # [R, N + T, D]


def make_prefix(
    text: NDArray[np.float32], condition_tokens: NDArray[np.int32] | None, null_picture: NDArray[np.float32]
) -> Prefix:
    """The picture first, then the text.

    Args:
        text: projected text [R, T, D].
        condition_tokens: [R, N], or None to drop the picture.
        null_picture: what stands in for a dropped picture, [1, N, D].
    """
    rows, text_tokens, dim = text.shape
    picture_tokens = null_picture.shape[1]
    tokens = np.full((rows, picture_tokens + text_tokens), -1, np.int32)
    states = np.zeros((rows, picture_tokens + text_tokens, dim), np.float32)
    states[:, picture_tokens:] = text
    if condition_tokens is None:
        states[:, :picture_tokens] = null_picture
    else:
        tokens[:, :picture_tokens] = condition_tokens
    return Prefix(tokens, states)


def decode(backend: Backend, cond: Prefix, null: Prefix | None, count: int, sampling: Sampling) -> Iterator[Step]:
    """Draw `count` target tokens for every row of `cond`.

    Args:
        null: the rows without text, in the same order; needed where `sampling.guided`.
    """
    rows, length = cond.tokens.shape
    tokens, states = cond
    if sampling.guided:
        if null is None:
            raise ValueError("guidance needs the rows without text")
        tokens, states = np.concatenate([tokens, null.tokens]), np.concatenate([states, null.states])
    cache = backend.make_cache(len(tokens), length + count - 1)  # the last token is not fed back
    logits = cache.forward(tokens, states, np.asarray([length - 1], np.int32))
    no_prefix = np.zeros((1, 1, states.shape[2]), np.float32)
    first = np.zeros(1, np.int32)
    fed = np.empty((len(tokens), 1), np.int32)
    for position in range(count):
        if sampling.guided_at(position):
            drawn = pick_tokens(guide(logits[:rows, 0], logits[rows:, 0], sampling.cfg_scale), sampling, position)
        else:
            drawn = pick_tokens(logits[:rows, 0], sampling, position)
        yield Step(position, drawn)
        if position + 1 == count:
            return
        if cache.rows > rows and not sampling.guided_at(position + 1):
            cache.keep_rows(rows)  # the null rows are not needed again
            fed = fed[:rows]
        fed[:rows, 0] = drawn
        fed[rows:, 0] = drawn[: len(fed) - rows]
        logits = cache.forward(fed, no_prefix, first)


def score(backend: Backend, prefix: Prefix, target_tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Logits [R, N, V] of every target position, the target tokens [R, N] being forced; one pass."""
    rows, length = prefix.tokens.shape
    count = target_tokens.shape[1]
    tokens = np.concatenate([prefix.tokens, target_tokens[:, :-1]], axis=1)  # the last token predicts nothing
    states = np.zeros((rows, tokens.shape[1], prefix.states.shape[2]), np.float32)
    states[:, :length] = prefix.states
    cache = backend.make_cache(rows, tokens.shape[1])
    return cache.forward(tokens, states, np.arange(length - 1, length - 1 + count, dtype=np.int32)).copy()
