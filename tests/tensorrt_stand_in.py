"""A module in place of tensorrt: any version's names over ONNX Runtime, for machines without a GPU.

Classes have the attributes that the real Python bindings of a version have (`runtime/tensorrt_api.json`) and refuse all
others, so builder and runtime meet every version's interface. What they do is small: an "engine" is a description of a
graph with fixed shapes, and running it is running the graph at the addresses that were bound.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime

from editar_rt.backends.engines.emulated import NumpyMemory
from editar_rt.backends.engines.tensorrt import Machine
from editar_rt.backends.engines.tensorrt_compat import RTX, TENSORRT, TensorRT
from editar_rt.backends.ort.backend import WEIGHT_ONLY

API: dict[str, dict[str, list[str]]] = json.loads((Path(__file__).parent / "runtime/tensorrt_api.json").read_text())
RTX_VERSION = "1.7.1.116"  # of TensorRT for RTX
VERSIONS = [version for version in API if version != RTX_VERSION]
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32}
SCRATCH = 4096


class World:
    """What lies behind a stand-in's module: memory, what was asked of it, what goes wrong."""

    def __init__(self) -> None:
        self.memory = NumpyMemory()
        self.calls: list[str] = []
        self.spoil: Callable[[str, dict[str, np.ndarray]], None] = lambda name, outputs: None
        """Changes an engine's outputs; its name is that of its graph and of the tokens' shape."""
        self.cannot_start = False
        self.kernels: list[str] = []
        """What contexts of TensorRT for RTX have compiled, and what they found in the cache that they were given."""


