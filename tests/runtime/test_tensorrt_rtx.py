"""TensorRT for RTX without a GPU: engines built for named GPUs, compared when they are loaded first, and the refusals.

Over a stand-in with the attributes of the real bindings (`tests/tensorrt_stand_in.py`);
`tests/export/test_tensorrt_rtx.py` builds with the real library.
"""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import editar_rt
from editar_rt import Sampling, names
from editar_rt.backends import kept_folder
from editar_rt.backends.engines import tensorrt
from editar_rt.backends.engines.backend import EngineBackend
from editar_rt.backends.engines.folder import BUILD_NAME, read_build
from editar_rt.backends.engines.tensorrt import Machine, open_engines
from editar_rt.backends.engines.tensorrt_compat import LIBRARIES, RTX
from editar_rt.bundle.folder import Bundle
from editar_rt.cli.app import cli
from editar_rt.editor import Editor
from editar_rt.errors import BackendError, OptionError
from editar_rt.measure.gate import GateError
from editar_rt.measure.memory import engine_needs
from export.bundle_writer import write_bundle
from export.model_info import Options, Sources
from export.precision import Storage
from export.recipe import EngineRecipe, read_engines
from export.tensorrt_builder import Watcher, build_engines
from tests.conftest import golden_arrays
from tests.tensorrt_stand_in import RTX_VERSION, World, make_machine, make_tensorrt

GOLDEN = golden_arrays("gpt_tiny")
RECIPE = replace(read_engines("rtx-anywhere"), chunks=("text",), drafts=(4,))
GPU, CAPABILITY = "NVIDIA GeForce RTX 4090", "8.9"
COMMAND = r"python -m export tensorrt \S+ --target rtx-anywhere --force"


def build(folder: Path, recipe: EngineRecipe = RECIPE, version: str = RTX_VERSION, world: World | None = None) -> Path:
    """Build as on a machine without a GPU."""
    library = make_tensorrt(version, world or World())
    place = folder / "rtx-anywhere"
    build_engines(Bundle.open(folder), place.name, recipe, place, library, None, False, Watcher())
    return place


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kept_folder.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def built(golden_gpt_bundle_native: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(golden_gpt_bundle_native, tmp_path_factory.mktemp("rtx") / "bundle"))
    build(folder)
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> World:
    """What this machine's GPU is asked."""
    world = World()
    machine = make_machine(RTX_VERSION, world, GPU, CAPABILITY)
    monkeypatch.setattr(tensorrt, "this_machine", lambda library: machine)
    return world


def spoil_steps(name: str, outputs: dict[str, np.ndarray]) -> None:
    if name == "decoder [2, 1]":
        outputs[names.LOGITS][:, :, 1::2] = 1e3


def test_engines_are_built_for_named_gpus_without_one(golden_gpt_bundle_native: Path, tmp_path: Path) -> None:
    folder, world = Path(shutil.copytree(golden_gpt_bundle_native, tmp_path / "bundle")), World()
    info = read_build(build(folder, world=world))
    assert info.library == RTX and info.tensorrt == RTX_VERSION and not info.tried and not info.parity
    assert info.capabilities == ["8.0", "8.6", "8.9", "12.0", "12.1"] and info.gpu == info.compute_capability == ""
    assert {(name.split("-")[0], engine.file) for name, engine in info.engines.items() if name[-1].isdigit()} == {
        ("decoder", "decoder.engine"),
        ("sampler", "sampler.engine"),
    }
    assert {"decoder-1x1", "decoder-2x1", "decoder-2x4", "decoder-1x120"} <= info.engines.keys()
    assert {"sampler-1x1", "sampler-2x1", "sampler-1x4", "sampler-2x4"} <= info.engines.keys()
    assert [call for call in world.calls if call.startswith("for SM")][:5] == [
        f"for SM{number}" for number in (80, 86, 89, 120, 121)
    ]
    assert "clear TF32" in world.calls and "build ['REQUIRE_USER_ALLOCATION'] 0 types" in world.calls
    assert world.calls.count("attention decomposable True") == 3  # float32 chunks have no kernel of their own
    assert not list(folder.glob("*.timings*"))


