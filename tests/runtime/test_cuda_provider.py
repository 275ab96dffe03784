"""What is asked of ONNX Runtime's CUDA provider besides capture (`test_captured_steps`), over a stand-in for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as real
import pytest
from onnx import TensorProto, helper

import editar_rt
from editar_rt import machine, names
from editar_rt.backends.engines.cuda import CAPABILITY
from editar_rt.backends.ort import backend, cuda_provider
from editar_rt.backends.ort import decoder as ort_decoder
from editar_rt.backends.ort.cuda_provider import CudaProvider
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import BackendError
from tests.cuda_stand_in import Provider, tokens
from tests.runtime.filled_rows import FilledRows

CACHE_NAMES = (names.past_key, names.past_value, names.present_key, names.present_value)


def test_a_bfloat16_cache_is_held_as_its_bits_and_bound_by_its_number(
    golden_gpt_bundle_bf16: Path, golden_gpt_bundle_cuda: Path, provider: Provider
) -> None:
    """A float16 graph computes in its place: the loop is right where both draw the same."""
    provider.in_place_of[str(golden_gpt_bundle_bf16)] = golden_gpt_bundle_cuda
    editor = editar_rt.load(golden_gpt_bundle_bf16, "cuda")
    assert np.array_equal(tokens(editor), tokens(editar_rt.load(golden_gpt_bundle_cuda, "cpu")))
    decoder = provider.capturing
    assert [decoder.types[f(n)] for n in range(3) for f in CACHE_NAMES] == [TensorProto.BFLOAT16] * 12
    assert editor.backend.name.endswith("steps are captured")


def test_other_tensors_of_a_bfloat16_bundle_have_types_that_numpy_has(golden_gpt_bundle_bf16: Path) -> None:
    """The real package gives and takes them as arrays."""
    parts = Bundle.open(golden_gpt_bundle_bf16).manifest.parts.values()
    held = {t.name for part in parts for t in (*part.inputs, *part.outputs) if t.dtype == "bfloat16"}
    assert held == {f(n) for n in range(3) for f in CACHE_NAMES}


def test_the_package_reads_bfloat16_from_an_array_of_its_bits() -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Cast", ["bits"], ["real"], to=TensorProto.FLOAT)],
        "widen",
        [value("bits", TensorProto.BFLOAT16, [3])],
        [value("real", TensorProto.FLOAT, [3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = real.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    numbers = np.asarray([1, 2.5, -3], np.float32)
    bits = (numbers.view(np.uint32) >> 16).astype(ort_decoder.BFLOAT16_BITS)
    binding = session.io_binding()
    binding.bind_input("bits", "cpu", 0, ort_decoder.BFLOAT16, [3], bits.ctypes.data)
    binding.bind_output("real")
    session.run_with_iobinding(binding)
    assert binding.copy_outputs_to_cpu()[0].tolist() == numbers.tolist()


@pytest.mark.parametrize("which", ["golden_gpt_bundle_cuda", "golden_gpt_bundle"])
def test_a_provider_that_is_there_and_does_not_work_is_not_replaced_by_the_cpu(
    which: str, provider: Provider, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    provider.works = False
    with pytest.raises(
        BackendError, match=r"did not load CUDAExecutionProvider.*pip install.*\(Failed to load libcudnn"
    ):
        editar_rt.load(request.getfixturevalue(which), "cuda")
    assert capsys.readouterr().out == ""  # where `--json` writes


def test_auto_takes_the_cpu_then_and_says_why(golden_gpt_bundle_cuda: Path, provider: Provider) -> None:
    provider.works = False
    editor = editar_rt.load(golden_gpt_bundle_cuda, "auto")
    assert editor.backend.device == "cpu"
    assert "(CPU); CUDA does not work here: " in editor.backend.name
    assert np.array_equal(tokens(editor), tokens(editar_rt.load(golden_gpt_bundle_cuda, "cpu")))


def test_a_bundle_for_cuda_alone_names_what_is_missing(golden_gpt_bundle_bf16: Path, provider: Provider) -> None:
    provider.works = False
    with pytest.raises(BackendError, match="is for cuda; .*CUDA does not work here"):
        tokens(editar_rt.load(golden_gpt_bundle_bf16, "auto"))


def test_a_session_that_loses_the_provider_later_is_refused(golden_gpt_bundle_cuda: Path, provider: Provider) -> None:
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    provider.works = False
    with pytest.raises(BackendError, match="did not load CUDAExecutionProvider"):
        tokens(editor)


def test_a_package_for_cpus_says_nothing_of_cuda(golden_gpt_bundle_cuda: Path) -> None:
    editor = editar_rt.load(golden_gpt_bundle_cuda, "auto")
    assert editor.backend.name == f"ONNX Runtime {real.__version__} (CPU)"


class Runtime:
    """CUDA's runtime on a GPU of some compute capability."""

    def __init__(self, major: int, minor: int) -> None:
        self._results = {"cudaGetDeviceCount": 1, "cudaGetDevice": 0}
        self._results |= {"cudaRuntimeGetVersion": 13000, "cudaDriverGetVersion": 13000}
        self._capability = dict(zip(CAPABILITY, (major, minor)))

    def call(self, function: str, *arguments: int) -> int:
        return self._capability[arguments[0]] if arguments else self._results[function]

    def device_name(self, device: int) -> str:
        return "T4"


