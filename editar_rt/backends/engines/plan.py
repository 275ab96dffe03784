"""The set of engines that runs a bundle: engines have fixed shapes, calls do not.

A decoder engine runs either one position in several rows (a step) or several positions of one row (a chunk). `Plan`
lists the engines; `decoder` splits each call accordingly. Each step engine has a sampler engine. Builder, runtime and
emulation share this module.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from editar_rt import names
from editar_rt.bundle.manifest import ModelInfo, TensorInfo


@dataclass(frozen=True)
class Shape:
    """One engine: a part with its symbolic dimensions fixed."""

    part: str
    rows: int = 1
    positions: int = 1

    @property
    def name(self) -> str:
        """Name of the engine's file, without suffix."""
        if self.part == names.SAMPLER:
            return f"{self.part}-{self.rows}"
        return f"{self.part}-{self.rows}x{self.positions}" if self.part == names.DECODER else self.part

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


@dataclass(frozen=True)
class Plan:
    """The decoder's engines."""

    rows: tuple[int, ...]
    """Numbers of rows of the step engines, ascending."""
    chunks: tuple[int, ...]
    """Numbers of positions of the chunk engines, ascending."""

    @classmethod
    def usual(cls, model: ModelInfo) -> Plan:
        """Steps with and without guidance, a chunk for a picture and a chunk for a text."""
        chunks = {model.picture_tokens or 1, model.text_tokens or 1}
        return cls((1, 2), tuple(sorted(chunks)))

    def shapes(self, parts: Collection[str]) -> list[Shape]:
        """Every engine of a bundle with these parts."""
        by_rows = (names.DECODER, names.SAMPLER)
        shapes = [Shape(part) for part in names.PARTS if part in parts and part not in by_rows]
        if names.DECODER in parts:
            shapes += [Shape(names.DECODER, rows=rows) for rows in self.rows]
            shapes += [Shape(names.DECODER, positions=chunk) for chunk in self.chunks if chunk > 1]
        if names.SAMPLER in parts:
            shapes += [Shape(names.SAMPLER, rows=rows) for rows in self.rows]
        return shapes

    def step(self, rows: int) -> int:
        """Rows of the engine for the first of `rows` rows: the most that fit, otherwise the smallest engine."""
        return max((r for r in self.rows if r <= rows), default=self.rows[0])

    def chunk(self, positions: int) -> int:
        """Positions of the engine for the first of `positions`: the smallest that takes all, otherwise the largest."""
        return min((c for c in self.chunks if c >= positions), default=self.chunks[-1])
