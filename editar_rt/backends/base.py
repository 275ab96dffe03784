"""What an engine must be able to do: run a part, and step the decoder over a KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

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