def test_the_first_load_on_a_gpu_compares_the_engines_and_keeps_the_result(copy: Path, here: World) -> None:
    editor = editar_rt.load(copy, device="tensorrt")
    assert editor.backend.name == f"TensorRT for RTX {RTX_VERSION} ({GPU})"
    (file,) = copy.glob("rtx-anywhere/tried-*.json")
    assert file.name == f"tried-NVIDIA-GeForce-RTX-4090-13.0-{RTX_VERSION}.json"
    kept = json.loads(file.read_text())
    assert kept["holds"] and kept["gpu"] == GPU and kept["driver"] == "13.0"
    assert {each["engine"] for each in kept["parity"]} == {"prefix"} | {
        f"decoder-{shape}" for shape in ("1x1", "2x1", "1x4", "2x4", "1x120")
    } | {f"sampler-{shape}" for shape in ("1x1", "2x1", "1x4", "2x4")}
    tokens = editor.generate(GOLDEN["text"], GOLDEN["image_tokens"], Sampling(cfg_interval=8, greedy=True))
    assert tokens.tolist() == GOLDEN["greedy_tokens_cfg3_interval8"].tolist()
    written = file.stat().st_mtime_ns
    assert not editar_rt.load(copy).backend.needs_trial
    assert file.stat().st_mtime_ns == written


