"""The set of engines that runs a bundle: engines have fixed shapes, calls do not.

A decoder engine runs one position in several rows (a step), a few drafted positions in several rows, or many positions
of one row (a chunk). `Plan` lists the engines; `decoder` splits each call accordingly. Engines of steps and of drafts
have a sampler engine each. Builder, runtime and emulation share this module.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from editar_rt import names
from editar_rt.bundle.manifest import ModelInfo, TensorInfo

DRAFTS = (2, 4, 8, 16)
"""Usual lengths of drafts."""
ROW_COST = 1 / 8  # of a row in a run, as a share of what a run costs without rows: reading a cache against the weights
SPARE_ROWS = 1 / 3  # of the rows needed, that a cache may have more so that they fill an engine


@dataclass(frozen=True)
class Shape:
    """One engine: a part with its symbolic dimensions fixed."""

    part: str
    rows: int = 1
    positions: int = 1

    @property
    def name(self) -> str:
        """Name of the engine's file, without suffix."""
        if self.part not in (names.DECODER, names.SAMPLER):
            return self.part
        return f"{self.part}-{self.rows}x{self.positions}"

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each symbolic dimension. A chunk engine can return logits of all positions."""
        return {
            names.ROWS_DIM: self.rows,
            names.POSITIONS_DIM: self.positions,
            names.WANTED_DIM: self.positions,
            names.PREFIX_ROWS_DIM: self.rows,
            names.PREFIX_POSITIONS_DIM: self.positions,
        }

    def of(self, tensor: TensorInfo) -> tuple[int, ...]:
        """The fixed shape of an input or output."""
        return fixed(tensor.shape, self.sizes)


def fixed(shape: Collection[int | str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A shape whose symbolic dimensions are replaced by sizes."""
    return tuple(d if isinstance(d, int) else sizes[d] for d in shape)


def memory_type(dtype: str) -> np.dtype[Any]:
    """NumPy's type for the memory of a tensor; for bfloat16, which it lacks and nothing here computes in, uint16."""
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)


class Window(NamedTuple):
    """Neighbouring rows of the cache that one run covers; those that are not asked for are computed and ignored."""

    start: int
    """First row of the cache."""
    size: int
    """Rows of the engine."""
    served: int
    """How many of the rows asked for lie in it."""


@dataclass(frozen=True)
class Plan:
    """The decoder's engines."""

    rows: tuple[int, ...]
    """Numbers of rows of the engines that run rows side by side, ascending."""
    chunks: tuple[int, ...]
    """Numbers of positions of the chunk engines, ascending."""
    drafts: tuple[int, ...] = ()
    """Numbers of positions that rows have side by side, besides one, ascending: steps that check drafted tokens."""

    @classmethod
    def usual(cls, model: ModelInfo) -> Plan:
        """Steps and drafts with and without guidance, a chunk for a picture and a chunk for a text."""
        chunks = {model.picture_tokens or 1, model.text_tokens or 1}
        return cls((1, 2), tuple(sorted(chunks)), DRAFTS)

    def shapes(self, parts: Collection[str]) -> list[Shape]:
        """Every engine of a bundle with these parts."""
        by_rows = (names.DECODER, names.SAMPLER)
        shapes = [Shape(part) for part in names.PARTS if part in parts and part not in by_rows]
        if names.DECODER in parts:
            shapes += self.decoder_shapes
        if names.SAMPLER in parts:
            shapes += [Shape(names.SAMPLER, rows, positions) for rows, positions in self.sampled]
        return shapes

    @property
    def decoder_shapes(self) -> list[Shape]:
        """The decoder's engines: steps, drafts, chunks."""
        shapes = [Shape(names.DECODER, rows, positions) for rows, positions in self.sampled]
        shapes += [Shape(names.DECODER, 1, chunk) for chunk in self.chunks if chunk > 1]
        return list(dict.fromkeys(shapes))

    @property
    def sampled(self) -> list[tuple[int, int]]:
        """(rows, positions) of the engines from whose logits tokens are sampled: steps, and drafts."""
        return [(rows, positions) for positions in (1, *self.drafts) for rows in self.rows]

    @property
    def unused_positions(self) -> int:
        """Positions that a run writes in rows that were not asked for, where the cache is updated in place."""
        return max((1, *self.drafts)) if self.rows[-1] > 1 else 0

    def padded(self, rows: int) -> int:
        """Rows of a cache for `rows` rows: somewhat more where these fill an engine, and never less than one has."""
        most = max(rows + int(rows * SPARE_ROWS), self.rows[0])
        return max(rows, max((r for r in self.rows if r <= most), default=rows))

    def window(self, rows: Sequence[int], held: int) -> Window:
        """The engine for the first of `rows`: the one that costs least for each row that it serves.

        Args:
            rows: rows of the cache, ascending.
            held: number of rows of the cache, `padded`.
        """
        windows = []
        for size in self.rows:
            if size <= held:
                start = min(rows[0], held - size)
                windows.append(Window(start, size, sum(row < start + size for row in rows)))
        return min(windows, key=lambda window: (1 + window.size * ROW_COST) / window.served)

    def side_by_side(self, positions: int) -> int | None:
        """Positions of the engines that run up to `positions` positions in several rows together; None without any."""
        return min((d for d in (1, *self.drafts) if d >= positions), default=None)

    def runs(self, rows: int, positions: int, held: int) -> int:
        """How many runs a batch takes; `held` as in `window`."""
        runs = 0
        if positions == 1 or (rows > 1 and self.side_by_side(positions) is not None):
            done = 0
            while done < rows:
                done, runs = done + self.window(range(done, rows), held).served, runs + 1
            return runs
        while positions > 0:
            positions, runs = positions - self.chunk(positions, max(1, *self.chunks, *self.drafts)), runs + 1
        return rows * runs

    def chunk(self, positions: int, room: int) -> int:
        """Positions of the engine for the first of a row's `positions`.

        The smallest that takes all, otherwise the largest; but if none fits, one position goes as a step.

        Args:
            room: positions that an engine may write, padding included.
        """
        sizes = sorted({*self.chunks, *(self.drafts if 1 in self.rows else ())})
        fitting = [size for size in sizes if size <= room]
        return min((size for size in fitting if size >= positions), default=max(fitting, default=1))
