"""TensorRT for `device.Engines`: runs the engines that `python -m export tensorrt` built on this device.

Every engine has one context. All contexts share one block of scratch memory, because they run one after the other on
one stream. `tensorrt_compat` handles differences between versions, and `folder` the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editar_rt import machine as machines
from editar_rt.backends.engines.device import DeviceMemory, Lines
from editar_rt.backends.engines.folder import (
    BuildInfo,
    check_build,
    find_folders,
    read_build,
    read_engine,
    rebuild_command,
)
from editar_rt.backends.engines.plan import Shape
from editar_rt.backends.engines.tensorrt_compat import TensorRT, import_tensorrt
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import BackendError


class Machine:
    """A GPU with TensorRT; `stream` is the handle of the stream that `memory` uses."""

    def __init__(
        self, tensorrt: TensorRT, memory: DeviceMemory, stream: int, gpu: str, capability: str, cuda: str
    ) -> None:
        self.tensorrt, self.memory, self.stream = tensorrt, memory, stream
        self.gpu, self.capability, self.cuda = gpu, capability, cuda

    @property
    def name(self) -> str:
        return f"TensorRT {self.tensorrt.version} ({self.gpu})"


def this_machine() -> Machine:
    """
    Raises:
        BackendError: TensorRT, CUDA or a GPU is missing, or the driver is too old.
    """
    from editar_rt.backends.engines.cuda import CudaMemory, Device, find_runtime

    tensorrt = TensorRT(import_tensorrt())
    runtime = find_runtime()
    device = Device(runtime)
    memory = CudaMemory(runtime)
    return Machine(tensorrt, memory, memory.stream, device.name, device.capability, device.cuda)


class TensorRTEngine:
    """`device.Engine`: an execution context."""

    def __init__(self, machine: Machine, context: Any, name: str) -> None:
        self._machine, self._context, self._name = machine, context, name

    def bind(self, addresses: Mapping[str, int]) -> None:
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise BackendError(f"the engine {self._name} has no tensor {name}; build the engines again")

    def enqueue(self) -> None:
        if not self._context.execute_async_v3(self._machine.stream):
            raise BackendError(f"the engine {self._name} does not run: {self._machine.tensorrt.take_errors()}")


class TensorRTEngines:
    """See the module's docstring and `device.Engines`."""

    def __init__(self, bundle: Bundle, folder: Path, info: BuildInfo, machine: Machine) -> None:
        self.info, self._bundle, self._folder, self._machine = info, bundle, folder, machine
        self._runtime = machine.tensorrt.make_runtime()
        self._loaded: dict[str, Any] = {}  # by file
        # Allocated for the largest engine before any is loaded, because recorded steps keep the address.
        self._scratch_bytes = max((engine.scratch_bytes for engine in info.engines.values()), default=0)
        self._scratch = machine.memory.allocate(self._scratch_bytes) if self._scratch_bytes else 0

    device = "tensorrt"

    @property
    def name(self) -> str:
        return self._machine.name

    def read_bandwidth(self) -> float | None:
        """Measured with copies on the device."""
        memory = self.memory
        block = memory.allocate(2 * machines.COPIED_BYTES)

        def copy(size: int) -> None:
            memory.copy_lines(Lines(block + machines.COPIED_BYTES, size), Lines(block, size), size, 1)
            memory.synchronize()

        try:
            return machines.copy_bandwidth(copy)
        finally:
            memory.free(block)

    @property
    def memory(self) -> DeviceMemory:
        return self._machine.memory

    def open(self, shape: Shape) -> TensorRTEngine:
        tensorrt, command = self._machine.tensorrt, rebuild_command(self._bundle, self.info.target)
        info = self.info.engines.get(shape.name)
        if info is None:
            raise BackendError(f"{self._folder} has no engine {shape.name}; run: {command}")
        if info.file not in self._loaded:
            data = read_engine(self._folder, self.info, info.file, self._bundle)
            try:
                self._loaded[info.file] = tensorrt.load(self._runtime, data)
            except BackendError as error:
                raise BackendError(f"the engine {self._folder / info.file}: {error}; run: {command}") from None
        engine = self._loaded[info.file]
        if tensorrt.scratch_bytes(engine) > self._scratch_bytes:
            raise BackendError(f"the engine {info.file} needs more memory than its build.json says; run: {command}")
        context = tensorrt.make_context(engine)
        if self._scratch:
            tensorrt.use_scratch(context, self._scratch, self._scratch_bytes)
        if engine.num_optimization_profiles > 1:
            context.set_optimization_profile_async(info.profile, self._machine.stream)
        part = self._bundle.manifest.parts[shape.part]
        if any(d < 0 for tensor in part.inputs for d in engine.get_tensor_shape(tensor.name)):
            for tensor in part.inputs:
                context.set_input_shape(tensor.name, shape.of(tensor))
        return TensorRTEngine(self._machine, context, info.file)


def open_engines(bundle: Bundle, machine: Machine | None = None) -> TensorRTEngines:
    """Open the engines in a bundle that were built for this machine.

    Args:
        machine: None means `this_machine()`.

    Raises:
        BackendError: there are none for this machine, with the command that builds them.
    """
    folders = find_folders(bundle)
    if not folders:
        raise BackendError(
            f"the bundle {bundle.folder} has no engines; build them on this device with: "
            f"{rebuild_command(bundle, 'TARGET').removesuffix(' --force')}, where TARGET is a recipe in engines/; to "
            "check the bundle on the CPU, slowly and without TensorRT, choose --device emulated"
        )
    machine = machine or this_machine()
    reasons = []
    for folder in folders:
        try:
            info = read_build(folder)
            check_build(info, folder, bundle, machine.tensorrt.version, machine.gpu, machine.capability)
        except BackendError as error:
            reasons.append(str(error))
            continue
        return TensorRTEngines(bundle, folder, info, machine)
    raise BackendError("; ".join(reasons))
