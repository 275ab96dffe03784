"""An emulated device: NumPy arrays and ONNX Runtime on the CPU, in place of CUDA and TensorRT.

`device="emulated"` runs `decoder` with the same offsets, copies and recorded steps as on a GPU, so that everything
except the engines can be tested without one. Addresses are those of the arrays; any other address is rejected.
"""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editar_rt import names
from editar_rt.backends.engines.device import ALIGNMENT, CaptureError, Lines
from editar_rt.backends.engines.plan import Shape
from editar_rt.backends.failures import running
from editar_rt.backends.ort.backend import OnnxRuntimeBackend
from editar_rt.backends.ort.plugin import RtxProvider
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import BackendError

Work = Callable[[], None]


class NumpyMemory:
    """`device.DeviceMemory` in host memory. Work is done immediately when it is queued."""

    def __init__(self) -> None:
        self._blocks: dict[int, NDArray[np.uint8]] = {}  # by address
        self._sizes: dict[int, int] = {}
        self._starts: list[int] = []
        self._record: list[Work] | None = None

    def allocate(self, size: int) -> int:
        try:
            block = np.full(size + ALIGNMENT, 0xFF, np.uint8)  # NaN, to detect memory that should have been zeroed
        except (MemoryError, ValueError):  # ValueError if it exceeds the largest array
            raise BackendError(f"out of memory: {size >> 20} MiB were requested") from None
        address = -(-block.ctypes.data // ALIGNMENT) * ALIGNMENT
        self._blocks[address], self._sizes[address] = block, size
        bisect.insort(self._starts, address)
        return address

    def free(self, address: int) -> None:
        del self._blocks[address], self._sizes[address]
        self._starts.remove(address)

    def host_array(self, size: int) -> NDArray[Any]:
        return np.zeros(size, np.uint8)

    def submit(self, work: Work) -> None:
        """Do the work, or record it."""
        if self._record is None:
            work()
        else:
            self._record.append(work)

    def zero(self, address: int, size: int) -> None:
        self.submit(lambda: self._bytes(address, size).fill(0))

    def to_device(self, address: int, source: NDArray[Any]) -> None:
        self.submit(lambda: np.copyto(self._bytes(address, source.nbytes), _flat(source)))

    def to_host(self, target: NDArray[Any], address: int) -> None:
        self.submit(lambda: np.copyto(_flat(target), self._bytes(address, target.nbytes)))

    def copy_lines(self, target: Lines, source: Lines, width: int, height: int, depth: int = 1) -> None:
        def lines(place: Lines) -> NDArray[np.uint8]:
            if (height > 1 and width > place.pitch) or (depth > 1 and (height - 1) * place.pitch + width > place.slice):
                raise BackendError(f"{height} lines of {width} bytes do not fit {place}")
            size = (depth - 1) * place.slice + (height - 1) * place.pitch + width
            flat = self._bytes(place.address, size)
            return np.lib.stride_tricks.as_strided(flat, (depth, height, width), (place.slice, place.pitch, 1))

        self.submit(lambda: np.copyto(lines(target), lines(source)))

    def capture(self, work: Work) -> Work:
        if self._record is not None:
            raise CaptureError("work is being recorded already")
        recorded = self._record = []
        try:
            work()
        finally:
            self._record = None

        def replay() -> None:
            for each in recorded:
                each()

        return replay

    def synchronize(self) -> None:
        if self._record is not None:
            raise CaptureError("waiting cannot be recorded")

    def check(self, address: int, size: int) -> None:
        """Reject a range that is not inside one allocated block."""
        place = bisect.bisect_right(self._starts, address) - 1
        if place < 0 or address + size > self._starts[place] + self._sizes[self._starts[place]]:
            raise BackendError(f"{size} bytes at {address:#x} are not inside an allocated block")

    def read(self, address: int, size: int) -> NDArray[np.uint8]:
        """A copy of bytes, uint8 [size]."""
        return self._bytes(address, size).copy()

    def _bytes(self, address: int, size: int) -> NDArray[np.uint8]:
        self.check(address, size)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def _flat(array: NDArray[Any]) -> NDArray[np.uint8]:
    if not array.flags.c_contiguous:
        raise BackendError("an array to copy must be contiguous")
    return array.reshape(-1).view(np.uint8)


class OnnxRuntimeEngine:
    """`device.Engine`: a session with fixed shapes and addresses.

    Where the cache is updated in place, it is checked as TensorRT would rely on it: past and present have one address,
    and no chunk is written behind the capacity.
    """

    def __init__(self, session: Any, shape: Shape, bundle: Bundle, memory: NumpyMemory) -> None:
        part = bundle.manifest.parts[shape.part]
        self._session, self._memory, self._part, self._shape = session, memory, shape.part, shape
        self._inputs = {tensor.name: (np.dtype(tensor.dtype), shape.of(tensor)) for tensor in part.inputs}
        self._outputs = {tensor.name: (np.dtype(tensor.dtype), shape.of(tensor)) for tensor in part.outputs}
        self._aliased = {names.present_of(name): name for name in self._inputs} if shape.part == names.DECODER else {}
        self._aliased = {present: past for present, past in self._aliased.items() if present in self._outputs}
        self._addresses: dict[str, int] = {}
        self._binding: Any = None

    def bind(self, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            dtype, shape = (self._inputs | self._outputs)[name]
            self._memory.check(address, int(np.prod(shape)) * dtype.itemsize)
            if address % ALIGNMENT:
                raise BackendError(f"{name} is at {address:#x}, which is not a multiple of {ALIGNMENT}")
            self._addresses[name] = address
        self._binding = None

    def enqueue(self) -> None:
        if self._binding is None:
            for present, past in self._aliased.items():
                if self._addresses[present] != self._addresses[past]:
                    raise BackendError(f"{present} must have the address of {past}, which is updated in place")
            binding = self._session.io_binding()
            with running(self._part):
                for name, (dtype, shape) in self._inputs.items():
                    binding.bind_input(name, "cpu", 0, dtype, shape, self._addresses[name])
                for name, (dtype, shape) in self._outputs.items():
                    binding.bind_output(name, "cpu", 0, dtype, shape, self._addresses[name])
            self._binding = binding
        binding, lengths = self._binding, self._addresses.get(names.PAST_LENGTH, 0)  # recorded work keeps its addresses
        run = running(self._part)(self._session.run_with_iobinding)

        def work() -> None:
            if self._aliased:
                self._check_written(lengths)
            run(binding)

        self._memory.submit(work)

    def _check_written(self, address: int) -> None:
        """Reject lengths behind which the engine's positions do not fit the cache; TensorRT would write elsewhere."""
        capacity, positions = self._inputs[names.past_key(0)][1][2], self._shape.positions
        lengths = self._memory.read(address, 4 * self._shape.rows).view(np.int32)
        if ((lengths < 0) | (lengths + positions > capacity)).any():
            raise BackendError(f"{positions} positions behind {lengths.tolist()} do not fit the capacity {capacity}")


class EmulatedEngines:
    """`device.Engines` of ONNX Runtime's sessions; all shapes of a part share one."""

    device = "cpu"
    trial = None

    def __init__(self, bundle: Bundle, threads: int | None = None, cache: bool = False) -> None:
        self._bundle = bundle
        self._sessions = OnnxRuntimeBackend(bundle, "cpu", threads, cache)
        self._memory = NumpyMemory()

    @property
    def name(self) -> str:
        return f"{self._sessions.name}, emulating TensorRT"

    def read_bandwidth(self) -> float | None:
        return self._sessions.read_bandwidth()

    @property
    def memory(self) -> NumpyMemory:
        return self._memory

    def open(self, shape: Shape) -> OnnxRuntimeEngine:
        return OnnxRuntimeEngine(self._sessions.session(shape.part), shape, self._bundle, self._memory)


class ProviderEngines(EmulatedEngines):
    """The same, where ONNX Runtime's plug-in provider runs the sessions on a GPU.

    Caches stay in host memory, so that each run copies its inputs to the GPU and its outputs back.

    Raises:
        BackendError: the provider cannot be used here (`RtxProvider.find`), or the cache is bfloat16.
    """

    device = "tensorrt"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        if bundle.manifest.precision == "bf16":
            raise BackendError("ONNX Runtime's provider keeps caches in host memory, where NumPy has no bfloat16")
        super().__init__(bundle, threads, cache=False)
        self._sessions.plugin = RtxProvider.find(self._sessions.ort)

    @property
    def name(self) -> str:
        return f"{self._sessions.name}, caches in host memory"

    def read_bandwidth(self) -> float | None:
        return None  # host memory's would be no limit of a GPU's steps
