"""The loop: the picture's prefill, the text's, then one step a token. Nothing else steps a decoder.

`decode` is a generator that yields after every token; progress, cancelling, benchmarks and tests are consumers of it.

The picture comes first and attention is causal, so its keys and values are the same with and without the text and for
every instruction: it goes through the decoder once, in one row, and is copied to the others. So does the text of rows
that share it. Of the rows [cond | null], the null ones depend on the picture alone and can be kept too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from editar_rt.backends.base import Backend, Cache
from editar_rt.sampling import Sampling, guide, pick_tokens

Floats = NDArray[np.float32]


class Step(NamedTuple):
    """One target token of every picture."""

    position: int  # 0 to N - 1
    tokens: NDArray[np.int32]  # [B]


class Chunk(NamedTuple):
    """Some positions of the sequence, of rows that go through the decoder together."""

    tokens: NDArray[np.int32]  # [R, S], negative where `states` is taken
    states: Floats  # broadcasts against [R, S, D]

    def row(self, row: int) -> Chunk:
        """One row, as a chunk of its own."""
        states = self.states[row : row + 1] if len(self.states) > 1 else self.states
        return Chunk(self.tokens[row : row + 1], states)


def picture_chunk(condition_tokens: NDArray[np.int32] | None, null_picture: Floats) -> Chunk:
    """The picture's part of the sequence.

    Args:
        condition_tokens: [P, N], or None for one dropped picture.
        null_picture: what stands in for a dropped picture, [1, N, D].
    """
    if condition_tokens is None:
        return Chunk(np.full(null_picture.shape[:2], -1, np.int32), null_picture)
    return Chunk(condition_tokens, np.zeros((1, 1, null_picture.shape[2]), np.float32))


def text_chunk(text: Floats) -> Chunk:
    """The text's part of the sequence; projected text [B, T, D]."""
    return Chunk(np.full(text.shape[:2], -1, np.int32), text)


class Prefix:
    """A cache filled with pictures, and then with texts again and again.

    Rows are [cond_0 … cond_B-1 | null_0 … null_B-1], or the first half alone without guidance.

    Args:
        pictures: [P, N] tokens, run once each.
        picture_of_row: for each of the B rows its picture, in order of first appearance (0, 0, 1, …).
        guided: whether there are null rows.
        text_tokens: T.
        count: target tokens that must fit behind; the last is not fed back.
    """

    def __init__(
        self,
        backend: Backend,
        pictures: Chunk,
        picture_of_row: Sequence[int],
        guided: bool,
        text_tokens: int,
        count: int,
    ) -> None:
        self.rows, self.guided = len(picture_of_row), guided
        self.picture_tokens, self.dim = pictures.tokens.shape[1], pictures.states.shape[2]
        self._picture_of_row = list(picture_of_row)
        owners = self._picture_of_row * (2 if guided else 1)
        self.cache: Cache = backend.make_cache(len(owners), self.picture_tokens + text_tokens + count - 1)
        last = np.asarray([self.picture_tokens - 1], np.int32)  # the decoder wants a position; nothing reads it
        for picture in range(len(pictures.tokens)):
            self.cache.forward(*pictures.row(picture), last, picture)
        for row in reversed(range(len(owners))):  # backwards: a picture's own row comes before those that copy it
            if owners[row] != row:
                self.cache.copy_row(owners[row], row)
        self._null_length = 0  # of the null rows with their text, once they have it
        self._null_logits: Floats | None = None

    def read(self, text: Floats, null_text: Floats) -> tuple[Floats, Floats | None]:
        """Run texts [B or 1, T, D] behind the pictures, and once the null text [1, T, D].

        One text for all rows of one picture is run once.

        Returns:
            logits of the first target token, [B, V]: (with the text, without it where guided).
        """
        lengths = self.cache.lengths
        lengths[: self.rows] = self.picture_tokens
        cond = self._run(text, 0)
        if not self.guided:
            return cond, None
        if self._null_logits is None:
            self._null_logits = self._run(null_text, self.rows)
            self._null_length = int(lengths[self.rows])
        lengths[self.rows :] = self._null_length
        return cond, self._null_logits

    def _run(self, text: Floats, first_row: int) -> Floats:
        last = np.asarray([text.shape[1] - 1], np.int32)
        logits: list[Floats] = []
        done: dict[tuple[int, int], int] = {}  # by picture and text, the row that has run them
        for row, picture in enumerate(self._picture_of_row):
            which = row if len(text) > 1 else 0
            if (picture, which) in done:
                source = done[picture, which]
                self.cache.copy_row(first_row + source, first_row + row)
                logits.append(logits[source])
                continue
            done[picture, which] = row
            chunk = text_chunk(text[which : which + 1])
            logits.append(self.cache.forward(*chunk, last, first_row + row)[0, 0].copy())
        return np.stack(logits)


def decode(
    prefix: Prefix,
    first: tuple[Floats, Floats | None],
    count: int,
    sampling: Sampling,
    seeds: Sequence[int] | None = None,
) -> Iterator[Step]:
    """Draw `count` target tokens for every row.

    Args:
        first: logits of the first token, as `Prefix.read` gives them.
        seeds: one a row, instead of the sampling's for all.
    """
    rows, cache = prefix.rows, prefix.cache
    cond, null = first
    if sampling.guided != (null is not None):
        raise ValueError("rows without text are needed with guidance, and only then")
    no_prefix = np.zeros((1, 1, prefix.dim), np.float32)
    only = np.zeros(1, np.int32)
    fed = np.empty((2 * rows, 1), np.int32)
    for position in range(count):
        logits = cond if null is None else guide(cond, null, sampling.cfg_scale)
        drawn = pick_tokens(logits, sampling, position, seeds=seeds)
        yield Step(position, drawn)
        if position + 1 == count:
            return
        fed[:rows, 0] = fed[rows:, 0] = drawn
        both = sampling.guided_at(position + 1)  # else the null rows are not needed again
        new = cache.forward(fed if both else fed[:rows], no_prefix, only)[:, 0]
        cond, null = new[:rows], new[rows:] if both else None


def score(backend: Backend, picture: Chunk, text: Floats, target_tokens: NDArray[np.int32]) -> Floats:
    """Logits [B, N, V] of every target position, the target tokens [B, N] being forced; one pass a row.

    Args:
        picture: of B rows, or of one for all.
        text: projected text [B or 1, T, D].
    """
    count, dim = target_tokens.shape[1], text.shape[2]
    pictures, length = len(picture.tokens), picture.tokens.shape[1] + text.shape[1]
    logits = []
    cache = backend.make_cache(1, length + count - 1)
    wanted = np.arange(length - 1, length - 1 + count, dtype=np.int32)
    for row, forced in enumerate(target_tokens):
        parts = (
            picture.row(row if pictures > 1 else 0),
            text_chunk(text[row : row + 1] if len(text) > 1 else text),
            Chunk(forced[None, :-1], np.zeros((1, 1, dim), np.float32)),  # the last token predicts nothing
        )
        tokens = np.concatenate([part.tokens for part in parts], axis=1)
        states = [np.broadcast_to(part.states, (1, part.tokens.shape[1], dim)) for part in parts]
        cache.lengths[:] = 0
        logits.append(cache.forward(tokens, np.concatenate(states, axis=1), wanted)[0].copy())
    return np.stack(logits)
