"""Speculative decoding: a pass takes several positions whose tokens were drafted and are verified.

A chunk of S positions reads the weights once, so on a memory-bound device it costs about as much as one step. Its
tokens are sampled with the random numbers of plain steps. If a drafted token equals the sampled one, the next sampled
token is valid too; from the first wrong draft on, none is. So any drafter gives the tokens of plain decoding, except
where a chunk's logits differ from a step's by rounding.

A sequence decides for itself, so that images with and without speculation share a scheduler.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from editar_rt.arguments import is_integer
from editar_rt.backends.base import DraftChunks
from editar_rt.errors import OptionError

Ints = NDArray[np.int32]
Speculate = int | Literal["auto"]

USUAL = 16  # largest size that is chosen where sizes cannot change within a picture
TRIED = (2, 4, 8, 16, 32)  # sizes among which the clock chooses
PRIOR_ACCEPTANCE = 0.7  # until drafts were verified
PRIOR_COST = 0.06  # of a further position, as a share of the cost of a step, until sizes were measured
PROBED, PROBE = 16, 4  # tokens from which a picture learns whether to speculate, in passes of this size
MEMORY = 0.1  # share of the newest outcome in the moving average of acceptance


class Drafter(Protocol):
    """Drafts target tokens of one sequence."""

    def draft(self, start: int, stop: int) -> Ints:
        """Drafts for positions `start` to `stop - 1`."""

    def saw(self, position: int, drawn: Ints) -> None:
        """Receive the tokens sampled by a pass from `position` on; those after a wrong draft are not valid."""


class Jacobi:
    """Drafts what the last pass sampled at a position; where there was none, the token of a first picture.

    Args:
        first: [N], for example the source's tokens; negative ones are drafted as 0.
    """

    def __init__(self, first: Ints) -> None:
        self._tokens = np.maximum(first, 0).astype(np.int32)

    def draft(self, start: int, stop: int) -> Ints:
        return self._tokens[start:stop]

    def saw(self, position: int, drawn: Ints) -> None:
        self._tokens[position : position + len(drawn)] = drawn


class Given:
    """Drafts given tokens [N], for example a traced picture's."""

    def __init__(self, tokens: Ints) -> None:
        self._tokens = tokens

    def draft(self, start: int, stop: int) -> Ints:
        return self._tokens[start:stop]

    def saw(self, position: int, drawn: Ints) -> None:
        pass


class Speculation:
    """How one sequence takes several positions in a pass.

    Args:
        sizes: the numbers of positions that a pass may have, even and ascending. With several, the clock chooses; all
            of them must give the same bits.
        shrinks: whether a pass may have any even number of positions below these, with the same bits.
        worth: tokens that a pass must take during the probe; 0 speculates without one. The probe has passes of one
            size, so that its outcome, and with it the bits of what follows, does not depend on the clock.
    """

    def __init__(self, drafter: Drafter, sizes: tuple[int, ...], shrinks: bool, worth: float = 0.0) -> None:
        self.drafter, self.sizes, self.shrinks = drafter, sizes, shrinks
        self._worth, self._taken, self._passes = worth, 0, 0
        self.probing = worth > 0 and PROBE in sizes
        self.plain = False
        """Whether the probe has found that speculation does not pay; the sequence then takes single steps."""
        self.acceptance = PRIOR_ACCEPTANCE
        """Moving average of the share of drafts that hold."""

    def learn(self, taken: int, held: int, failed: bool) -> None:
        """Learn from a pass that took some tokens, in which `held` drafts held, and possibly one failed."""
        self._taken, self._passes = self._taken + taken, self._passes + 1
        if self.probing and self._taken >= PROBED:
            self.probing, self.plain = False, self._taken < self._worth * self._passes
        for outcome in (*[1.0] * held, *[0.0] * failed):
            self.acceptance += MEMORY * (outcome - self.acceptance)


class Costs:
    """Measured seconds of passes, by rows and positions."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], tuple[int, float]] = {}  # number of measurements, moving average

    def add(self, rows: int, size: int, seconds: float) -> None:
        count, mean = self._seconds.get((rows, size), (0, 0.0))
        # The first two are not averaged: a shape's first run allocates memory.
        self._seconds[rows, size] = count + 1, seconds if count < 2 else 0.8 * mean + 0.2 * seconds

    def relative(self, rows: int, size: int) -> float:
        """The cost of a pass, up to a factor that is the same for all sizes.

        A size that was not measured is estimated from the nearest one that was.
        """
        measured = {s: mean for (r, s), (_, mean) in self._seconds.items() if r == rows}
        if not measured:
            return 1 + PRIOR_COST * size
        nearest = min(measured, key=lambda s: abs(s - size))
        return measured[nearest] * (1 + PRIOR_COST * size) / (1 + PRIOR_COST * nearest)


def best_size(speculations: Iterable[Speculation], costs: Costs, rows: int) -> int:
    """The number of positions with the most tokens for its cost, of those that sequences with the same choice have."""
    all_of = list(speculations)
    sizes = all_of[0].sizes
    if all_of[0].probing:
        return PROBE
    if len(sizes) == 1:
        return sizes[0]
    share = sum(each.acceptance for each in all_of) / len(all_of)
    tokens = {size: sum(share**n for n in range(size)) for size in sizes}
    return max(sizes, key=lambda size: tokens[size] / costs.relative(rows, size))


def check_speculate(speculate: object) -> None:
    """Raise OptionError if this is not None, `auto` or an even number of positions."""
    if speculate is None or (isinstance(speculate, str) and speculate == "auto"):
        return
    if not is_integer(speculate) or speculate < 2 or speculate % 2:
        raise OptionError(f"speculate must be auto or an even number of positions, 2 or more, got {speculate!r:.60}")


def sizes_for(speculate: Speculate, chunks: DraftChunks, together: bool, count: int) -> tuple[int, ...]:
    """The numbers of positions that a pass may have; empty for plain decoding.

    `auto` needs a decoder that runs both rows of a picture together, with the logits of single steps. If all sizes give
    the same bits, it follows the clock; otherwise it keeps to one size.

    Args:
        together: whether both rows of a picture go through the decoder in one run.
        count: N, target tokens.

    Raises:
        OptionError: the decoder has no chunks of this size, or a picture has too few tokens.
    """
    allowed = tuple(size for size in chunks.sizes if size <= count - 1)
    if speculate == "auto":
        if not allowed or not together or not chunks.like_steps:
            return ()
        if chunks.alike:
            return tuple(size for size in TRIED if size in allowed)
        return (max((size for size in allowed if size <= USUAL), default=allowed[0]),)
    if not allowed:
        raise OptionError("this bundle's decoder verifies no drafts; leave out speculate")
    if speculate not in allowed:
        listed = f"an even number from 2 to {allowed[-1]}" if chunks.alike else f"one of {', '.join(map(str, allowed))}"
        raise OptionError(f"speculate must be auto or {listed} for this bundle, got {speculate}")
    return (int(speculate),)
