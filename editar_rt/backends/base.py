"""What an engine must be able to do: run a part, and step the decoder over a KV cache; some draw tokens too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from editar_rt.generation.sampling import Draw

Arrays = Mapping[str, NDArray[Any]]


class Cache(Protocol):
    """The KV cache of some rows, and the decoder over it."""

    lengths: NDArray[np.int32]
    """[rows], positions filled so far. Set one lower to rewind: what lies behind is written over."""

    def forward(
        self,
        tokens: NDArray[np.int32],
        prefix: NDArray[np.float32],
        logit_positions: NDArray[np.int32],
        first_row: int = 0,
    ) -> NDArray[np.float32]:
        """Run a chunk through some rows of the cache and append it there.

        Args:
            tokens: [R, S], for rows first_row to first_row + R - 1; negative where `prefix` is taken instead.
            prefix: hidden states that broadcast against [R, S, D].
            logit_positions: [K], which of the S positions get logits.

        Returns:
            logits [R, K, V]; valid until the next call.
        """

    def copy_row(self, source: int, target: int, frozen: bool = False) -> None:
        """Make row `target` what row `source` is.

        Args:
            frozen: what both hold then is never written again, so that they may be one memory.
        """


class Drawn(NamedTuple):
    """What a step on a device has drawn."""

    tokens: NDArray[np.int32]
    """[R]; negative where the host must draw, because rounding might decide."""
    logits: Callable[[], NDArray[np.float32]]
    """Reads the step's logits [R, V] from the device; until the cache's next call."""


@runtime_checkable
class DrawingCache(Cache, Protocol):
    """A cache whose device can draw the next tokens itself, so that logits need not come to the host."""

    @property
    def draws(self) -> bool:
        """Whether it can with some settings."""

    def draw(
        self, tokens: NDArray[np.int32], null_rows: NDArray[np.int32], draw: Draw, first_row: int = 0
    ) -> Drawn | None:
        """`forward` of one position, and what `editar_rt.generation.sampling` draws from its logits.

        Args:
            tokens: [R, 1], none negative.
            null_rows: [R], the place among these rows of each one's row without the text; the own one where nothing
                is guided.
            draw: with numbers for R rows.

        Returns:
            None where this cannot be drawn here; nothing has run then.
        """


class Backend(Protocol):
    """One engine with one bundle."""

    @property
    def name(self) -> str:
        """What runs the graphs, for people: `ONNX Runtime 1.32 (CPU)`."""

    @property
    def device(self) -> str:
        """`cpu`, or what else holds weights and cache."""

    def read_bandwidth(self) -> float | None:
        """Bytes a second that the device reads from its memory, measured; None where that cannot be."""

    def run(self, part: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run a feed-forward part; inputs and outputs by tensor name."""

    def make_cache(self, rows: int, capacity: int) -> Cache:
        """An empty cache for `rows` rows of up to `capacity` positions."""
