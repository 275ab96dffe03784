"""NVIDIA's own parser and builder over every graph of the demo: TensorRT for RTX builds engines without a GPU.

An engine that is built has not run: what it computes is compared on a GPU, when it is loaded first. Sizes tell whether
the builder kept the weights' types.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from editar_rt import names
from editar_rt.backends.engines.folder import read_build
from editar_rt.backends.engines.plan import Shape
from editar_rt.backends.engines.tensorrt_compat import RTX, TOO_OLD, TensorRT, has_float8, load_tensorrt
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.manifest import Part
from editar_rt.errors import BackendError, OptionError
from export.bundle_writer import _save
from export.checkpoint_reader import read_transformer
from export.decoder_graph import decoder_graph
from export.precision import Storage
from export.recipe import read_engines
from export.sampler_graph import sampler_graph
from export.tensorrt_builder import build_engine
from tests.runtime.demo import BUNDLE
from tests.tools import require_module

require_module("tensorrt_rtx", "pip install tensorrt-rtx")

ROOT = Path(__file__).parents[2]
RECIPE = replace(read_engines("rtx-anywhere"), dynamic=False)
STEP, DRAFTS, CHUNK = (Shape(names.DECODER, *shape) for shape in ((2, 1), (2, 8), (1, 40)))
# Megabytes of the demo's decoder by precision: the weights, and what an engine holds besides them (kernels, tables).
WEIGHTS = {"fp32": 13.8, "fp16": 6.9, "bf16": 6.9, "int8": 4.25, "fp8": 4.25, "int4": 3.0}
CODE = {"delta": 5.2, "native": 4.0}
DYNAMIC_CODE = {"delta": 9.5, "native": 5.7}
OTHER_SIZES = {
    names.VQ_ENCODER: 6.3,
    names.VQ_DECODER: 8.2,
    names.TEXT_ENCODER: 4.1,
    names.PREFIX_GRAPH: 0.5,
}
SAMPLER_SIZE = 2.3


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Part]]:
    """The demo's decoder in a dialect and a precision: its graph and its description."""
    folder, checkpoint, written = tmp_path_factory.mktemp("graphs"), read_transformer(BUNDLE), {}

    def write(dialect: str, precision: str) -> tuple[Path, Part]:
        path = folder / f"{dialect}-{precision}.onnx"
        if path not in written:
            storage = Storage(precision, dialect, provider="cuda" if precision == "bf16" else "cpu")
            written[path] = _save(decoder_graph(checkpoint.config, checkpoint.tensors, storage), path)
        return path, written[path]

    return write


@pytest.fixture
def messages() -> list[str]:
    return []


@pytest.fixture
def tensorrt(messages: list[str]) -> TensorRT:
    """The library; its warnings and errors are collected."""
    return load_tensorrt(RTX, messages.append)


@pytest.mark.parametrize("precision", WEIGHTS)
@pytest.mark.parametrize("dialect", ["delta", "native"])
def test_every_decoder_builds_without_a_warning_and_keeps_its_weights_types(
    dialect: str, precision: str, decoder: Any, tensorrt: TensorRT, messages: list[str]
) -> None:
    path, part = decoder(dialect, precision)
    for shapes in ([STEP], [DRAFTS], [CHUNK], [STEP, DRAFTS, CHUNK]):
        recipe = replace(RECIPE, dynamic=len(shapes) > 1)
        if precision == "fp8":
            recipe = replace(recipe, capabilities=tuple(filter(has_float8, recipe.capabilities)))
        engine, _ = build_engine(tensorrt, path, part, shapes, recipe)
        expected = WEIGHTS[precision] + (DYNAMIC_CODE if recipe.dynamic else CODE)[dialect]
        assert engine.nbytes / 1e6 == pytest.approx(expected, rel=0.2), shapes
    assert messages == []


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_attention_is_one_kernel_in_types_of_16_bits(
    precision: str, decoder: Any, tensorrt: TensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without leave to compose it from others, the build would fail, as it does for chunks in float32."""
    monkeypatch.setattr(TensorRT, "split_attention", lambda own, network: 0)
    for shapes in ([STEP], [DRAFTS], [CHUNK]):
        build_engine(tensorrt, *decoder("native", precision), shapes, RECIPE)
    with pytest.raises(BackendError, match="not supported by a dedicated kernel"):
        build_engine(tensorrt, *decoder("native", "fp32"), [CHUNK], RECIPE)


def test_the_other_parts_build_for_every_gpu_that_can_be_named(tensorrt: TensorRT, messages: list[str]) -> None:
    assert {*RECIPE.capabilities, TOO_OLD} == tensorrt.capabilities.keys()
    bundle = Bundle.open(BUNDLE)
    for name, megabytes in OTHER_SIZES.items():
        engine, _ = build_engine(tensorrt, bundle.part_path(name), bundle.manifest.parts[name], [Shape(name)], RECIPE)
        assert engine.nbytes / 1e6 == pytest.approx(megabytes, rel=0.2), name
    assert messages == []


def test_a_sampling_head_builds(tensorrt: TensorRT, messages: list[str], tmp_path: Path) -> None:
    part = _save(sampler_graph(2048), tmp_path / "sampler.onnx")
    shapes = [Shape(names.SAMPLER, rows, positions) for rows in (1, 2) for positions in (1, 8)]
    for built in (shapes[2:3], shapes[3:], shapes):  # for a step, for drafts, for all
        engine, _ = build_engine(tensorrt, tmp_path / "sampler.onnx", part, built, replace(RECIPE, dynamic=True))
        assert engine.nbytes / 1e6 == pytest.approx(SAMPLER_SIZE, rel=0.2) and messages == []


def test_gpus_that_the_library_cannot_name_are_refused_in_a_sentence(decoder: Any, tensorrt: TensorRT) -> None:
    for capability in ("7.5", "8.7", "9.0", "11.0"):
        with pytest.raises(OptionError, match=f"cannot build engines for compute capability {capability}"):
            build_engine(tensorrt, *decoder("native", "fp16"), [STEP], replace(RECIPE, capabilities=(capability,)))


def test_the_command_builds_a_bundle_which_says_that_it_has_not_run(
    golden_gpt_bundle_native_fp16: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(golden_gpt_bundle_native_fp16, tmp_path / "bundle"))
    command = [sys.executable, "-m", "export", "tensorrt", str(folder), "--target", "rtx-anywhere", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    info = read_build(folder / "rtx-anywhere")
    assert json.loads(done.stdout)["tried"] is info.tried is False and info.library == RTX
    assert {engine.file for engine in info.engines.values()} == {"decoder.engine", "prefix.engine"}
    assert sorted(path.name for path in folder.iterdir() if "timings" in path.name) == []
    # Without a GPU and a driver, the engines are there but nothing can load them.
    if find_gpu() is None:
        command = [sys.executable, "-m", "editar_rt", "verify", str(folder), "--device", "tensorrt"]
        said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert said.returncode == 1 and said.stderr.count("\n") == 1 and "Traceback" not in said.stderr
        assert "there is no NVIDIA driver" in said.stderr or "pip install cuda-bindings" in said.stderr


def find_gpu() -> str | None:
    return shutil.which("nvidia-smi")