def test_an_int8_cache_is_refused_where_the_gpu_is_known_to_lack_a_kernel_for_it(
    golden_gpt_bundle_cuda: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(golden_gpt_bundle_cuda)
    int8 = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, kv_cache="int8"))
    CudaProvider.check(int8)  # no CUDA's runtime is here: it cannot be known
    monkeypatch.setattr(cuda_provider, "find_runtime", lambda: Runtime(8, 0))
    CudaProvider.check(int8)
    monkeypatch.setattr(cuda_provider, "find_runtime", lambda: Runtime(7, 5))
    CudaProvider.check(bundle)
    with pytest.raises(BackendError, match=r"8.0 or newer, but the T4 has 7.5; export .* --kv-cache same"):
        CudaProvider.check(int8)


@pytest.mark.parametrize(("version", "refused"), [("1.26.0", True), ("1.27.0", False), ("1.100.0.dev1", False)])
def test_an_int8_cache_is_refused_by_versions_that_fail_on_it(
    golden_gpt_bundle: Path, version: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU too; there 1.27 was the first that ran one, of 1.23.2, 1.24.4, 1.25.1, 1.26.0 and 1.27.0."""
    bundle = Bundle.open(golden_gpt_bundle)
    int8 = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, kv_cache="int8"))
    monkeypatch.setattr(real, "__version__", version)
    backend.OnnxRuntimeBackend(bundle, "cpu").session(names.DECODER)
    opened = backend.OnnxRuntimeBackend(int8, "cpu")
    if refused:
        with pytest.raises(BackendError, match=r"ONNX Runtime 1.27 or newer, but this is 1.26.0; run pip install -U"):
            opened.session(names.DECODER)
    else:
        opened.session(names.DECODER)


def test_a_decoder_is_checked_when_it_opens(
    golden_gpt_bundle_cuda: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Bundle] = []
    monkeypatch.setattr(CudaProvider, "check", staticmethod(checked.append))
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    editor.backend.make_decoder(1, 8)
    assert checked == [editor.bundle]


def test_rows_are_copied_without_a_way_through_the_host(golden_gpt_bundle_cuda: Path, provider: Provider) -> None:
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    cache = FilledRows(editor.backend, 3, 20)
    cache.forward(np.asarray([[5, 6, 7, 8]], np.int32), first_row=2)
    cache.copy_row(2, 0)
    held = [value for value in provider.values if len(value.shape()) == 4]
    assert len(held) == 6 and not any(value.moved for value in held)
    for value in held:
        rows = value.value.numpy()
        assert rows[2].any() and np.array_equal(rows[0], rows[2]) and not rows[1].any()
    assert cache.lengths.tolist() == [4, 0, 4]


def test_a_whole_edit_moves_no_cache(golden_gpt_bundle_cuda: Path, provider: Provider) -> None:
    tokens(editar_rt.load(golden_gpt_bundle_cuda, "cuda"))
    held = [value for value in provider.values if len(value.shape()) == 4]
    assert len(held) == 6 and not any(value.moved for value in held)


def test_the_graph_that_copies_is_what_onnx_writes() -> None:
    source, target = (helper.make_tensor_value_info(n, TensorProto.UINT8, [None]) for n in ("source", "target"))
    graph = helper.make_graph([helper.make_node("Identity", ["source"], ["target"])], "copy", [source], [target])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(onnx.load_from_string(cuda_provider.COPY))
    assert made.SerializeToString() == cuda_provider.COPY


def test_the_bandwidth_is_measured_by_copies(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "COPIED_BYTES", 8 << 20)
    found = CudaProvider.find(provider)
    assert found is not None
    speed = found.read_bandwidth()
    assert speed is not None and 1e8 < speed < 1e13
    monkeypatch.setattr(provider, "ortvalue_from_shape_and_type", lambda *_: 1 / 0)  # as where memory is short
    assert found.read_bandwidth() is None
