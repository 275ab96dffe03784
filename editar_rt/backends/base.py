"""The interface between the loop and the engines: run a part, and run the decoder over a KV cache.

A `Batch` goes down and an `Output` comes back. Both consist of arrays only, so that a C header can express the same.
The caller keeps track of the cached positions: each batch gives the start of its chunks, and a smaller number rewinds.
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
    """[R], indices of rows of the cache: any subset, ascending."""
    past: NDArray[np.int32]
    """[R], cached positions to keep in each row. Its chunk is written after them and overwrites later positions."""
    counts: NDArray[np.int32]
    """[R], length of each chunk, 1 to S; the rest is padding."""
    tokens: NDArray[np.int32]
    """[R, S]; negative where the position takes its value from `states`."""
    states: Floats | None
    """Hidden states that broadcast to [R, S, D]; None if all tokens are given."""
    outputs: int
    """K: the last K positions of each chunk get logits; 1 to the smallest count."""


class Output:
    """The result of one run.

    Args:
        read: returns the logits, float32 [R, K, V]; valid until the decoder's next run.
        tokens: int32 [P, K], the tokens sampled for each picture of the `Draw`; None without a `Draw`.
    """

    __slots__ = ("logits", "tokens")

    def __init__(self, read: Callable[[], Floats], tokens: NDArray[np.int32] | None = None) -> None:
        self.logits = read
        self.tokens = tokens


class DraftChunks(NamedTuple):
    """The chunks in which a decoder verifies drafted tokens."""

    sizes: tuple[int, ...]
    """Numbers of positions that each row may have, even and ascending; empty if there are none."""
    alike: bool
    """Whether every size gives the same logits, bit by bit, for the same tokens at the same positions. If so, the size
    may follow the clock; otherwise a picture keeps to one size."""
    like_steps: bool = True
    """Whether their logits are those of single steps, but for the last bits. Otherwise drafts would change a picture's
    tokens, which `auto` must not do."""
    worth: float = 1.0
    """Tokens that a pass of four positions takes at least where speculation pays on such a device."""


class Decoder(Protocol):
    """The decoder with its KV cache."""

    @property
    def piece(self) -> int:
        """Largest recommended number of positions of a chunk, so that other pictures' steps do not wait for long."""

    def runs(self, rows: int, positions: int) -> int:
        """How many runs of the device a batch of `rows` rows with `positions` positions each, all with logits, takes.

        Each run reads all weights.
        """

    @property
    def draft_chunks(self) -> DraftChunks:
        """The chunks that verify drafts, for both rows of a picture or for one."""

    def run(self, batch: Batch, draw: Draw | None = None) -> Output:
        """Run a batch, and sample tokens from its logits if `draw` is given, on the device or on the host.

        Raises:
            OptionError: the batch exceeds the capacity of the cache.
            BackendError: the engine failed, or the logits to sample from are not finite.
        """

    def copy(self, source: int, target: int, start: int, stop: int, frozen: bool = False) -> None:
        """Copy positions `start` to `stop - 1` of row `source` to row `target`.

        Args:
            frozen: the copied positions are not expected to be written again, so the rows may share memory. If one is
                written nevertheless, the other keeps its values.
        """

    def release(self, row: int) -> None:
        """Declare that the contents of a row are no longer needed."""


class Backend(Protocol):
    """An engine that runs one bundle."""

    @property
    def name(self) -> str:
        """The engine's name for users: `ONNX Runtime 1.32 (CPU)`."""

    @property
    def device(self) -> str:
        """`cpu`, or the kind of device with the weights and the cache."""

    @property
    def needs_trial(self) -> bool:
        """Whether its engines were built elsewhere and have not been compared on this device yet (`measure.gate`)."""

    def read_bandwidth(self) -> float | None:
        """Measured read bandwidth of the device's memory, bytes per second; None if it cannot be measured."""

    def memory_in_use(self) -> int | None:
        """Bytes of the device's memory that all programs use now; None on a CPU, or if unknown."""

    def shared_bytes(self) -> int:
        """Bytes that the system now counts more than once in this process's memory because rows share pages."""

    @property
    def samplers(self) -> tuple[tuple[int, int], ...]:
        """(rows, positions) for which the device has a sampler; empty if tokens are sampled on the host."""

    def sample(self, logits: Floats, inputs: SamplerInputs) -> NDArray[np.int32]:
        """Run only the sampler, on logits [R, K, V] of a step or of drafts; (R, K) must be one of `samplers`.

        Returns:
            tokens [R, K], negative where the host must sample.

        Raises:
            MissingPartError: the bundle has no sampler.
        """

    def end_profile(self) -> Path:
        """End profiling the decoder, in a backend that was opened for it. Returns a JSON file of trace events.

        Raises:
            BackendError: the engine cannot profile.
        """

    def run(self, part: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run a feed-forward part; inputs and outputs by tensor name."""

    def make_decoder(self, rows: int, capacity: int) -> Decoder:
        """The decoder with an empty cache for `rows` rows of up to `capacity` positions."""

    def close(self) -> None:
        """Free the weights; the backend cannot be used afterwards."""