def test_another_driver_compares_again(copy: Path, here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    editar_rt.load(copy, device="tensorrt")
    newer = make_machine(RTX_VERSION, World(), GPU, CAPABILITY, "13.1")
    monkeypatch.setattr(tensorrt, "this_machine", lambda library: newer)
    editar_rt.load(copy, device="tensorrt")
    assert len(list(copy.glob("rtx-anywhere/tried-*.json"))) == 2


def test_engines_that_answer_wrongly_are_refused_from_then_on(copy: Path, here: World) -> None:
    here.spoil = spoil_steps
    with pytest.raises(GateError, match="engine decoder-2x1 differ from .* they will not be used on this machine"):
        editar_rt.load(copy, device="tensorrt")
    here.spoil = lambda name, outputs: None
    with pytest.raises(BackendError, match=rf"failed the comparison .* on {GPU} \(tried-.*; run: {COMMAND}, or delete"):
        editar_rt.load(copy, device="tensorrt")
    next(copy.glob("rtx-anywhere/tried-*.json")).unlink()
    editar_rt.load(copy, device="tensorrt")


def test_a_draft_engine_that_answers_wrongly_is_found(copy: Path, here: World) -> None:
    def spoil(name: str, outputs: dict[str, np.ndarray]) -> None:
        if name == "decoder [2, 4]":
            outputs[names.LOGITS][1, 2] += 1

    here.spoil = spoil
    with pytest.raises(GateError, match=r"engine decoder-2x4 differ from .* \(logits of drafts"):
        editar_rt.load(copy, device="tensorrt")


@pytest.mark.parametrize("content", ["{", "[]", '{"holds": true}', '{"format": "editar-trial", "holds": true}'])
def test_a_result_that_is_not_of_these_engines_does_not_count(copy: Path, here: World, content: str) -> None:
    editar_rt.load(copy, device="tensorrt")
    (file,) = copy.glob("rtx-anywhere/tried-*.json")
    good = file.read_text()
    file.write_text(content)
    editar_rt.load(copy, device="tensorrt")
    assert json.loads(file.read_text())["parity"] == json.loads(good)["parity"]


def test_compiled_kernels_are_kept_for_the_next_load(copy: Path, here: World, cache: Path) -> None:
    editor = editar_rt.load(copy, device="tensorrt")
    compiled = [kernel for kernel in here.kernels if kernel.startswith("compiled")]
    assert compiled and not list(cache.glob("kernels-*"))
    del editor
    gc.collect()
    (folder,) = cache.glob("kernels-*")
    assert kept_folder.is_as_sealed(folder)
    here.kernels.clear()
    editor = editar_rt.load(copy, device="tensorrt")
    editor.generate(GOLDEN["text"], GOLDEN["image_tokens"], Sampling(cfg_interval=8, greedy=True))
    assert {kernel.removeprefix("found ") for kernel in here.kernels} == {
        kernel.removeprefix("compiled ") for kernel in compiled
    }


def test_scratch_memory_is_learned_from_the_engines(built: Path) -> None:
    """What a machine without a GPU writes down is the builder's word."""
    world = World()
    open_engines(Bundle.open(built), make_machine(RTX_VERSION, world, GPU, CAPABILITY))
    assert len(world.memory._blocks) == 1


def test_shapes_that_the_recipe_names_have_engines_of_their_own(
    golden_gpt_bundle_native: Path, tmp_path: Path, here: World
) -> None:
    folder = Path(shutil.copytree(golden_gpt_bundle_native, tmp_path / "bundle"))
    info = read_build(build(folder, replace(RECIPE, static=("2x1",))))
    assert info.engines["decoder-2x1"].file == "decoder-2x1.engine"
    assert info.engines["decoder-1x1"].file == info.engines["decoder-2x4"].file == "decoder.engine"
    editar_rt.load(folder, device="tensorrt")


@pytest.mark.parametrize("dialect", ["delta", "native"])
def test_the_newest_tensorrt_runs_both_dialects(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(request.getfixturevalue(f"golden_gpt_bundle_{dialect}"), tmp_path / "bundle"))
    bundle, machine = Bundle.open(folder), make_machine("11.4.0.106")
    recipe = EngineRecipe(chunks=("text",), drafts=(4,))
    build_engines(bundle, "h200", recipe, folder / "h200", machine.tensorrt, machine, False, Watcher())
    engines = open_engines(bundle, machine)
    assert engines.info.tried and {"decoder-2x4", "decoder-1x120"} <= engines.info.engines.keys()
    editor = Editor(bundle, EngineBackend(bundle, engines, engines.info.plan))
    tokens = editor.generate(GOLDEN["text"], GOLDEN["image_tokens"], Sampling(cfg_interval=8, greedy=True))
    assert tokens.tolist() == GOLDEN["greedy_tokens_cfg3_interval8"].tolist()


def test_the_memory_of_engines_is_estimated_without_loading_them(built: Path, golden_gpt_bundle_native: Path) -> None:
    done = CliRunner().invoke(cli, ["info", str(built), "--json"], catch_exceptions=False)
    need = json.loads(done.stdout.splitlines()[-1])["engines"]["rtx-anywhere"]
    files = read_build(built / "rtx-anywhere").files.values()
    assert need["weights"] == sum(file.bytes for file in files)  # the engine of all shapes once
    assert need["cache"] == 2 * 320 * 3 * 2 * 4 * 32 * 4  # rows, capacity, layers, keys and values, heads, width
    assert need["activations"] == 4096 and need["total"] == need["weights"] + need["cache"] + 4096
    said = CliRunner().invoke(cli, ["info", str(built)], catch_exceptions=False).stdout
    assert "memory       the engines in rtx-anywhere: about" in said
    assert engine_needs(Bundle.open(golden_gpt_bundle_native)) == {}


# What is refused.


@pytest.mark.parametrize(
    ("capabilities", "message"),
    [
        (("8.6", "8.7"), r"capability 8.7 \(it cannot name that\); it builds for 8.0, 8.6, 8.9, 12.0, 12.1; for a Jet"),
        (("9.0",), r"capability 9.0 \(it cannot name that\); .* for a GPU of a server, use another recipe"),
        (("11.0",), r"capability 11.0 \(it cannot name that\)"),
        (("7.5",), r"capability 7.5 \(Turing GPUs lack its float32 matmuls\)"),
        ((), r"names no GPUs; set capabilities = \[...\] to some of 8.0, 8.6, 8.9, 12.0, 12.1"),
    ],
    ids=str,
)
def test_gpus_that_cannot_be_named_are_refused_before_the_build(
    golden_gpt_bundle_native: Path, capabilities: tuple[str, ...], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        build(golden_gpt_bundle_native, replace(RECIPE, capabilities=capabilities))
    assert not (golden_gpt_bundle_native / "rtx-anywhere").exists()


def test_another_library_names_no_gpus(golden_gpt_bundle_native: Path) -> None:
    with pytest.raises(OptionError, match='builds engines for this machine\'s GPU alone; .* needs library = "rtx"'):
        build(golden_gpt_bundle_native, version="11.4.0.106")


@pytest.mark.parametrize("version", ["8.6.1", "10.13.0.35"])
def test_the_dialect_native_is_refused_where_caches_are_not_updated_in_place(
    golden_gpt_bundle_native: Path, version: str
) -> None:
    with pytest.raises(OptionError, match=rf"needs TensorRT 10.15 or newer, but this is {version}; .*--dialect delta"):
        build(golden_gpt_bundle_native, EngineRecipe(), version)


def test_a_dynamic_engine_is_refused_where_it_gives_wrong_results(golden_gpt_bundle_delta: Path) -> None:
    with pytest.raises(OptionError, match="TensorRT 8.6.1 gives wrong results .* without dynamic = true"):
        build(golden_gpt_bundle_delta, EngineRecipe(dynamic=True), "8.6.1")


def lowered(sources: Sources, folder: Path, precision: str) -> Path:
    write_bundle(folder, Sources(transformer=sources.transformer), Options(storage=Storage(precision, "native")))
    return folder


def test_eight_bit_weights_are_for_tensorrt_for_rtx(tiny_sources: Sources, tmp_path: Path) -> None:
    folder = lowered(tiny_sources, tmp_path / "bundle", "int8")
    recipe = replace(RECIPE, library="tensorrt", capabilities=())
    with pytest.raises(OptionError, match=r"has INT8 weights, which only TensorRT for RTX .* --precision int4 or fp16"):
        build(folder, recipe, "11.4.0.106")
    build(folder)


def test_float8_weights_need_gpus_that_have_them(tiny_sources: Sources, tmp_path: Path) -> None:
    folder = lowered(tiny_sources, tmp_path / "bundle", "fp8")
    with pytest.raises(OptionError, match=r"capability 8.9 and newer have, but the recipe also names 8.0, 8.6; leave"):
        build(folder)
    build(folder, replace(RECIPE, capabilities=("8.9", "12.0")))


def machine(version: str = RTX_VERSION, gpu: str = GPU, capability: str = CAPABILITY) -> Machine:
    return make_machine(version, None, gpu, capability)


def newer() -> Machine:
    found = machine()
    found.tensorrt.module.__version__ = "1.8.0.1"
    return found


@pytest.mark.parametrize(
    ("here", "message"),
    [
        (newer, rf"are for TensorRT for RTX {RTX_VERSION}, but this machine has 1.8.0.1; run: {COMMAND}"),
        (
            lambda: machine("11.4.0.106"),
            rf"are for TensorRT for RTX {RTX_VERSION}, but this machine has TensorRT 11.4.0.106; run: {COMMAND}",
        ),
        (
            lambda: machine(gpu="H200", capability="9.0"),
            r"of compute capability 8.0, .*, 12.1, but this machine has H200 \(9.0\); run: "
            r"python -m export tensorrt \S+ --target TARGET, where TARGET is a recipe in engines/ for this device",
        ),
    ],
    ids=["release", "library", "capability"],
)
def test_engines_for_others_are_refused(built: Path, here: Any, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        open_engines(Bundle.open(built), here())


def test_a_capability_that_the_recipe_left_out_can_be_added(golden_gpt_bundle_native: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden_gpt_bundle_native, tmp_path / "bundle"))
    build(folder, replace(RECIPE, capabilities=("8.6",)))
    with pytest.raises(
        BackendError, match=rf"capability 8.6, but .* \(8.9\); name it in the recipe, and run: {COMMAND}"
    ):
        open_engines(Bundle.open(folder), machine())


def test_an_altered_engine_is_refused(copy: Path) -> None:
    path = copy / "rtx-anywhere" / "decoder.engine"
    path.write_bytes(path.read_bytes().replace(b"flags", b"glags"))
    with pytest.raises(BackendError, match=rf"was altered \(its SHA-256 differs\); run: {COMMAND}"):
        open_engines(Bundle.open(copy), machine())


def test_a_machine_without_the_library_says_how_to_install_it(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = LIBRARIES[RTX]._replace(module="tensorrt_rtx_that_is_missing")
    monkeypatch.setitem(LIBRARIES, RTX, missing)
    with pytest.raises(
        BackendError, match=r'TensorRT for RTX\'s Python module does not load .*pip install "\.\[rtx\]"'
    ):
        editar_rt.load(copy, device="tensorrt")


def test_an_unknown_library_in_build_json_is_damage(copy: Path) -> None:
    path = copy / "rtx-anywhere" / BUILD_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"library": "onnx"}))
    with pytest.raises(BackendError, match="is damaged .there is no library 'onnx'"):
        open_engines(Bundle.open(copy), machine())
