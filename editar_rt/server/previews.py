"""When partial pictures are shown: after rows that the client asked for, within a share of the steps' time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SAVED_SECONDS = 0.25  # that may be saved up while nobody asks for partial pictures


def due(row: int, rows: int, partial_images: int) -> int:
    """How many of the partial pictures are due after `row` of `rows` rows, spread evenly; the last row has none."""
    wanted = min(partial_images, rows - 1)
    return min(row * (wanted + 1) // rows, wanted)


class Budget:
    """The time that partial pictures of all requests together may take.

    Args:
        share: of the time of the steps; from 1 on there is no limit.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._share, self._clock = share, clock
        self._saved, self._expected = 0.0, 0.0

    def expect(self, seconds: float) -> None:
        """How long the next one will take."""
        self._expected = seconds

    def earn(self, seconds: float) -> None:
        """Steps took so long."""
        most = max(SAVED_SECONDS, 2 * self._expected)
        self._saved = min(self._saved + self._share * seconds, most)

    def allows(self) -> bool:
        return self._share >= 1 or (self._share > 0 and self._saved >= self._expected)

    @contextmanager
    def spending(self) -> Iterator[list[float]]:
        """Measures the block; the list gets its seconds."""
        started, spent = self._clock(), [0.0]
        yield spent
        spent[0] = self._clock() - started
        self._saved -= spent[0]
        self._expected = spent[0]
