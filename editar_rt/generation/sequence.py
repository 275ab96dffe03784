"""A picture being decoded: its rows of the KV cache, tokens, guidance and seed.

The input of a row is [picture | text | target tokens]. The picture comes first and attention is causal, so its keys and
values are the same with and without the text, and for every instruction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from editar_rt.generation.sampling import Sampling
from editar_rt.generation.strategy import Speculation

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


class Chunk(NamedTuple):
    """A run of positions of one row's input."""

    tokens: Ints
    """[S]; negative where the position takes its value from `states`."""
    states: Floats | None
    """Hidden states [S, D]; None if all tokens are given."""

    def __len__(self) -> int:
        return len(self.tokens)

    def piece(self, start: int, stop: int) -> Chunk:
        """Positions `start` to `stop - 1`."""
        return Chunk(self.tokens[start:stop], None if self.states is None else self.states[start:stop])

    def same(self, other: Chunk) -> bool:
        """Whether the decoder would compute the same for both."""
        if self is other:
            return True
        if (self.states is None) != (other.states is None) or not np.array_equal(self.tokens, other.tokens):
            return False
        return self.states is None or other.states is None or np.array_equal(self.states, other.states)


def token_chunk(tokens: Ints) -> Chunk:
    """Tokens [S] as input."""
    return Chunk(np.asarray(tokens, np.int32), None)


def state_chunk(states: Floats) -> Chunk:
    """Hidden states [S, D] as input: projected text, or the unconditional embedding of the picture."""
    return Chunk(np.full(len(states), -1, np.int32), states)


class Inputs(NamedTuple):
    """The decoder's input for one picture before the target tokens."""

    picture: Chunk
    """The condition's tokens, or the unconditional embedding of the picture."""
    text: Chunk
    uncond_text: Chunk
    """Replaces the text in the unconditional row."""


class Row:
    """One row of the KV cache and its contents.

    Args:
        slot: its index in the cache.
        count: N, the number of target tokens.
    """

    def __init__(self, slot: int, count: int) -> None:
        self.slot = slot
        self.picture: Chunk | None = None
        self.text: Chunk | None = None
        self.start = 0
        """Position of the first target token."""
        self.filled = 0
        """Number of cached positions."""
        self.fed = np.full(count, -1, np.int32)
        """Target tokens that were fed; valid up to `filled`."""
        self.first: Floats | None = None
        """Logits [V] of target token 0, once picture and text are in the cache."""
        self.logits: Floats | None = None
        """Logits [V] after the last cached position, if a chunk computed them."""

    def begin(self, picture: Chunk, text: Chunk) -> None:
        """Set picture and text. The cached part that is the same is kept."""
        if self.picture is None or not self.picture.same(picture):
            self.picture, self.text, self.filled = picture, None, 0
        if self.text is None or not self.text.same(text):
            self.text, self.filled, self.first = text, min(self.filled, len(picture)), None
            self.start = len(picture) + len(text)
        self.logits = None

    def rewind(self, tokens: Ints, first_free: int) -> None:
        """Rewind so that decoding can continue with target tokens `tokens` [N], negative where they are sampled.

        Cached tokens that match are kept, except the last one before the first free position: it is fed again for its
        logits.
        """
        most = max(min(self.filled - self.start, first_free - 1), 0)
        same = self.fed[:most] == tokens[:most]
        kept = most if same.all() else int(same.argmin())
        self.filled = min(self.filled, self.start + kept)

    def next_piece(self, tokens: Ints, position: int, limit: int) -> Chunk:
        """The next positions to feed before target token `position` can be sampled; at most `limit`.

        Picture, text and tokens are separate chunks, regardless of other sequences: the same pieces give the same
        bits every time.
        """
        assert self.picture is not None and self.text is not None  # a sequence has begun here
        at = self.filled
        for chunk in (self.picture, self.text):
            if at < len(chunk):
                return chunk.piece(at, min(at + limit, len(chunk)))
            at -= len(chunk)
        return token_chunk(tokens[at : min(at + limit, position)])

    def advance(self, chunk: Chunk) -> None:
        """Record that a piece is now cached."""
        at = self.filled - self.start
        self.filled += len(chunk)
        if at >= 0:
            self.fed[at : at + len(chunk)] = chunk.tokens

    @property
    def has_prefix(self) -> bool:
        """Whether picture and text are cached and the logits after them are known."""
        return self.first is not None and self.filled >= self.start


class Context:
    """The rows of one picture: conditional, and unconditional if it is guided. A context outlives its sequences."""

    def __init__(self, cond: Row, uncond: Row | None) -> None:
        self.cond, self.uncond = cond, uncond

    def __iter__(self) -> Iterator[Row]:
        return iter((self.cond,) if self.uncond is None else (self.cond, self.uncond))


