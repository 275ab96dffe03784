"""The seam between the loop and the engines: run a part, and run the decoder over a KV cache.

A `Batch` goes down and an `Output` comes back: arrays alone, so that a C header can say the same. How far a row is
filled is the caller's to know: each batch says where its chunks begin, and rewinding is a smaller number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from editar_rt.backends.sampler import SamplerInputs
from editar_rt.generation.sampling import Draw

Arrays = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float32]


class Batch(NamedTuple):
    """One run of the decoder: R rows of the cache, each with a chunk of up to S positions."""

    rows: NDArray[np.int32]
    """[R], rows of the cache: any, each once, ascending."""
    past: NDArray[np.int32]
    """[R], positions that stay in each row. Its chunk is written from there on, over whatever was there."""
    counts: NDArray[np.int32]
    """[R], positions of each chunk that count, 1 to S; the rest is padding."""
    tokens: NDArray[np.int32]
    """[R, S]; negative where `states` is taken instead."""
    states: Floats | None
    """Hidden states that broadcast against [R, S, D]; None where all tokens are given."""
    outputs: int
    """K, how many of each chunk's last positions get logits; at least 1 and at most the smallest count."""


class Output:
    """The result of one run.

    Args:
        read: gives the logits, float32 [R, K, V]; valid until the decoder's next run.
        tokens: int32 [P, K], what was drawn for each picture of the `Draw`; None where nothing was.
    """

    __slots__ = ("logits", "tokens")

    def __init__(self, read: Callable[[], Floats], tokens: NDArray[np.int32] | None = None) -> None:
        self.logits = read
        self.tokens = tokens


class Decoder(Protocol):
    """The decoder and its KV cache of some rows."""

    @property
    def piece(self) -> int:
        """Positions that a chunk should have at most, so that other pictures' steps need not wait for long."""

    def run(self, batch: Batch, draw: Draw | None = None) -> Output:
        """Run a batch, and draw tokens from its logits, where they are or on the host.

        Raises:
            OptionError: more positions than the cache has room for.
            BackendError: the engine failed, or logits are not finite where tokens are drawn.
        """

    def copy(self, source: int, target: int, start: int, stop: int, frozen: bool = False) -> None:
        """Make positions `start` to `stop - 1` of row `target` those of row `source`.

        Args:
            frozen: neither row's are expected to be written again, so that they may be one memory. If one is
                written nevertheless, the other keeps what it had.
        """

    def release(self, row: int) -> None:
        """Say that nothing in a row is needed any more."""


class Backend(Protocol):
    """One engine with one bundle."""

    @property
    def name(self) -> str:
        """The engine, for people: `ONNX Runtime 1.32 (CPU)`."""

    @property
    def device(self) -> str:
        """`cpu`, or the kind of device that holds weights and cache."""

    def read_bandwidth(self) -> float | None:
        """Bytes a second that the device reads from its memory, measured; None where that is not possible."""

    def memory_in_use(self) -> int | None:
        """Bytes of the device's memory that all programs take now; None on a CPU, and where that is not known."""

    def shared_bytes(self) -> int:
        """Bytes that the system counts more than once in this process's memory now, as rows share pages."""

    @property
    def sampler_rows(self) -> tuple[int, ...]:
        """For how many rows of logits there is a sampler; none where tokens are drawn on the host."""

    def sample(self, logits: Floats, inputs: SamplerInputs) -> NDArray[np.int32]:
        """The sampler alone, on logits [R, V] as of a step of R rows; R is one of `sampler_rows`.

        Returns:
            tokens [R], negative where the host must draw.

        Raises:
            MissingPartError: there is no sampler.
        """

    def end_profile(self) -> Path:
        """The profile of the decoder, a JSON file of trace events, from a backend that was opened to make one.

        Raises:
            BackendError: the engine makes none.
        """

    def run(self, part: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run a feed-forward part; inputs and outputs by tensor name."""

    def make_decoder(self, rows: int, capacity: int) -> Decoder:
        """The decoder with an empty cache for `rows` rows of up to `capacity` positions."""

    def close(self) -> None:
        """Free the weights; nothing can be run afterwards."""