def make_module(version: str, world: World) -> Any:
    """The module of a version."""
    api = API[version]

    class Real:
        """Has the attributes of the real class of its name, and whatever begins with an underscore."""

        kind: ClassVar = ""

        def __getattribute__(self, name: str) -> Any:
            kind = type(self).kind
            if kind and not name.startswith("_") and name != "kind" and name not in api[kind]:
                raise AttributeError(f"{kind} of TensorRT {version} has no {name}")
            return object.__getattribute__(self, name)

        def __setattr__(self, name: str, value: Any) -> None:
            kind = type(self).kind
            if not name.startswith("_") and name not in api[kind]:
                raise AttributeError(f"{kind} of TensorRT {version} has no {name}")
            object.__setattr__(self, name, value)

    def enumeration(name: str) -> Any:
        members = [member for member in api[name] if member.isupper()]
        return enum.IntEnum(name, {member: number for number, member in enumerate(members)})

    enums = {
        name: enumeration(name)
        for name in api
        if name.endswith(("Flag", "Type", "Source", "Feature", "Strategy", "Capability"))
    }

    class ILogger:
        Severity = enum.IntEnum("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4})

    class ITensor(Real):
        kind = "ITensor"

        def __init__(self, name: str, shape: tuple[Any, ...], dtype: Any) -> None:
            self.name, self.shape, self.dtype = name, shape, dtype

    class ILayer(Real):
        kind = "ILayer"

        def __init__(self, name: str, dtypes: list[Any], operator: str) -> None:
            self.name, self.num_outputs, self._operator = name, len(dtypes), operator
            self._outputs = [ITensor("", (), dtype) for dtype in dtypes]
            self._given: list[Any] = []

        @property
        def type(self) -> Any:
            kinds = enums["LayerType"]
            return kinds.ATTENTION_OUTPUT if self._operator == "Attention" else kinds.ELEMENTWISE

        def get_output(self, index: int) -> Any:
            return self._outputs[index]

        def set_output_type(self, index: int, dtype: Any) -> None:
            self._given.append(dtype)

    class IAttention(Real):
        kind = "IAttention"

        def __setattr__(self, name: str, value: Any) -> None:
            world.calls.append(f"attention {name} {value}")
            super().__setattr__(name, value)

    class IAttentionOutputLayer(ILayer):
        kind = "IAttentionOutputLayer"

        @property
        def attention(self) -> Any:
            return IAttention()

    class INetworkDefinition(Real):
        kind = "INetworkDefinition"

        def __init__(self, flags: int) -> None:
            self._flags, self._inputs, self._layers, self._path = flags, [], [], ""

        @property
        def num_inputs(self) -> int:
            return len(self._inputs)

        @property
        def num_layers(self) -> int:
            return len(self._layers)

        def get_input(self, index: int) -> Any:
            return self._inputs[index]

        def get_layer(self, index: int) -> Any:
            return self._layers[index]

    class ParserError(Real):
        kind = "ParserError"

        def desc(self) -> str:
            return "it is not ONNX"

    class OnnxParser(Real):
        kind = "OnnxParser"

        def __init__(self, network: Any, logger: Any) -> None:
            self._network, self._errors = network, []

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> Any:
            return self._errors[index]

        def parse_from_file(self, path: str) -> bool:
            world.calls.append(f"parse {Path(path).name}")
            try:
                graph = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False)).graph
            except Exception:  # protobuf's own
                self._errors.append(ParserError())
                return False
            found = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
            types = {1: module.float32, 10: module.float16, 9: module.bool}
            self._network._path = path
            for value in graph.input:
                shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)
                self._network._inputs.append(ITensor(value.name, shape, None))
            for node in graph.node:
                dtypes = [types.get(found.get(name, 0), module.int32) for name in node.output]
                self._network._layers.append(ILayer(node.name, dtypes, node.op_type))
            return True

    class ITimingCache(Real):
        kind = "ITimingCache"

        def __init__(self, saved: bytes) -> None:
            self._saved = saved

        def serialize(self) -> bytes:
            return self._saved + b"."

    class IBuilderConfig(Real):
        kind = "IBuilderConfig"

        def __init__(self) -> None:
            self._flags: set[Any] = set()
            self._profiles: list[Any] = []
            if "progress_monitor" in api["IBuilderConfig"]:
                self.progress_monitor = None
            if "builder_optimization_level" in api["IBuilderConfig"]:
                self.builder_optimization_level = 3

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            world.calls.append(f"{pool.name} {size}")

        def set_flag(self, flag: Any) -> None:
            self._flags.add(flag.name)

        def set_compute_capability(self, capability: Any, index: int) -> bool:
            assert index < self.num_compute_capabilities
            world.calls.append(f"for {capability.name}")
            return True

        def clear_flag(self, flag: Any) -> None:
            world.calls.append(f"clear {flag.name}")

        def set_preview_feature(self, feature: Any, on: bool) -> None:
            world.calls.append(f"{feature.name} {on}")

        def get_tactic_sources(self) -> int:
            return (1 << len(enums["TacticSource"])) - 1

        def set_tactic_sources(self, sources: int) -> None:
            world.calls.append("sources " + " ".join(s.name for s in enums["TacticSource"] if sources >> s & 1))

        def create_timing_cache(self, saved: bytes) -> Any:
            return ITimingCache(saved)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self._cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

        def add_optimization_profile(self, profile: Any) -> int:
            self._profiles.append(profile)
            return len(self._profiles) - 1

    class IOptimizationProfile(Real):
        kind = "IOptimizationProfile"

        def __init__(self) -> None:
            self._shapes: dict[str, Any] = {}

        def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
            assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
            self._shapes[name] = usual if least == most else (least, usual, most)

    class Builder(Real):
        kind = "Builder"

        def __init__(self, logger: Any) -> None:
            self._logger = logger
            if world.cannot_start:
                logger.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def create_network(self, flags: int) -> Any:
            names = [flag.name for flag in enums["NetworkDefinitionCreationFlag"] if flags >> flag & 1]
            world.calls.append("network " + " ".join(names))
            return INetworkDefinition(flags)

        def create_builder_config(self) -> Any:
            return IBuilderConfig()

        def create_optimization_profile(self) -> Any:
            return IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            shapes = [p._shapes for p in config._profiles] or [{t.name: t.shape for t in network._inputs}]
            assert all(np.min(shape, initial=1) > 0 for each in shapes for shape in each.values()), (
                "a shape is left open"
            )
            monitor = getattr(config, "progress_monitor", None)
            if monitor is not None:
                monitor.phase_start("Building Engine", None, 2)
                assert monitor.step_complete("Building Engine", 0) and monitor.step_complete("Building Engine", 1)
                monitor.phase_finish("Building Engine")
            given = {layer.name: [int(t) for t in layer._given] for layer in network._layers if layer._given}
            described = {
                "path": network._path,
                "shapes": shapes,
                "profiles": len(config._profiles),
                "flags": sorted(config._flags),
                "types": given,
                "level": getattr(config, "builder_optimization_level", None),
            }
            world.calls.append(f"build {sorted(config._flags)} {len(given)} types")
            self._logger.log(ILogger.Severity.INFO, f"Total Activation Memory: {SCRATCH} bytes")
            return json.dumps(described).encode()

    class IExecutionContext(Real):
        kind = "IExecutionContext"

        def __init__(self, engine: Any) -> None:
            self._engine, self._addresses, self._profile, self._scratch = engine, {}, 0, None
            self._given: dict[str, Any] = {}
            self._kernels: Any = None

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "device_memory":
                self._scratch = (value, SCRATCH)
            super().__setattr__(name, value)

        def set_device_memory(self, address: int, size: int) -> None:
            self._scratch = (address, size)

        def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
            self._profile = profile
            return True

        def set_input_shape(self, name: str, shape: Any) -> bool:
            self._given[name] = list(shape)
            return True

        def set_tensor_address(self, name: str, address: int) -> bool:
            assert address % 256 == 0
            self._addresses[name] = address
            return name in {t.name for t in (*self._engine._session.get_inputs(), *self._engine._session.get_outputs())}

        def execute_async_v3(self, stream: int) -> bool:
            assert self._scratch is not None, "no scratch memory"
            world.memory.check(*self._scratch)
            shapes, session = self._engine._described["shapes"][self._profile], self._engine._session
            if any(is_range(shape) for shape in shapes.values()):
                for name, shape in shapes.items():
                    least, _, most = shape if is_range(shape) else (shape,) * 3
                    assert all(a <= b <= c for a, b, c in zip(least, self._given[name], most, strict=True)), name
                shapes = self._given
            elif self._engine._described["profiles"]:
                assert self._given == {name: list(shape) for name, shape in shapes.items()}
            if self._kernels is not None:
                self._kernels._compile(f"{Path(self._engine._described['path']).stem} {shapes.get('tokens', '')}")
            sizes = {d: n for t in session.get_inputs() for d, n in zip(t.shape, shapes[t.name]) if isinstance(d, str)}
            addresses = dict(self._addresses)

            def array(tensor: Any) -> np.ndarray:
                shape = [d if isinstance(d, int) else sizes[d] for d in tensor.shape]
                dtype = np.dtype(TYPES[tensor.type])
                flat = world.memory._bytes(addresses[tensor.name], int(np.prod(shape)) * dtype.itemsize)
                return flat.view(dtype).reshape(shape)

            def work() -> None:
                results = session.run(None, {t.name: array(t) for t in session.get_inputs()})
                outputs = {t.name: value for t, value in zip(session.get_outputs(), results)}
                name = Path(self._engine._described["path"]).stem
                world.spoil(f"{name} {shapes.get('tokens', '')}", outputs)
                for tensor in session.get_outputs():
                    array(tensor)[:] = outputs[tensor.name]

            world.memory.submit(work)
            return True

    class ICudaEngine(Real):
        kind = "ICudaEngine"

        def __init__(self, described: dict[str, Any]) -> None:
            self._described = described
            options = onnxruntime.SessionOptions()
            options.add_session_config_entry(*WEIGHT_ONLY)
            self._session = onnxruntime.InferenceSession(described["path"], options, providers=["CPUExecutionProvider"])
            for name in ("device_memory_size", "device_memory_size_v2"):
                if name in api["ICudaEngine"]:
                    setattr(self, name, SCRATCH)

        @property
        def num_optimization_profiles(self) -> int:
            return max(1, self._described["profiles"])

        @property
        def num_io_tensors(self) -> int:
            return len(self._session.get_inputs()) + len(self._session.get_outputs())

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            every = []
            for shapes in self._described["shapes"]:
                shape = shapes[name]
                every += [tuple(bound) for bound in shape] if is_range(shape) else [tuple(shape)]
            return every[0] if len(every) == 1 else tuple(-1 if len(set(d)) > 1 else d[0] for d in zip(*every))

        def create_execution_context_without_device_memory(self) -> Any:
            return IExecutionContext(self)

        def create_execution_context(self, strategy: Any = None) -> Any:
            context = IExecutionContext(self)
            if isinstance(strategy, IRuntimeConfig):
                context._kernels, strategy = strategy._cache, strategy._strategy
            assert strategy.name == "USER_MANAGED"
            return context

        def create_runtime_config(self) -> Any:
            return IRuntimeConfig()

    class IRuntimeCache(Real):
        kind = "IRuntimeCache"

        def __init__(self) -> None:
            self._kernels: list[str] = []

        def _compile(self, name: str) -> None:
            if name not in self._kernels:
                self._kernels.append(name)
                world.kernels.append(f"compiled {name}")

        def deserialize(self, data: bytes) -> bool:
            self._kernels = json.loads(data)
            world.kernels += [f"found {name}" for name in self._kernels]
            return True

        def serialize(self) -> bytes:
            return json.dumps(self._kernels).encode()

    class IRuntimeConfig(Real):
        kind = "IRuntimeConfig"

        def __init__(self) -> None:
            self._cache: Any = None

        def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
            self._strategy = strategy

        def create_runtime_cache(self) -> Any:
            return IRuntimeCache()

        def set_runtime_cache(self, cache: Any) -> bool:
            self._cache = cache
            return True

    class Runtime(Real):
        kind = "Runtime"

        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            try:
                return ICudaEngine(json.loads(data))
            except ValueError:
                self._logger.log(ILogger.Severity.ERROR, "Serialization assertion magicTagRead failed")
                return None

    module = SimpleNamespace(__version__=version, ILogger=ILogger, **enums)
    made = (Builder, OnnxParser, Runtime)
    module.__dict__.update({each.__name__: each for each in made})
    if "IAttentionOutputLayer" in api:
        module.IAttentionOutputLayer = IAttentionOutputLayer
    if "IProgressMonitor" in api:
        module.IProgressMonitor = type("IProgressMonitor", (), {})
    for alias, member in (("float32", "FLOAT"), ("float16", "HALF"), ("int32", "INT32"), ("bool", "BOOL")):
        setattr(module, alias, enums["DataType"][member])
    return module


def is_range(shape: Any) -> bool:
    """Whether a profile's shape is three: least, usual and most."""
    return bool(len(shape)) and not isinstance(shape[0], int)


def make_tensorrt(version: str, world: World) -> TensorRT:
    """The library of a version."""
    return TensorRT(make_module(version, world), library=RTX if version == RTX_VERSION else TENSORRT)


def make_machine(
    version: str, world: World | None = None, gpu: str = "Orin", capability: str = "8.7", driver: str = "13.0"
) -> Machine:
    """A machine with a stand-in for TensorRT and for the GPU's memory."""
    world = world or World()
    return Machine(make_tensorrt(version, world), world.memory, 7, gpu, capability, "12.6", driver)