class Sequence:
    """One picture being decoded over a context.

    Args:
        context: has an unconditional row if and only if the sampling is guided. One sequence at a time uses it.
        seed: replaces the seed of the sampling.
        known: int32 [N], negative where a token is to be sampled; None samples all.
        count: N.
        speculation: how several positions are taken in a pass; None takes one.

    Raises:
        OptionError: a guidance schedule of another length.
    """

    def __init__(
        self,
        context: Context,
        inputs: Inputs,
        sampling: Sampling,
        seed: int,
        known: Ints | None,
        count: int,
        speculation: Speculation | None = None,
    ) -> None:
        if sampling.guided != (context.uncond is not None):
            raise ValueError("a context needs an unconditional row with guidance, and must not have one without")
        self.context, self.sampling, self.seed, self.speculation = context, sampling, seed, speculation
        self.passes = 0
        """Runs of the decoder since the prefill."""
        self.scales = sampling.scales(count)
        self.tokens = np.full(count, -1, np.int32) if known is None else np.array(known, np.int32)
        """[N]; negative where they are not sampled yet."""
        free = np.flatnonzero(self.tokens < 0).tolist()
        self._next = iter([*free[1:], count])
        self._stop = free[-1] + 1 if free else count
        self.position: int = free[0] if free else count
        """Index of the target token to sample next; N when finished."""
        self._guided: list[bool] = [*(self.scales > 1).tolist(), False]
        context.cond.begin(inputs.picture, inputs.text)
        if context.uncond is not None:
            context.uncond.begin(inputs.picture, inputs.uncond_text)
        for row in context:
            row.rewind(self.tokens, self.position)

    @property
    def finished(self) -> bool:
        """Whether all tokens are known."""
        return self.position == len(self.tokens)

    @property
    def guided(self) -> bool:
        """Whether the next token is guided."""
        return self._guided[self.position]

    def rows(self) -> tuple[Row, ...]:
        """The rows that the next token needs. Without guidance the unconditional row waits; it catches up later."""
        return self._rows_of(self.guided)

    def _rows_of(self, guided: bool) -> tuple[Row, ...]:
        context = self.context
        return (context.cond, context.uncond) if guided and context.uncond is not None else (context.cond,)

    def lacks(self, row: Row) -> int:
        """Number of positions to feed to a row before the next token can be sampled."""
        return row.start + self.position - row.filled

    @property
    def ready(self) -> bool:
        """Whether one decode step is enough for the next token: each row lacks exactly one position."""
        position = self.position
        return position > 0 and all(row.start + position - row.filled == 1 for row in self.rows())

    def window(self) -> int:
        """The number of positions up to the last free one, or to where guidance begins or ends."""
        guided, stop = self.guided, self.position + 1
        while stop < self._stop and self._guided[stop] == guided:
            stop += 1
        return stop - self.position

    def chunk(self, size: int) -> tuple[int, Ints]:
        """The chunk of a pass, which gives the logits of `position` and of those after it.

        It has `size` positions in any case: near the end of the picture it begins with positions that are cached
        already, and computes the same keys and values again.

        Returns:
            its first position, and the tokens to feed [size]: those that are known or sampled, otherwise drafts.
        """
        start = max(0, min(self.position - 1, len(self.tokens) - 1 - size))
        fed = self.tokens[start : start + size].copy()
        if self.speculation is not None:
            free = fed < 0
            fed[free] = self.speculation.drafter.draft(start, start + size)[free]
        return start, fed

    def accept(self, start: int, fed: Ints, made: Ints) -> list[tuple[int, int]]:
        """Take the tokens sampled by a pass up to the first one that differs from its draft.

        Args:
            start, fed: from `chunk`.
            made: [K], the tokens sampled at the K last positions after `start`, whatever they followed.

        Returns:
            the positions taken and their tokens. The keys and values of all tokens before `position` are then valid.
        """
        end, guided, taken = start + len(fed), self.guided, []
        offset = end + 1 - len(made)
        failed = False
        first = self.position
        while self.position <= end and not self.finished and self.guided == guided and not failed:
            position = self.position
            token = int(made[position - offset])
            taken.append((position, token))
            self.draw(token)
            failed = position < end and int(fed[position - start]) != token
        self.passes += 1
        if self.speculation is not None:
            self.speculation.drafter.saw(first, made[first - offset :])
            checked = sum(position < end for position, _ in taken)
            self.speculation.learn(len(taken), checked - failed, failed)
        for row in self._rows_of(guided):
            stop = min(taken[-1][0] if failed else end, self.position - 1)
            row.fed[start:stop] = fed[: stop - start]
            row.filled = row.start + stop
        return taken

    def draw(self, token: int) -> None:
        """Store the token sampled at `position`, and move on to the next free position."""
        self.tokens[self.position] = token
        self.position = next(self._next)
