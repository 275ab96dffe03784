"""What an engine must be able to do: run a part, and step the decoder over a KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


class Cache(Protocol):
    """The KV cache of some rows, and the decoder over it."""

    @property
    def rows(self) -> int:
        """Rows that the next chunk must have."""

    @property
    def length(self) -> int:
        """Positions filled so far."""

    def forward(
        self, tokens: NDArray[np.int32], prefix: NDArray[np.float32], logit_positions: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Run a chunk and append it.

        Args:
            tokens: [rows, S]; negative where `prefix` is taken instead.
            prefix: hidden states that broadcast against [rows, S, D].
            logit_positions: [K], which of the S positions get logits.

        Returns:
            logits [rows, K, V]; valid until the next call.
        """

    def keep_rows(self, rows: int) -> None:
        """Go on with the first `rows` rows only."""


class Backend(Protocol):
    """One engine with one bundle."""

    @property
    def name(self) -> str:
        """What runs the graphs, for people: `ONNX Runtime 1.32 (CPU)`."""

    def run(self, part: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run a feed-forward part; inputs and outputs by tensor name."""

    def make_cache(self, rows: int, capacity: int) -> Cache:
        """An empty cache for `rows` rows of up to `capacity` positions."""
