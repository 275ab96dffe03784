"""The device interface of this package: memory at addresses, one stream of work, and engines that use both.

All work is queued on one stream and done in order; `synchronize` waits for it. There are two implementations: CUDA and
TensorRT (`cuda`, `tensorrt`), and their emulation with NumPy and ONNX Runtime (`emulated`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from editar_rt.backends.engines.plan import Shape
from editar_rt.backends.engines.trial import Trial
from editar_rt.errors import BackendError

ALIGNMENT = 256  # bytes, of every tensor's address


def aligned(size: int) -> int:
    """A size rounded up, so that the next tensor is aligned."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class CaptureError(BackendError):
    """The work cannot be recorded; it can still be queued."""


class Lines(NamedTuple):
    """Places of lines of bytes: line j of slice i begins at address + i · slice + j · pitch."""

    address: int
    pitch: int
    slice: int = 0
    """A multiple of the pitch."""


class DeviceMemory(Protocol):
    """Memory and the stream of a device."""

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes at a multiple of `ALIGNMENT`. Returns the address.

        Raises:
            BackendError: there is not enough memory.
        """

    def free(self, address: int) -> None: ...

    def host_array(self, size: int) -> NDArray[Any]:
        """uint8 [size], zeros, in host memory that the device can copy asynchronously."""

    def zero(self, address: int, size: int) -> None: ...

    def to_device(self, address: int, source: NDArray[Any]) -> None:
        """Queue a copy of an array, which must be contiguous and stay alive until the copy is done."""

    def to_host(self, target: NDArray[Any], address: int) -> None:
        """Queue a copy into an array, under the same conditions."""

    def copy_lines(self, target: Lines, source: Lines, width: int, height: int, depth: int = 1) -> None:
        """Queue a copy of `depth` slices of `height` lines of `width` bytes."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record the work that `work` queues instead of doing it. Calling the result queues all of it at once.

        Raises:
            CaptureError: it cannot be recorded, with the reason.
        """

    def synchronize(self) -> None:
        """Wait until all queued work is done."""


class Engine(Protocol):
    """One part with fixed shapes."""

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Set addresses of tensors by name; the others stay unchanged."""

    def enqueue(self) -> None:
        """Queue one pass."""


class Engines(Protocol):
    """The engines of a bundle on one device."""

    @property
    def name(self) -> str:
        """The name of the engine library for users: `TensorRT 10.3 (Orin)`."""

    @property
    def device(self) -> str:
        """`cpu` or `tensorrt`."""

    @property
    def memory(self) -> DeviceMemory: ...

    def read_bandwidth(self) -> float | None:
        """See `base.Backend.read_bandwidth`."""

    @property
    def trial(self) -> Trial | None:
        """The result of the engines' first run on this machine, if they were built without a GPU."""

    def open(self, shape: Shape) -> Engine:
        """An engine, loaded on first use.

        Raises:
            BackendError: the engine is missing or does not run here.
        """
