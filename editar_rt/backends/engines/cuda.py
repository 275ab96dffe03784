"""CUDA for `device.DeviceMemory`: memory, one stream, graphs; with cuda-bindings, or libcudart and ctypes.

Only C functions of the runtime are called, by name, so that both variants share one list of calls.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from editar_rt.backends.engines.device import CaptureError, Lines
from editar_rt.errors import BackendError

LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
# Values of the C enumerations, the same in every version.
OUT_OF_MEMORY, INSUFFICIENT_DRIVER, NO_DEVICE = 2, 35, 100
TO_DEVICE, TO_HOST, ON_DEVICE = 1, 2, 3
NON_BLOCKING = 1  # a stream that does not wait for the default one
RELAXED = 2  # capture lets other threads allocate
CAPABILITY = (75, 76)  # attributes: major, minor
# Number of results of each function. In C they are the first arguments, except for `RESULT_LAST`.
RESULTS = {
    "cudaDriverGetVersion": 1,
    "cudaRuntimeGetVersion": 1,
    "cudaGetDeviceCount": 1,
    "cudaGetDevice": 1,
    "cudaDeviceGetAttribute": 1,
    "cudaMemGetInfo": 2,
    "cudaMalloc": 1,
    "cudaHostAlloc": 1,
    "cudaStreamCreateWithFlags": 1,
    "cudaStreamEndCapture": 1,
    "cudaGraphInstantiateWithFlags": 1,
}
RESULT_LAST = {"cudaStreamEndCapture"}


class CudaError(BackendError):
    """A CUDA function failed."""

    def __init__(self, function: str, code: int, text: str) -> None:
        super().__init__(f"CUDA: {function} failed with error {code} ({text})")
        self.code = code


class Runtime(Protocol):
    """CUDA's runtime functions."""

    def call(self, function: str, *arguments: int) -> Any:
        """Call a function with numbers and addresses. Returns None, a number or a tuple of numbers.

        Raises:
            CudaError: the function failed.
        """

    def device_name(self, device: int) -> str: ...


