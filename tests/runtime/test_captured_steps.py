"""Decode steps as CUDA graphs, over a stand-in for ONNX Runtime whose CUDA provider computes on the CPU.

It captures as the real one does: the first run with a graph's number is done several times, later ones replay with the
addresses, shapes and host numbers of the first. What is tested is what is asked of the provider, not the provider.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as real
import pytest

import editar_rt
from editar_rt import names
from editar_rt.backends import onnxruntime as backend
from editar_rt.editor import Editor
from editar_rt.errors import BackendError
from editar_rt.sampling import Sampling

SAMPLING = Sampling(cfg_scale=3.0, seed=4)


class Provider:
    """The onnxruntime module."""

    SessionOptions, RunOptions, __version__ = real.SessionOptions, real.RunOptions, real.__version__

    def __init__(self) -> None:
        self.OrtValue = self  # a class of one function, which is below
        self.sessions: list[Session] = []
        self.refuses = ""  # opening with capture
        self.breaks = ""  # the first captured run
        self.freezes = False  # device inputs too, as if the graph had copied them from the host

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def ortvalue_from_numpy(self, array: np.ndarray, device: str = "cpu", number: int = 0) -> Any:
        return real.OrtValue.ortvalue_from_numpy(array.copy() if device == "cuda" else array, "cpu", 0)

    def InferenceSession(self, path: str, options: Any, providers: list[Any], **more: Any) -> Session:
        captures = isinstance(providers[0], tuple)
        if captures:
            assert providers[0] == ("CUDAExecutionProvider", {"enable_cuda_graph": "1"}) and more == {
                "enable_fallback": 0
            }
            if self.refuses:
                raise RuntimeError(self.refuses)
        self.sessions.append(Session(self, real.InferenceSession(path, options, ["CPUExecutionProvider"]), captures))
        return self.sessions[-1]


class Session:
    def __init__(self, provider: Provider, session: Any, captures: bool) -> None:
        self.provider, self.session, self.captures = provider, session, captures
        self.graphs: dict[str, dict[str, Any]] = {}
        self.launched: list[str] = []  # numbers of the graphs, in order
        self.released: list[int] = []
        self.get_outputs, self.run = session.get_outputs, session.run

    def io_binding(self) -> Binding:
        return Binding(self.session.io_binding())

    def run_with_iobinding(self, binding: Binding, options: Any = None) -> None:
        graph = options.get_run_config_entry("gpu_graph_id")
        self.launched.append(graph)
        if not self.captures or graph == "-1":
            self.session.run_with_iobinding(binding.binding)
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
            self.session.run_with_iobinding(binding.binding)

    def release_captured_graph(self, graph: int) -> None:
        self.released.append(graph)


class Binding:
    def __init__(self, binding: Any) -> None:
        self.binding = binding
        self.bound: dict[str, Any] = {}  # addresses, shapes, and the number on the host
        self.values: dict[str, Any] = {}

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        self.bound[name] = "host"
        self.binding.bind_cpu_input(name, array)

    def bind_input(self, name: str, device: str, number: int, dtype: Any, shape: list[int], place: int) -> None:
        self.bound[name] = place, tuple(shape)
        self.binding.bind_input(name, "cpu", 0, dtype, shape, place)

    def bind_output(self, name: str, device: str, number: int, dtype: Any, shape: Any, place: int) -> None:
        self.bound[name] = place, tuple(shape)
        self.binding.bind_output(name, "cpu", 0, dtype, shape, place)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        host = int(value.numpy()) if name == names.TOTAL_LENGTH else None
        self.bound[name], self.values[name] = (value.data_ptr(), tuple(value.shape()), host), value
        self.binding.bind_ortvalue_input(name, value)

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.bound[name] = value.data_ptr(), tuple(value.shape())
        self.binding.bind_ortvalue_output(name, value)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Provider:
    stand_in = Provider()
    monkeypatch.setattr(backend, "import_onnxruntime", lambda: stand_in)
    return stand_in


def tokens(editor: Editor, sampling: Sampling = SAMPLING) -> np.ndarray:
    rng, model = np.random.default_rng(0), editor.model
    states = rng.standard_normal((1, model.text_tokens or 0, model.text_dim or 0)).astype(np.float32)
    picture = rng.integers(0, model.vocab_size or 1, (1, editor.picture_tokens), np.int32)
    return editor.generate(states, picture, sampling)


@pytest.fixture(scope="module")
def expected(golden_gpt_bundle_cuda: Path) -> np.ndarray:
    """What the bundle draws on the CPU, where nothing is captured."""
    return tokens(editar_rt.load(golden_gpt_bundle_cuda, "cpu"))


def test_steps_are_captured_once_and_replayed_with_the_same_tokens(
    golden_gpt_bundle_cuda: Path, provider: Provider, expected: np.ndarray
) -> None:
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    assert np.array_equal(tokens(editor), expected)
    assert editor.backend.name.endswith("(CUDA); steps are captured")
    (decoder,) = (session for session in provider.sessions if session.captures)
    steps = editor.picture_tokens - 1
    # Picture and two texts are plain; before the first step its graph is captured, replayed and compared.
    assert decoder.launched == ["-1"] * 3 + ["1", "1", "-1"] + ["1"] * steps


def test_what_changes_lies_on_the_device_and_the_number_on_the_host_is_the_capacity(
    golden_gpt_bundle_cuda: Path, provider: Provider
) -> None:
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    tokens(editor)
    (decoder,) = (session for session in provider.sessions if session.captures)
    (bound,) = decoder.graphs.values()  # every replay was asserted to have the same
    assert "host" not in bound.values()
    capacity = 2 * editor.picture_tokens + (editor.model.text_tokens or 0) - 1
    assert [value[2] for value in bound.values() if len(value) == 3 and value[2] is not None] == [capacity]
    wanted = {tensor.name for tensor in editor.bundle.manifest.parts[names.DECODER].inputs}
    assert wanted < set(bound) and bound[names.past_key(0)] == bound[names.present_key(0)]


def test_each_number_of_rows_and_each_cache_has_its_own_graph_until_it_goes(
    golden_gpt_bundle_cuda: Path, provider: Provider
) -> None:
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    tokens(editor, Sampling(cfg_interval=6))
    tokens(editor)
    gc.collect()
    (decoder,) = (session for session in provider.sessions if session.captures)
    assert list(decoder.graphs) == ["1", "2", "3"]
    assert sorted(decoder.released) == [1, 2, 3]


@pytest.mark.parametrize("where", ["refuses", "breaks"])
def test_a_provider_that_cannot_capture_runs_plainly_and_it_is_said(
    golden_gpt_bundle_cuda: Path, provider: Provider, expected: np.ndarray, where: str
) -> None:
    setattr(provider, where, "no capture of this")
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    assert np.array_equal(tokens(editor), expected)
    assert "(CUDA); steps are not captured: " in editor.backend.name and "no capture of this" in editor.backend.name
    assert not provider.sessions[-1].captures and np.array_equal(tokens(editor), expected)


def test_a_replay_that_is_wrong_is_found_before_its_tokens_are_drawn(
    golden_gpt_bundle_cuda: Path, provider: Provider, expected: np.ndarray
) -> None:
    provider.freezes = True
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    assert np.array_equal(tokens(editor), expected)
    assert "steps are not captured: a replay differs from a plain run, by " in editor.backend.name


def test_caches_that_were_captured_before_it_was_given_up_go_on(
    golden_gpt_bundle_cuda: Path, provider: Provider, expected: np.ndarray
) -> None:
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    cache = editor.backend.make_cache(2, 40)
    editor.backend.give_up_capture("another one failed")  # type: ignore[attr-defined]
    zeros = np.zeros((1, 1, editor.model.dim or 0), np.float32)
    cache.forward(np.ones((2, 1), np.int32), zeros, np.zeros(1, np.int32))
    assert provider.sessions[-1].launched == ["-1"] and not provider.sessions[-1].captures


def test_capture_can_be_refused(golden_gpt_bundle_cuda: Path, provider: Provider, expected: np.ndarray) -> None:
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    editor.backend.capture = False  # type: ignore[attr-defined]
    assert np.array_equal(tokens(editor), expected)
    assert editor.backend.name.endswith("steps are not captured: it was not asked for")


def test_graphs_that_compute_lengths_on_the_host_are_not_tried(
    golden_gpt_bundle_fp16: Path, provider: Provider
) -> None:
    editor = editar_rt.load(golden_gpt_bundle_fp16, "cuda")
    tokens(editor)
    assert not any(session.captures for session in provider.sessions)
    assert "its graph computes lengths on the host" in editor.backend.name


def test_the_graph_for_cuda_computes_no_shapes(golden_gpt_bundle_cuda: Path, golden_gpt_bundle_fp16: Path) -> None:
    """Their results lie on the host, and what is computed from them is copied: the provider captures no copies."""
    plain, cuda = (
        {node.op_type for node in onnx.load(bundle / "decoder.onnx", load_external_data=False).graph.node}
        for bundle in (golden_gpt_bundle_fp16, golden_gpt_bundle_cuda)
    )
    assert "Shape" in plain and "Shape" not in cuda


def test_an_error_that_is_not_of_capture_is_raised(
    golden_gpt_bundle_cuda: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(provider, "InferenceSession", fails)
    with pytest.raises(BackendError, match="out of memory"):
        editar_rt.load(golden_gpt_bundle_cuda, "cuda").backend.make_cache(1, 8)
