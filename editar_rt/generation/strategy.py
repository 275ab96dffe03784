"""Strategies: a step takes one position, or several whose tokens were drafted and are verified.

A chunk of S positions reads the weights once, so on a memory-bound device it costs about as much as one step. Its
tokens are sampled with the random numbers of plain steps. If a drafted token equals the sampled one, the next sampled
token is valid too; from the first wrong draft on, none is. So every strategy gives the tokens of plain steps.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from editar_rt.generation.sequence import Ints, Sequence


class Strategy(Protocol):
    """Drafts tokens."""

    @property
    def most(self) -> int:
        """Largest number of drafted tokens; 0 means plain steps."""

    def draft(self, sequence: Sequence, most: int) -> Ints:
        """Draft at most `most` tokens for `sequence.position` and the following positions; none for a plain step."""

    def saw(self, sequence: Sequence, position: int, drawn: Ints) -> None:
        """Receive the tokens sampled by a step from `position` on; those after a wrong draft are not valid."""


class Plain:
    """One position per step."""

    most = 0

    def draft(self, sequence: Sequence, most: int) -> Ints:
        return NOTHING

    def saw(self, sequence: Sequence, position: int, drawn: Ints) -> None:
        pass


NOTHING = np.zeros(0, np.int32)
PLAIN = Plain()