class CtypesRuntime:
    """libcudart through ctypes."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.cudaGetErrorString.restype = ctypes.c_char_p

    def call(self, function: str, *arguments: int) -> Any:
        results = [ctypes.c_size_t() for _ in range(RESULTS.get(function, 0))]
        given = [ctypes.c_size_t(argument) for argument in arguments]
        pointers = [ctypes.byref(result) for result in results]
        order = (*given, *pointers) if function in RESULT_LAST else (*pointers, *given)
        self._check(function, getattr(self._library, function)(*order))
        values = tuple(result.value for result in results)
        return values[0] if len(values) == 1 else values or None

    def device_name(self, device: int) -> str:
        properties = ctypes.create_string_buffer(8192)  # a structure that begins with the name and grows with versions
        names = ("cudaGetDeviceProperties_v2", "cudaGetDeviceProperties")
        function = next(name for name in names if hasattr(self._library, name))
        self._check(function, getattr(self._library, function)(properties, ctypes.c_int(device)))
        return properties.raw[:256].split(b"\0")[0].decode(errors="replace")

    def _check(self, function: str, code: int) -> None:
        if code:
            text = self._library.cudaGetErrorString(ctypes.c_int(code)) or b"unknown"
            raise CudaError(function, code, text.decode(errors="replace"))


class BindingsRuntime:
    """The cuda-bindings package."""

    NAMES: ClassVar = {"cudaGraphInstantiateWithFlags": "cudaGraphInstantiate"}  # its names of these functions
    ENUMS: ClassVar = {  # arguments that must be members of an enumeration, by index
        "cudaMemcpyAsync": (3, "cudaMemcpyKind"),
        "cudaMemcpy2DAsync": (6, "cudaMemcpyKind"),
        "cudaStreamBeginCapture": (1, "cudaStreamCaptureMode"),
        "cudaDeviceGetAttribute": (0, "cudaDeviceAttr"),
    }
    STRUCTS: ClassVar = {"cudaMemcpy3DAsync": (0, "cudaMemcpy3DParms")}  # arguments that must be structures

    def __init__(self, module: Any) -> None:
        self._module = module

    def call(self, function: str, *arguments: int) -> Any:
        given: list[Any] = list(arguments)
        if function in self.STRUCTS:
            index, structure = self.STRUCTS[function]
            given[index] = getattr(self._module, structure)(_ptr=given[index])
        if function in self.ENUMS:
            index, enumeration = self.ENUMS[function]
            given[index] = getattr(self._module, enumeration)(given[index])
        code, *values = getattr(self._module, self.NAMES.get(function, function))(*given)
        self._check(function, code)
        numbers = tuple(int(value) for value in values)
        return numbers[0] if len(numbers) == 1 else numbers or None

    def device_name(self, device: int) -> str:
        code, properties = self._module.cudaGetDeviceProperties(device)
        self._check("cudaGetDeviceProperties", code)
        name: bytes = properties.name
        return name.split(b"\0")[0].decode(errors="replace")

    def _check(self, function: str, code: Any) -> None:
        if int(code):
            _, text = self._module.cudaGetErrorString(code)
            raise CudaError(function, int(code), text.decode(errors="replace") if text else "unknown")


def find_runtime() -> Runtime:
    """Find CUDA's runtime on this machine.

    Raises:
        BackendError: it is not installed.
    """
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return BindingsRuntime(importlib.import_module(name))
        except ImportError:
            continue
    too_new: Runtime | None = None
    for library in _libraries():
        try:
            runtime = CtypesRuntime(ctypes.CDLL(library))
            runtime.call("cudaGetDeviceCount")
        except OSError:
            continue
        except CudaError as error:
            if error.code == INSUFFICIENT_DRIVER:  # there may also be an older one
                too_new = too_new or runtime
                continue
        return runtime
    if too_new is not None:
        return too_new
    raise BackendError(
        "neither the package cuda-bindings nor CUDA's libcudart is installed; run: pip install cuda-bindings, or add "
        "the folder of libcudart.so to LD_LIBRARY_PATH"
    )


def _libraries() -> Iterator[str]:
    yield from LIBRARIES
    spec = importlib.util.find_spec("nvidia")  # where pip installs NVIDIA's libraries
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        yield from sorted(str(path) for path in Path(folder).glob("*/lib/libcudart.so.*"))


def memory_in_use() -> int | None:
    """Bytes of GPU memory that all processes use now; None if CUDA does not report it."""
    try:
        free, total = find_runtime().call("cudaMemGetInfo")
    except BackendError:
        return None
    return int(total - free)


class Device:
    """The GPU in use."""

    def __init__(self, runtime: Runtime) -> None:
        """
        Raises:
            BackendError: no GPU, or a driver that is older than the CUDA in use.
        """
        try:
            count = runtime.call("cudaGetDeviceCount")
        except CudaError as error:
            if error.code == INSUFFICIENT_DRIVER:
                raise BackendError(_old_driver(runtime)) from None
            if error.code != NO_DEVICE:
                raise
            count = 0
        if not count:
            raise BackendError("CUDA finds no GPU on this machine; check the bundle with --device emulated")
        self.index = runtime.call("cudaGetDevice")
        self.name = runtime.device_name(self.index)
        major, minor = (runtime.call("cudaDeviceGetAttribute", attribute, self.index) for attribute in CAPABILITY)
        self.capability = f"{major}.{minor}"
        self.cuda = _version(runtime.call("cudaRuntimeGetVersion"))
        self.driver = _version(runtime.call("cudaDriverGetVersion"))
        """The newest CUDA that the driver supports."""


def _old_driver(runtime: Runtime) -> str:
    driver = runtime.call("cudaDriverGetVersion")
    wanted = _version(runtime.call("cudaRuntimeGetVersion"))
    if not driver:
        return "there is no NVIDIA driver on this machine; install one, or check the bundle with --device emulated"
    return (
        f"the NVIDIA driver supports CUDA up to {_version(driver)}, but this is CUDA {wanted}; install a newer "
        "driver, or packages for the older CUDA"
    )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


class CudaMemory:
    """`device.DeviceMemory` on a GPU."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.stream: int = runtime.call("cudaStreamCreateWithFlags", NON_BLOCKING)

    def allocate(self, size: int) -> int:
        try:
            return int(self._runtime.call("cudaMalloc", size))  # at multiples of at least 256
        except CudaError as error:
            if error.code != OUT_OF_MEMORY:
                raise
            free, total = self._runtime.call("cudaMemGetInfo")
            raise BackendError(
                f"out of memory on the GPU: {size >> 20} MiB are needed, but only {free >> 20} of {total >> 20} MiB "
                "are free; close other programs that use it, edit fewer pictures at once, or use a smaller bundle"
            ) from None

    def free(self, address: int) -> None:
        self._runtime.call("cudaFree", address)

    def host_array(self, size: int) -> NDArray[Any]:
        address = self._runtime.call("cudaHostAlloc", max(size, 1), 0)
        # Zero the array: not every part is written before the first copy.
        buffer = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(buffer, self._runtime.call, "cudaFreeHost", address)  # arrays over it keep the buffer alive
        array = np.ctypeslib.as_array(buffer)
        array[:] = 0
        return array

    def zero(self, address: int, size: int) -> None:
        self._runtime.call("cudaMemsetAsync", address, 0, size, self.stream)

    def to_device(self, address: int, source: NDArray[Any]) -> None:
        self._runtime.call("cudaMemcpyAsync", address, source.ctypes.data, source.nbytes, TO_DEVICE, self.stream)

    def to_host(self, target: NDArray[Any], address: int) -> None:
        self._runtime.call("cudaMemcpyAsync", target.ctypes.data, address, target.nbytes, TO_HOST, self.stream)

    def copy_lines(self, target: Lines, source: Lines, width: int, height: int, depth: int = 1) -> None:
        if depth == 1:
            places = (target.address, target.pitch, source.address, source.pitch, width, height)
            self._runtime.call("cudaMemcpy2DAsync", *places, ON_DEVICE, self.stream)
            return
        # struct cudaMemcpy3DParms: array, position and pitched pointer of the source; the same of the target; extent.
        numbers = (
            *(0, 0, 0, 0, source.address, source.pitch, width, source.slice // source.pitch),
            *(0, 0, 0, 0, target.address, target.pitch, width, target.slice // target.pitch),
            *(width, height, depth, ON_DEVICE),
        )
        described = (ctypes.c_size_t * len(numbers))(*numbers)
        self._runtime.call("cudaMemcpy3DAsync", ctypes.addressof(described), self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        call, graph = self._runtime.call, 0
        try:
            call("cudaStreamBeginCapture", self.stream, RELAXED)
            try:
                work()
            finally:
                graph = call("cudaStreamEndCapture", self.stream)  # also after a failure
            executable = call("cudaGraphInstantiateWithFlags", graph, 0)
        except BackendError as error:
            raise CaptureError(str(error)) from None
        finally:
            if graph:
                call("cudaGraphDestroy", graph)
        return Recorded(self._runtime, executable, self.stream)

    def synchronize(self) -> None:
        self._runtime.call("cudaStreamSynchronize", self.stream)


class Recorded:
    """A CUDA graph; calling it launches the graph."""

    def __init__(self, runtime: Runtime, executable: int, stream: int) -> None:
        self._runtime, self._executable, self._stream = runtime, executable, stream
        weakref.finalize(self, runtime.call, "cudaGraphExecDestroy", executable)

    def __call__(self) -> None:
        self._runtime.call("cudaGraphLaunch", self._executable, self._stream)
