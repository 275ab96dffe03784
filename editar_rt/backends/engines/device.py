"""What `delta` needs of a device: memory at addresses, one stream of work, and engines that read and write there.

Everything is queued on the one stream and done in order; `synchronize` waits for it. There are two of each: CUDA and
TensorRT's (`cuda`, `tensorrt`), and NumPy's and ONNX Runtime's stand-ins for them (`emulated`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from editar_rt.backends.engines.plan import Shape
from editar_rt.errors import BackendError

ALIGNMENT = 256  # bytes, of every tensor's address


def aligned(size: int) -> int:
    """The size rounded up, so that what lies behind begins at a good address."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class CaptureError(BackendError):
    """Work that cannot be recorded; it can still be queued."""


class DeviceMemory(Protocol):
    """Addresses and the stream."""

    def allocate(self, size: int) -> int:
        """The address of so many bytes, a multiple of `ALIGNMENT`.

        Raises:
            BackendError: what was asked for and what there is, where it is not enough.
        """

    def free(self, address: int) -> None: ...

    def host_array(self, size: int) -> NDArray[Any]:
        """uint8 [size], zeros, in host memory that a device copies from and to without a stop."""

    def zero(self, address: int, size: int) -> None: ...

    def to_device(self, address: int, source: NDArray[Any]) -> None:
        """Copy an array, which must lie in one piece and stay until it is done."""

    def to_host(self, target: NDArray[Any], address: int) -> None:
        """Fill an array, likewise."""

    def copy_2d(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        """`height` lines of `width` bytes; line i lies i · pitch bytes behind the first."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` queues, instead of doing it; calling the result queues all of it at once.

        Raises:
            CaptureError: the reason.
        """

    def synchronize(self) -> None:
        """Wait until all is done."""


class Engine(Protocol):
    """One part with fixed shapes."""

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Where tensors lie, by name; those that are not named stay where they are."""

    def enqueue(self) -> None:
        """Queue one pass."""


class Engines(Protocol):
    """The engines of a bundle on one device."""

    @property
    def name(self) -> str:
        """What runs them, for people: `TensorRT 10.3 (Orin)`."""

    @property
    def device(self) -> str:
        """`cpu` or `tensorrt`."""

    @property
    def memory(self) -> DeviceMemory: ...

    def read_bandwidth(self) -> float | None:
        """As `base.Backend.read_bandwidth`."""

    def open(self, shape: Shape) -> Engine:
        """An engine, loaded when first asked for.

        Raises:
            BackendError: it is not there or does not run here.
        """
