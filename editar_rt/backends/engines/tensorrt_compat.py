"""TensorRT 8.5 to 11 and TensorRT for RTX as one interface; all differences between them are handled here.

Features are detected by name, not by version, because vendors backport them and values of enumerations have changed.
The builder (`export.tensorrt_builder`) and the runtime (`tensorrt`) share this module. Tests compare it with the Python
bindings of 8.5, 8.6, 10, 11 and RTX 1.7.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from editar_rt import names
from editar_rt.errors import BackendError, OptionError

Progress = Callable[[str, int, int], None]  # (phase, steps done, steps in all)


Profile = Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]]  # least, usual and most of every input


class Library(NamedTuple):
    """A library that builds and runs engines."""

    title: str
    module: str
    install: str
    """How to install it, for messages."""


TENSORRT, RTX = "tensorrt", "rtx"
LIBRARIES = {
    TENSORRT: Library(
        "TensorRT",
        "tensorrt",
        "on a Jetson it comes with JetPack (apt install python3-libnvinfer), elsewhere run in a clone of the project: "
        'pip install ".[trt]"',
    ),
    RTX: Library("TensorRT for RTX", "tensorrt_rtx", 'run in a clone of the project: pip install ".[rtx]"'),
}
RTX_ALONE = 'capabilities = [...] in a recipe needs library = "rtx"'
SCRATCH = re.compile(r"Total Activation Memory: (\d+) bytes")  # in the builder's log
TOO_OLD = "7.5"  # Turing: TensorRT for RTX has no kernels for float32 matmuls there


FLOAT8_FROM = "8.9"  # compute capability


def has_float8(capability: str) -> bool:
    """Whether GPUs of a compute capability have 8-bit floats."""
    return tuple(map(int, capability.split("."))) >= tuple(map(int, FLOAT8_FROM.split(".")))


def load_tensorrt(library: str = TENSORRT, report: Callable[[str], None] = lambda line: None) -> TensorRT:
    """Import a library's Python module.

    Args:
        library: a key of `LIBRARIES`.

    Raises:
        BackendError: the module is not installed or does not load.
    """
    title, module, install = LIBRARIES[library]
    try:
        return TensorRT(importlib.import_module(module), report, library)
    except (ImportError, OSError) as error:
        raise BackendError(f"{title}'s Python module does not load ({error}); {install}") from None


def _has(holder: Any, name: str) -> bool:
    return hasattr(holder, name)


class TensorRT:
    """The module of a library with one interface for all versions.

    Args:
        module: tensorrt or tensorrt_rtx.
        report: called with each warning and error that the library logs.
        library: a key of `LIBRARIES`.
    """

    def __init__(self, module: Any, report: Callable[[str], None] = lambda line: None, library: str = TENSORRT) -> None:
        self.module, self.library = module, library
        self._errors: list[str] = []
        self._warnings: list[str] = []
        self._scratch = 0
        severity = module.ILogger.Severity
        serious = (severity.INTERNAL_ERROR, severity.ERROR)
        base: Any = module.ILogger

        class Log(base):  # type: ignore[misc]
            def __init__(own) -> None:
                base.__init__(own)

            def log(own, level: Any, message: str) -> None:
                if (found := SCRATCH.search(message)) is not None:
                    self._scratch = int(found[1])
                if level in (*serious, severity.WARNING):
                    (self._errors if level in serious else self._warnings).append(message.strip())
                    report(message.strip())

        self.logger = Log()

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    @property
    def title(self) -> str:
        """Name and version for users."""
        return f"{LIBRARIES[self.library].title} {self.version}"

    @property
    def builds_without_gpu(self) -> bool:
        """Whether engines are built for named compute capabilities, and finished by compilers on each GPU."""
        return _has(self.module, "ComputeCapability")

    @property
    def capabilities(self) -> dict[str, Any]:
        """The compute capabilities that engines can be built for, such as 8.6; empty if only for this machine's."""
        found = getattr(self.module, "ComputeCapability", None)
        numbers = {name[2:]: getattr(found, name) for name in dir(found) if name.startswith("SM")}
        return {f"{number[:-1]}.{number[-1]}": numbers[number] for number in sorted(numbers, key=int)}

    @property
    def updates_caches(self) -> bool:
        """Whether a cache can be updated in place, as the dialect native does: from TensorRT 10.15 on."""
        return _has(self.module, "IAttentionOutputLayer")

    @property
    def is_strongly_typed(self) -> bool:
        """Whether a network takes its types from the graph; otherwise the types are set layer by layer."""
        return _has(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def reads_int4(self) -> bool:
        """Whether matmuls with 4-bit weights and 16-bit activations are supported: from TensorRT 10 on."""
        return self.is_strongly_typed and _has(self.module.DataType, "INT4")

    @property
    def reads_8_bits(self) -> bool:
        """Whether matmuls with 8-bit weights and 16-bit activations are documented: for TensorRT for RTX."""
        return self.builds_without_gpu

    @property
    def shares_engines(self) -> bool:
        """Whether several contexts of one engine with several profiles give correct results: not in TensorRT 8."""
        return self.is_strongly_typed

    def take_errors(self) -> str:
        """The messages logged since the last call, in one line: errors, or the last warnings if there are none.

        8.5 only warns that there is no GPU.
        """
        messages = "; ".join((self._errors or self._warnings)[-3:])
        self._errors.clear()
        self._warnings.clear()
        return messages or "no reason given"

    def take_scratch(self) -> int:
        """Device memory that the last engine needs besides weights, inputs and outputs, as its builder logged it."""
        scratch, self._scratch = self._scratch, 0
        return scratch

    # Building.

    def make_builder(self) -> Any:
        """
        Raises:
            BackendError: it cannot be created, for example because a GPU or driver is missing.
        """
        return self._start(self.module.Builder)

    def make_runtime(self) -> Any:
        """The object that loads engines; errors as for `make_builder`."""
        return self._start(self.module.Runtime)

    def _start(self, kind: Any) -> Any:
        try:
            return kind(self.logger)
        except TypeError:  # pybind raises it if TensorRT returned a null pointer
            raise BackendError(f"{self.title} cannot start: {self.take_errors()}") from None

    def make_network(self, builder: Any) -> Any:
        flags = 0
        for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED"):  # the first is required in 8 and removed in 11
            if _has(self.module.NetworkDefinitionCreationFlag, name):
                flags |= 1 << int(getattr(self.module.NetworkDefinitionCreationFlag, name))
        return builder.create_network(flags)

    def parse(self, network: Any, path: Path) -> Any:
        """Read an ONNX file into a network.

        Returns:
            the parser, which owns the weights and must live as long as the network.

        Raises:
            BackendError: the parser's errors.
        """
        parser = self.module.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(path)):
            said = "; ".join(parser.get_error(i).desc() for i in range(min(parser.num_errors, 3)))
            raise BackendError(f"{self.title} could not read {path.name}: {said or self.take_errors()}")
        return parser

    def keep_types(self, network: Any, config: Any) -> bool:
        """Make the builder compute every layer in the type of its node in the graph.

        A strongly typed network does so by itself. In a weakly typed one, prefixes of the nodes' names give the type
        (`names.FP16_NODE`, `names.FP32_NODE`); helper layers that the parser adds have none; the builder decides.

        Returns:
            whether there are float16 layers.
        """
        halves = False
        types = {names.FP16_NODE: self.module.float16, names.FP32_NODE: self.module.float32}
        not_floats = (self.module.int32, self.module.bool)
        for layer in (network.get_layer(i) for i in range(network.num_layers)):
            for mark, dtype in types.items():
                if not layer.name.startswith(mark):
                    continue
                halves |= mark == names.FP16_NODE
                if self.is_strongly_typed:
                    continue
                outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
                if any(output.dtype in not_floats for output in outputs):
                    continue  # a helper that computes a shape
                layer.precision = dtype
                for i in range(len(outputs)):
                    layer.set_output_type(i, dtype)
        if halves and not self.is_strongly_typed:
            config.set_flag(self.module.BuilderFlag.FP16)
            config.set_flag(self.module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        return halves

    def split_attention(self, network: Any) -> int:
        """Let the builder compose an attention from other layers where it has no kernel for it.

        There is none for float32 with several positions; without this, the build fails.

        Returns:
            the number of attentions.
        """
        if not self.updates_caches:
            return 0
        module, found = self.module, 0
        for layer in (network.get_layer(i) for i in range(network.num_layers)):
            if layer.type == module.LayerType.ATTENTION_OUTPUT:
                layer.__class__ = module.IAttentionOutputLayer  # get_layer returns the base class
                layer.attention.decomposable = True
                found += 1
        return found

    def make_config(
        self,
        builder: Any,
        workspace: int,
        level: int | None,
        tf32: bool,
        external: bool,
        capabilities: Sequence[str] = (),
    ) -> Any:
        """A builder's configuration.

        Args:
            workspace: scratch memory that layers may use, bytes.
            level: optimization level, 0 to 5; None, and versions without levels, use the builder's default.
            tf32: whether float32 matmuls may round their inputs to 10 bits of mantissa.
            external: whether cuBLAS and cuDNN may be used, in versions that can.
            capabilities: compute capabilities to build for; none means this machine's.

        Raises:
            OptionError: it cannot build for one of the capabilities.
        """
        self.check_capabilities(capabilities)
        config, module = builder.create_builder_config(), self.module
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, workspace)
        if level is not None and _has(config, "builder_optimization_level"):
            config.builder_optimization_level = level
        if not tf32:
            config.clear_flag(module.BuilderFlag.TF32)
        if _has(module, "PreviewFeature") and _has(module.PreviewFeature, "FASTER_DYNAMIC_SHAPES_0805"):
            config.set_preview_feature(module.PreviewFeature.FASTER_DYNAMIC_SHAPES_0805, True)
        if not external and _has(module, "TacticSource"):
            sources = config.get_tactic_sources()
            for name in ("CUBLAS", "CUBLAS_LT", "CUDNN"):
                if _has(module.TacticSource, name):
                    sources &= ~(1 << int(getattr(module.TacticSource, name)))
            config.set_tactic_sources(sources)
        if self.builds_without_gpu:
            config.num_compute_capabilities = len(capabilities)
            for index, capability in enumerate(capabilities):
                config.set_compute_capability(self.capabilities[capability], index)
            # All memory is allocated before a run, so that steps can be recorded.
            config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
        return config

    def check_capabilities(self, capabilities: Sequence[str]) -> None:
        """
        Raises:
            OptionError: engines cannot be built for one of these compute capabilities, or for none by name.
        """
        if not self.builds_without_gpu:
            if capabilities:
                raise OptionError(f"{self.title} builds engines for this machine's GPU alone; {RTX_ALONE}")
            return
        known = [capability for capability in self.capabilities if capability != TOO_OLD]
        if not capabilities:
            raise OptionError(f"the recipe names no GPUs; set capabilities = [...] to some of {', '.join(known)}")
        for capability in capabilities:
            if capability not in known:
                reason = "Turing GPUs lack its float32 matmuls" if capability == TOO_OLD else "it cannot name that"
                raise OptionError(
                    f"{self.title} cannot build engines for compute capability {capability} ({reason}); it builds for "
                    f"{', '.join(known)}; for a Jetson, or for a GPU of a server, use another recipe on the device"
                )

    def watch(self, config: Any, progress: Progress) -> Any:
        """Report the builder's progress, if the version supports it.

        Returns:
            an object that must live as long as the configuration.
        """
        if not _has(self.module, "IProgressMonitor") or not _has(config, "progress_monitor"):
            return None
        base: Any = self.module.IProgressMonitor
        steps: dict[str, int] = {}

        class Monitor(base):  # type: ignore[misc]
            def __init__(own) -> None:
                base.__init__(own)

            def phase_start(own, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                steps[phase_name] = num_steps
                progress(phase_name, 0, num_steps)

            def step_complete(own, phase_name: str, step: int) -> bool:
                progress(phase_name, step + 1, steps.get(phase_name, step + 1))
                return True  # go on

            def phase_finish(own, phase_name: str) -> None:
                steps.pop(phase_name, None)

        config.progress_monitor = monitor = Monitor()
        return monitor

    @property
    def has_timings(self) -> bool:
        """Whether the builder measures kernels, so that the next build can reuse its timings."""
        return not self.builds_without_gpu

    def use_timings(self, config: Any, saved: bytes) -> Any:
        """Let the builder reuse timings that `timings` returned on this machine (may be empty). Returns its cache."""
        cache = config.create_timing_cache(saved)
        config.set_timing_cache(cache, False)
        return cache

    @staticmethod
    def timings(config: Any) -> bytes:
        """The builder's timings, for the next build."""
        cache = config.get_timing_cache()
        return bytes(cache.serialize()) if cache is not None else b""

    def add_profiles(self, builder: Any, config: Any, profiles: Sequence[Profile]) -> None:
        """Add optimization profiles."""
        for shapes in profiles:
            profile = builder.create_optimization_profile()
            for name, (least, usual, most) in shapes.items():
                profile.set_shape(name, tuple(least), tuple(usual), tuple(most))
            config.add_optimization_profile(profile)

    def build(self, builder: Any, network: Any, config: Any) -> memoryview:
        """The engine, serialized.

        Raises:
            BackendError: TensorRT's errors.
        """
        built = builder.build_serialized_network(network, config)
        if built is None:
            raise BackendError(f"{self.title} could not build the engine: {self.take_errors()}")
        return memoryview(built)

    # Running.

    def load(self, runtime: Any, engine: bytes) -> Any:
        """
        Raises:
            BackendError: TensorRT's errors.
        """
        loaded = runtime.deserialize_cuda_engine(engine)
        if loaded is None:
            raise BackendError(f"{self.title} could not load it: {self.take_errors()}")
        return loaded

    @staticmethod
    def scratch_bytes(engine: Any) -> int:
        """Device memory that a context needs besides the weights and its inputs and outputs."""
        name = "device_memory_size_v2" if _has(engine, "device_memory_size_v2") else "device_memory_size"
        return int(getattr(engine, name))

    def make_context(self, engine: Any, kernels: Kernels | None = None) -> Any:
        """A context without scratch memory; `use_scratch` sets it.

        Args:
            kernels: what was compiled for this GPU before, where a library compiles.
        """
        if self.builds_without_gpu:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(
                self.module.ExecutionContextAllocationStrategy.USER_MANAGED
            )
            # Kernels for a shape are compiled before its first run: later, they would change under a recorded one.
            strategies = self.module.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            if kernels is not None:
                kernels.use(config)
            context = engine.create_execution_context(config)
        elif _has(engine, "create_execution_context_without_device_memory"):
            context = engine.create_execution_context_without_device_memory()
        else:
            strategy = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
            context = engine.create_execution_context(strategy)
        if context is None:
            raise BackendError(f"{self.title} could not create a context: {self.take_errors()}")
        return context

    @staticmethod
    def use_scratch(context: Any, address: int, size: int) -> None:
        if _has(context, "set_device_memory"):
            context.set_device_memory(address, size)
        else:
            context.device_memory = address


class Kernels:
    """The kernels that TensorRT for RTX compiles for a GPU, for all contexts; they must outlive these.

    Args:
        saved: what `serialize` returned before, on this machine; the library ignores what does not fit it.
    """

    def __init__(self, saved: bytes) -> None:
        self._saved = saved
        self._cache: Any = None

    def use(self, config: Any) -> None:
        """Make a runtime configuration take kernels from here, and add those that it compiles."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._saved:
                self._cache.deserialize(self._saved)
        config.set_runtime_cache(self._cache)

    def serialize(self) -> bytes:
        """All kernels; empty if there are none."""
        return b"" if self._cache is None else bytes(self._cache.serialize())
