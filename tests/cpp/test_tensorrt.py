"""The plug-in for TensorRT's engines, without a GPU: edits have Python's tokens and pixels.

Over a stand-in for CUDA and TensorRT (`gpu.py`), which runs the engines' graphs through ONNX Runtime. What NVIDIA's
libraries make of an engine is not tested here; the last test asks the real library, which refuses without a driver.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from editar_rt.backends import kept_folder
from editar_rt.cli.app import cli
from editar_rt.errors import BackendError
from editar_rt.measure import selftest
from editar_rt.measure.gate import try_engines
from tests.cpp.gpu import CASES, GPUS, VERSIONS, Gpu, engines_of, python_editor, refused, with_manifest
from tests.cpp.library import BenchPlan, Refused, as_sampling
from tests.runtime.demo import COUNT, GRID, PICTURE, SIDE, WORDS
from tests.tensorrt_stand_in import RTX_VERSION, World
from tests.tools import require, require_module


def pixels(path: Path = PICTURE) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def assert_same(edited: Any, results: list[Any]) -> None:
    for n, result in enumerate(results):
        assert edited.tokens[n].tolist() == result.tokens.tolist()
        assert np.array_equal(edited.rgb[n], np.asarray(result.image))


# Edits.


@pytest.mark.parametrize("name", CASES)
def test_an_edit_has_pythons_tokens_and_pixels(
    make_gpu: Callable[..., Gpu], gpu_bundles: dict[str, Path], name: str
) -> None:
    gpu = make_gpu(CASES[name])
    model = gpu.open(gpu_bundles[name], device=b"tensorrt")
    title = "TensorRT for RTX" if gpu.kind == "rtx" else "TensorRT"
    assert model.info.backend.decode() == f"{title} {VERSIONS[gpu.kind]} ({GPUS[gpu.kind][0]})"
    editor = python_editor(gpu_bundles[name], gpu.twin())
    theirs, mine = editor.session(PICTURE), model.session(pixels())
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[30:90, 20:71] = 255
    assert mine.source()[1].tolist() == theirs.condition_tokens[0].tolist()
    edited = mine.edit(WORDS, sampling=as_sampling({"seed": 7}), speculate=4)
    assert_same(edited, [theirs.edit(WORDS, seed=7, speculate=4)])
    # The unconditional row is kept from before, while the other one is stepped alone.
    settings = {"seed": 9, "cfg_interval": (20, 50), "cfg_scale": 8.0, "temperature": 4.0, "top_k": 0}
    edited = mine.edit(WORDS, sampling=as_sampling(settings), mask=mask)
    assert_same(edited, [theirs.edit(WORDS, mask=mask, **settings)])
    edited = mine.edit(WORDS, sampling=as_sampling(settings), speculate=4)
    assert_same(edited, [theirs.edit(WORDS, speculate=4, **settings)])
    first = theirs.edit(WORDS, seed=4, cfg_scale=1.0)
    again = mine.edit(WORDS, sampling=as_sampling({"seed": 5, "cfg_scale": 1.0}), kept=first.tokens[: 3 * GRID])
    assert_same(again, [theirs.resume(3, seed=5, cfg_scale=1.0)])
    assert gpu.launches() > COUNT // 2  # steps are recorded once and replayed
    mine.close()
    model.close()
    assert gpu.held() == 0


def test_variants_go_through_engines_of_fewer_rows(gpu: Gpu, gpu_bundles: dict[str, Path]) -> None:
    model = gpu.open(gpu_bundles["delta"])
    theirs, mine = python_editor(gpu_bundles["delta"], gpu.twin()).session(PICTURE), model.session(pixels())
    edited = mine.edit(WORDS, variants=3, sampling=as_sampling({"seed": 2, "noise": "gumbel"}))
    assert_same(edited, theirs.variants(WORDS, 3, seed=2, noise="gumbel"))
    mine.close()
    model.close()


def test_a_sampling_head_draws_the_hosts_tokens(
    make_gpu: Callable[..., Gpu], gpu_bundles: dict[str, Path], tmp_path: Path
) -> None:
    gpu, without = make_gpu("rtx"), Path(shutil.copytree(gpu_bundles["native"], tmp_path / "without"))
    with_manifest(without, lambda manifest: manifest["parts"].pop("sampler"))
    models = [gpu.open(bundle) for bundle in (gpu_bundles["native"], without)]
    device, host = (model.session(pixels()) for model in models)
    for settings, on_device in (
        ({"noise": "gumbel", "seed": 3, "cfg_scale": 1.0}, True),
        ({"top_k": 50, "top_p": 0.9, "temperature": 0.7, "cfg_interval": (20, 30)}, True),
        ({"top_k": 0, "top_p": 0.9}, False),  # the head sorts only with top-k
    ):
        before, sampling = gpu.runs("sampler"), as_sampling(settings)
        drawn = device.edit(WORDS, sampling=sampling, pictures=False)
        assert (gpu.runs("sampler") - before >= COUNT - 3) == on_device
        assert drawn.tokens.tolist() == host.edit(WORDS, sampling=sampling, pictures=False).tokens.tolist()
        before = gpu.runs("sampler")
        drafted = device.edit(WORDS, sampling=sampling, pictures=False, speculate=4)
        assert (0 < gpu.runs("sampler") - before < COUNT - 3) == on_device
        expected = host.edit(WORDS, sampling=sampling, pictures=False, speculate=4)
        assert drafted.tokens.tolist() == expected.tokens.tolist()
    for opened in (device, host, *models):
        opened.close()


def test_steps_that_cannot_be_recorded_are_queued(gpu: Gpu, gpu_bundles: dict[str, Path]) -> None:
    gpu.stand_in.stand_in_can(0, 1)
    model = gpu.open(gpu_bundles["delta"])
    mine = model.session(pixels())
    edited = mine.edit(WORDS, sampling=as_sampling({"seed": 7}))
    assert_same(edited, [python_editor(gpu_bundles["delta"], gpu.twin()).edit(PICTURE, WORDS, seed=7)])
    assert gpu.launches() == 0
    mine.close()
    model.close()


def test_sizes_of_drafts_are_those_of_the_engines(gpu: Gpu, gpu_bundles: dict[str, Path]) -> None:
    model = gpu.open(gpu_bundles["delta"])
    session = model.session(pixels())
    with pytest.raises(Refused, match="speculate must be EDITAR_SPECULATE_AUTO or one of 4 for this bundle, got 8"):
        session.edit(WORDS, speculate=8)
    session.close()
    model.close()


# Reports.


def test_info_names_the_memory_of_engines(gpu: Gpu, gpu_bundles: dict[str, Path]) -> None:
    for folder in gpu_bundles.values():
        mine = json.loads(gpu.library.text("describe_bundle", str(folder).encode(), 0))
        done = CliRunner().invoke(cli, ["info", str(folder), "--json"], catch_exceptions=False)
        assert mine["engines"] == json.loads(done.stdout.splitlines()[-1])["engines"]
        assert mine["engines"]


def test_verify_and_bench_run_on_the_device(make_gpu: Callable[..., Gpu], gpu_bundles: dict[str, Path]) -> None:
    gpu = make_gpu("rtx")
    model, fault = gpu.open(gpu_bundles["native"]), ctypes.c_char_p()
    report = json.loads(gpu.library.text("verify", model.handle, ctypes.byref(fault)))
    editor = python_editor(gpu_bundles["native"], gpu.twin())
    theirs = [*selftest.verify(editor), *selftest.batch_checks(editor)]
    assert fault.value is None
    assert [(each["part"], each["output"]) for each in report["checks"]] == [
        (each.part, each.output) for each in theirs
    ]
    plan = BenchPlan(repeats=1, warmup=-1, steps=4)
    measured = json.loads(gpu.library.text("bench", model.handle, ctypes.byref(plan), None))
    assert measured["sampling_head"] and measured["device_memory"] == gpu.held()
    assert measured["read_bandwidth"] > 0
    model.close()


# The comparison at the first load.


def test_untried_engines_are_compared_once_and_python_takes_the_result(
    make_gpu: Callable[..., Gpu], untried: Path
) -> None:
    gpu = make_gpu("rtx")
    gpu.open(untried).close()
    (file,) = engines_of(untried).glob("tried-*.json")
    assert file.name == f"tried-NVIDIA-GeForce-RTX-4090-13.0-{RTX_VERSION}.json"
    mine = json.loads(file.read_text())
    compared = gpu.runs()
    gpu.open(untried).close()
    assert gpu.runs() == compared
    assert not python_editor(untried, gpu.twin()).backend.needs_trial
    file.unlink()
    editor = python_editor(untried, gpu.twin())
    assert editor.backend.needs_trial

    try_engines(editor)
    theirs = json.loads(file.read_text())
    assert mine.keys() == theirs.keys()
    shown = [{name: each[name] for name in ("engine", "output", "bound", "holds")} for each in mine["parity"]]
    assert shown == [{name: each[name] for name in shown[0]} for each in theirs["parity"]]
    for found, expected in zip(mine["parity"], theirs["parity"], strict=True):
        assert found["error"] == pytest.approx(expected["error"], rel=1e-3, abs=1e-9)
    gpu.open(untried).close()
    assert gpu.runs() == compared  # Python's result is taken too


def test_engines_that_answer_wrongly_are_refused_from_then_on(make_gpu: Callable[..., Gpu], untried: Path) -> None:
    gpu = make_gpu("rtx")
    gpu.stand_in.stand_in_spoil(b"decoder [2, 4]")
    said = refused(gpu, untried)
    assert said.startswith(
        "the outputs of the engine decoder-2x4 differ from those of the exporting machine (logits of"
    )
    assert said.endswith("; they will not be used on this machine")
    gpu.stand_in.stand_in_spoil(b"")
    said = refused(gpu, untried)
    assert "failed the comparison with the exporting machine on NVIDIA GeForce RTX 4090 (tried-" in said
    assert said.endswith("or delete that file to try again")
    with pytest.raises(BackendError, match="failed the comparison"):
        python_editor(untried, gpu.twin())
    next(engines_of(untried).glob("tried-*.json")).unlink()
    gpu.open(untried).close()


# Compiled kernels.


def test_compiled_kernels_are_kept_and_shared_with_python(
    make_gpu: Callable[..., Gpu], untried: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv(kept_folder.VARIABLE, str(cache))
    gpu = make_gpu("rtx")
    model = gpu.open(untried)
    assert not list(cache.glob("kernels-*"))  # not before all have run
    model.close()
    (folder,) = cache.glob("kernels-*")
    assert kept_folder.is_as_sealed(folder)
    compiled = set(gpu.kernels(found=False))
    assert {"decoder [2, 4]", "decoder [1, 64]", "sampler "} <= compiled and not gpu.kernels(found=True)
    model = gpu.open(untried)
    session = model.session(pixels())
    assert set(gpu.kernels(found=True)) == compiled
    session.close()
    model.close()
    world = World()
    python_editor(untried, gpu.twin(world)).edit(PICTURE, WORDS)
    assert {kernel for kernel in world.kernels if kernel.startswith("found")} == {f"found {name}" for name in compiled}


# NVIDIA's own library.


RECIPE = """
[tensorrt]
library = "rtx"
capabilities = ["8.9"]
rows = [1]
chunks = ["text"]
dynamic = true
"""


def cuda_runtime() -> Path:
    """CUDA's own libcudart, from its wheel."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    found = [path for folder in folders for path in Path(folder).glob("*/lib/libcudart.so.*")]
    require(bool(found), "libcudart in a wheel", "pip install nvidia-cuda-runtime")
    return found[0]


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA driver")
def test_the_real_library_refuses_without_a_driver(
    make_gpu: Callable[..., Gpu], tried: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to there: the plug-in of these tests is compiled for other classes than the library's."""
    from export.__main__ import main

    require_module("tensorrt_rtx", "pip install tensorrt-rtx")
    import tensorrt_rtx_libs

    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE)
    monkeypatch.setattr(sys, "argv", ["export", "tensorrt", str(tried), "--target", str(recipe)])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code in (0, None) and (tried / "small/decoder.engine").stat().st_size > 10_000_000
    gpu = make_gpu("rtx")
    monkeypatch.setenv("EDITAR_TENSORRT", str(next(Path(tensorrt_rtx_libs.__path__[0]).glob("libtensorrt_rtx.so.1"))))
    monkeypatch.setenv("EDITAR_CUDART", str(cuda_runtime()))
    assert refused(gpu, tried, engine_folder=b"small") == "there is no NVIDIA driver on this machine; install one"
