"""A decoder with a note of how far its rows are filled, which the loop keeps otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np

from editar_rt.backends.base import Backend, Batch


class FilledRows:
    """Chunks one after the other in neighbouring rows of a decoder.

    Attributes:
        lengths: [rows], positions filled; set one lower to rewind.
    """

    def __init__(self, backend: Backend, rows: int, capacity: int) -> None:
        self.decoder: Any = backend.make_decoder(rows, capacity)
        self.lengths = np.zeros(rows, np.int32)

    def forward(
        self, tokens: np.ndarray, states: np.ndarray | None = None, outputs: int = 1, first_row: int = 0
    ) -> np.ndarray:
        """Append tokens [R, S]; logits [R, outputs, V] of the last positions, until the next call."""
        rows = np.arange(first_row, first_row + len(tokens), dtype=np.int32)
        past, counts = self.lengths[rows], np.full(len(rows), tokens.shape[1], np.int32)
        logits = self.decoder.run(Batch(rows, past, counts, np.asarray(tokens, np.int32), states, outputs)).logits()
        self.lengths[rows] += counts
        return logits

    def copy_row(self, source: int, target: int, frozen: bool = False) -> None:
        self.decoder.copy(source, target, 0, int(self.lengths[source]), frozen)
        self.lengths[target] = self.lengths[source]
