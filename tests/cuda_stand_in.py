"""A stand-in for ONNX Runtime with a CUDA provider, which computes on the CPU.

Values and addresses "on the device" are in host memory, and what is copied between the two is counted. Steps are
captured as by the real one: the first run with a graph's number is done several times, later ones replay with the
addresses, shapes and host numbers of the first. What is tested is what is asked of the provider, not the provider.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as real

from editar_rt import names
from editar_rt.editor import Editor
from editar_rt.generation.sampling import Sampling
from tests.benchmarks.cuda_checks import inputs

SAMPLING = Sampling(cfg_scale=3.0, seed=4)
TWIN = {onnx.TensorProto.BFLOAT16: np.float16}  # bfloat16 has no kernels on a CPU: what computes in its place


def tokens(editor: Editor, sampling: Sampling = SAMPLING) -> np.ndarray:
    """What is drawn for seeded inputs, [1, N]."""
    _, states, picture = inputs(editor, 0)
    return editor.generate(states, picture, sampling)


class Provider:
    """The onnxruntime module."""

    SessionOptions, RunOptions, __version__ = real.SessionOptions, real.RunOptions, real.__version__

    def __init__(self) -> None:
        self.OrtValue = self  # a class of two functions, which are below
        self.sessions: list[Session] = []  # but for those of graphs that are no files
        self.values: list[Value] = []
        self.works = True  # the provider was compiled in; whether it can be loaded
        self.in_place_of: dict[str, Path] = {}  # folders of bundles whose graphs are opened for others
        self.refuses = ""  # opening with capture
        self.breaks = ""  # the first captured run
        self.freezes = False  # device inputs too, as if the graph had copied them from the host
        self.mistakes = False  # attention that takes total_length for what is filled

    @property
    def capturing(self) -> Session:
        """The one session that captures: the decoder's."""
        (decoder,) = (session for session in self.sessions if session.captures)
        return decoder

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        print("Failed to load libcudnn.so.9: it is not there")

    def ortvalue_from_numpy(self, array: np.ndarray, device: str = "cpu", number: int = 0) -> Any:
        value = real.OrtValue.ortvalue_from_numpy(array.copy() if device == "cuda" else array, "cpu", 0)
        if device == "cpu":
            return value
        self.values.append(Value(value))
        return self.values[-1]

    def ortvalue_from_shape_and_type(self, shape: list[int], dtype: Any, device: str, number: int) -> Any:
        return self.ortvalue_from_numpy(np.empty(shape, dtype), device, number)

    def InferenceSession(
        self, graph: str | bytes, options: Any, providers: list[Any], enable_fallback: int = 1
    ) -> Session:
        assert not enable_fallback
        captures = False
        if providers != ["CPUExecutionProvider"]:
            (name, chosen), cpu = providers
            assert name == "CUDAExecutionProvider" and cpu == "CPUExecutionProvider"
            captures = chosen == {"use_tf32": "0", "enable_cuda_graph": "1"}
            assert captures or chosen == {"use_tf32": "0"}
        if captures and self.refuses:
            raise RuntimeError(self.refuses)
        if isinstance(graph, str):
            path = Path(graph)
            graph = str(self.in_place_of.get(str(path.parent), path.parent) / path.name)
        opened = Session(self, real.InferenceSession(graph, options, ["CPUExecutionProvider"]), captures)
        opened.providers = [p if isinstance(p, str) else p[0] for p in providers if self.works or isinstance(p, str)]
        if isinstance(graph, str):
            self.sessions.append(opened)
        return opened


class Value:
    """An OrtValue on the device, that counts its bytes that come to the host and go there."""

    def __init__(self, value: Any) -> None:
        self.value, self.moved = value, 0
        self.data_ptr, self.shape = value.data_ptr, value.shape

    def numpy(self) -> np.ndarray:
        self.moved += self.value.tensor_size_in_bytes()
        return self.value.numpy().copy()

    def update_inplace(self, array: np.ndarray) -> None:
        self.moved += array.nbytes
        self.value.update_inplace(array)


class Session:
    def __init__(self, provider: Provider, session: Any, captures: bool) -> None:
        self.provider, self.session, self.captures = provider, session, captures
        self.graphs: dict[str, dict[str, Any]] = {}
        self.launched: list[str] = []  # numbers of the graphs, in order
        self.types: dict[str, Any] = {}  # that were bound
        self.totals: list[int] = []  # total_length of runs that were not captured
        self.released: list[int] = []
        self.get_inputs, self.get_outputs, self.run = session.get_inputs, session.get_outputs, session.run
        self.providers: list[str] = []

    def get_providers(self) -> list[str]:
        return self.providers

    def io_binding(self) -> Binding:
        return Binding(self.session.io_binding())

    def run_with_iobinding(self, binding: Binding, options: Any = None) -> None:
        if options is None or "CUDAExecutionProvider" not in self.providers:
            self.compute(binding)
            return
        graph = options.get_run_config_entry("gpu_graph_id")
        self.launched.append(graph)
        self.types |= binding.types
        if graph == "-1" and names.TOTAL_LENGTH in binding.given:
            self.totals.append(int(binding.given[names.TOTAL_LENGTH]))
        if not self.captures or graph == "-1":
            self.compute(binding)
            return
        if graph not in self.graphs:
            if self.provider.breaks:
                raise RuntimeError(self.provider.breaks)
            self.graphs[graph] = dict(binding.bound)
            self.frozen = binding.values[names.LAST_ROW].numpy().copy()
            runs = 3
        else:
            assert binding.bound == self.graphs[graph]
            runs = 1
            if self.provider.freezes:
                binding.values[names.LAST_ROW].update_inplace(self.frozen)
        for _ in range(runs):
            self.compute(binding)

    def compute(self, binding: Binding) -> None:
        self.session.run_with_iobinding(binding.binding)
        if self.provider.mistakes and names.TOTAL_LENGTH in binding.values:  # the capacity
            logits = binding.values[names.LOGITS].value
            logits.update_inplace(np.ascontiguousarray(logits.numpy()[..., ::-1]))

    def release_captured_graph(self, graph: int) -> None:
        self.released.append(graph)


class Binding:
    def __init__(self, binding: Any) -> None:
        self.binding = binding
        self.bound: dict[str, Any] = {}  # addresses, shapes, and the number on the host
        self.values: dict[str, Any] = {}
        self.types: dict[str, Any] = {}  # of what is bound by its address
        self.given: dict[str, np.ndarray] = {}  # on the host

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        self.bound[name], self.given[name] = "host", array
        self.binding.bind_cpu_input(name, array)

    def bind_input(self, name: str, device: str, number: int, dtype: Any, shape: list[int], place: int) -> None:
        self.bound[name], self.types[name] = (place, tuple(shape)), dtype
        self.binding.bind_input(name, "cpu", 0, TWIN.get(dtype, dtype), shape, place)

    def bind_output(self, name: str, device: str, number: int, dtype: Any, shape: Any, place: int) -> None:
        self.bound[name], self.types[name] = (place, tuple(shape)), dtype
        self.binding.bind_output(name, "cpu", 0, TWIN.get(dtype, dtype), shape, place)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        host = int(value.numpy()) if name == names.TOTAL_LENGTH else None
        value = getattr(value, "value", value)
        self.bound[name], self.values[name] = (value.data_ptr(), tuple(value.shape()), host), value
        self.binding.bind_ortvalue_input(name, value)

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.bound[name], self.values[name] = (value.data_ptr(), tuple(value.shape())), value
        self.binding.bind_ortvalue_output(name, value.value)
