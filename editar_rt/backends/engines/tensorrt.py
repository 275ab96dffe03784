"""TensorRT and TensorRT for RTX for `device.Engines`: run the engines that `python -m export tensorrt` built.

Every engine has one context. All contexts share one block of scratch memory, because they run one after the other on
one stream. `tensorrt_compat` handles differences between versions, and `folder` the files.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editar_rt import machine as machines
from editar_rt.backends.engines import kept_kernels
from editar_rt.backends.engines.device import DeviceMemory, Lines
from editar_rt.backends.engines.folder import (
    BuildInfo,
    check_build,
    find_folders,
    read_build,
    read_engine,
    rebuild_command,
    without_engines,
)
from editar_rt.backends.engines.plan import Shape
from editar_rt.backends.engines.tensorrt_compat import TENSORRT, Kernels, TensorRT, load_tensorrt
from editar_rt.backends.engines.trial import Trial
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import BackendError


class Machine:
    """A GPU with TensorRT or TensorRT for RTX; `stream` is the handle of the stream that `memory` uses."""

    def __init__(
        self,
        tensorrt: TensorRT,
        memory: DeviceMemory,
        stream: int,
        gpu: str,
        capability: str,
        cuda: str,
        driver: str = "",
    ) -> None:
        self.tensorrt, self.memory, self.stream = tensorrt, memory, stream
        self.gpu, self.capability, self.cuda, self.driver = gpu, capability, cuda, driver

    @property
    def name(self) -> str:
        return f"{self.tensorrt.title} ({self.gpu})"

    @property
    def facts(self) -> dict[str, str]:
        """What the behaviour of engines depends on."""
        return {
            "gpu": self.gpu,
            "compute_capability": self.capability,
            "driver": self.driver,
            "tensorrt": self.tensorrt.version,
        }


def this_machine(library: str = TENSORRT) -> Machine:
    """
    Args:
        library: a key of `LIBRARIES`.

    Raises:
        BackendError: the library, CUDA or a GPU is missing, or the driver is too old.
    """
    from editar_rt.backends.engines.cuda import CudaMemory, Device, find_runtime

    tensorrt = load_tensorrt(library)
    runtime = find_runtime()
    device = Device(runtime)
    memory = CudaMemory(runtime)
    return Machine(tensorrt, memory, memory.stream, device.name, device.capability, device.cuda, device.driver)


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

    def __init__(
        self, bundle: Bundle, folder: Path, info: BuildInfo, machine: Machine, trial: Trial | None = None
    ) -> None:
        self.info, self._bundle, self._folder, self._machine = info, bundle, folder, machine
        self.trial = trial
        self._runtime = machine.tensorrt.make_runtime()
        self._loaded: dict[str, Any] = {}  # by file
        self._kernels: Kernels | None = None
        # Allocated for the largest engine before any context, because recorded steps keep the address.
        self._scratch_bytes = max((engine.scratch_bytes for engine in info.engines.values()), default=0)
        if machine.tensorrt.builds_without_gpu:  # a machine that only builds does not learn how much they need
            files = dict.fromkeys(engine.file for engine in info.engines.values())
            needed = [machine.tensorrt.scratch_bytes(self._engine(file)) for file in files]
            self._scratch_bytes = max(needed, default=0)
            self._keep_kernels()
        self._scratch = machine.memory.allocate(self._scratch_bytes) if self._scratch_bytes else 0

    def _keep_kernels(self) -> None:
        """Take the kernels that were compiled before, and keep those of now when this is no longer used."""
        identity = [file.sha256 for file in self.info.files.values()] + list(self._machine.facts.values())
        folder = kept_kernels.place(identity)
        saved = kept_kernels.read(folder)
        self._kernels = Kernels(saved)
        weakref.finalize(self, kept_kernels.keep, folder, self._kernels, len(saved))

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
        engine = self._engine(info.file)
        if tensorrt.scratch_bytes(engine) > self._scratch_bytes:
            raise BackendError(f"the engine {info.file} needs more memory than its build.json says; run: {command}")
        context = tensorrt.make_context(engine, self._kernels)
        if self._scratch:
            tensorrt.use_scratch(context, self._scratch, self._scratch_bytes)
        if engine.num_optimization_profiles > 1:
            context.set_optimization_profile_async(info.profile, self._machine.stream)
        part = self._bundle.manifest.parts[shape.part]
        if any(d < 0 for tensor in part.inputs for d in engine.get_tensor_shape(tensor.name)):
            for tensor in part.inputs:
                context.set_input_shape(tensor.name, shape.of(tensor))
        return TensorRTEngine(self._machine, context, info.file)

    def _engine(self, file: str) -> Any:
        """A file's engine, loaded on first use."""
        if file not in self._loaded:
            data = read_engine(self._folder, self.info, file, self._bundle)
            try:
                self._loaded[file] = self._machine.tensorrt.load(self._runtime, data)
            except BackendError as error:
                command = rebuild_command(self._bundle, self.info.target)
                raise BackendError(f"the engine {self._folder / file}: {error}; run: {command}") from None
        return self._loaded[file]


def open_engines(bundle: Bundle, machine: Machine | None = None) -> TensorRTEngines:
    """Open the engines in a bundle that were built for this machine.

    Args:
        machine: None means `this_machine()`.

    Raises:
        BackendError: there are none for this machine, with the command that builds them.
    """
    folders = find_folders(bundle)
    if not folders:
        raise BackendError(without_engines(bundle))
    reasons = []
    for folder in folders:
        try:
            info = read_build(folder)
            here = machine or this_machine(info.library)
            check_build(info, folder, bundle, here.tensorrt, here.gpu, here.capability)
            trial = Trial(bundle, folder, info, here.facts)
        except BackendError as error:
            reasons.append(str(error))
            continue
        return TensorRTEngines(bundle, folder, info, here, trial)
    raise BackendError("; ".join(dict.fromkeys(reasons)))
