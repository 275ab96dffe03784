"""How many positions a step takes: one, or several whose tokens were drafted and are verified.

A chunk of S positions reads the weights once, so on a device that waits for its memory it costs about a step. Its
draws use the random numbers of plain steps. A drafted token that equals the drawn one was right, and the draw after it
counts too; from the first wrong one on, nothing counts. So the tokens are those of plain steps, whoever drafts.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from editar_rt.generation.sequence import Ints, Sequence


class Strategy(Protocol):
    """Drafts tokens."""

    @property
    def most(self) -> int:
        """Tokens that it drafts at most; 0 is plain steps."""

    def draft(self, sequence: Sequence, most: int) -> Ints:
        """Tokens for `sequence.position` and the positions after it, at most `most`; none for a plain step."""

    def saw(self, sequence: Sequence, position: int, drawn: Ints) -> None:
        """Learn the draws of a step from `position` on; all but the first may be of tokens that were wrong."""


class Plain:
    """One position a step."""

    most = 0

    def draft(self, sequence: Sequence, most: int) -> Ints:
        return NOTHING

    def saw(self, sequence: Sequence, position: int, drawn: Ints) -> None:
        pass


NOTHING = np.zeros(0, np.int32)
PLAIN = Plain()
