"""The plug-in for TensorRT's engines, without a GPU: edits have Python's tokens and pixels, and what is wrong is said.

Over a stand-in for CUDA and TensorRT (`gpu.py`), which runs the engines' graphs through ONNX Runtime. What NVIDIA's
libraries make of an engine is not tested here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.recipe import EngineRecipe, read_engines
from tests.cpp.build import CPP
from tests.cpp.gpu import GPUS, VERSION, VERSIONS, Built, Gpu, build_kind, build_with, python_editor
from tests.cpp.installed import TENSORRT, installed, onnxruntime_root, run
from tests.cpp.library import BACKEND, BAD_ARGUMENT, Refused, as_sampling
from tests.runtime.demo import BUNDLE, COUNT, GRID, PICTURE, SIDE, WORDS
from tests.tensorrt_stand_in import RTX_VERSION

RECIPES = {
    "tensorrt": EngineRecipe(chunks=("picture", "text"), drafts=(4,)),
    "rtx": replace(read_engines("rtx-anywhere"), drafts=(4,)),
}
CASES = {"native": "tensorrt", "delta": "tensorrt", "rtx": "rtx"}
COMMAND = r"run: python -m export tensorrt \S+ --target \S+ --force"


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    folder = tmp_path_factory.mktemp("kinds")
    return {kind: build_kind(kind, folder) for kind in GPUS}


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo with engines: in both dialects for TensorRT; for TensorRT for RTX with a sampling head."""
    from export.__main__ import main

    folder, made = tmp_path_factory.mktemp("bundles"), {}
    for name, kind in CASES.items():
        made[name] = folder / name
        options = ["--sampling-head", "--dialect", "native"] if name == "rtx" else ["--dialect", name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["export", "convert", str(BUNDLE), *options, "-o", str(made[name])])
            with pytest.raises(SystemExit) as done:
                main()
            assert done.value.code in (0, None)
        build_with(kind, made[name], RECIPES[kind])
    return made


@pytest.fixture
def make_gpu(kinds: dict[str, Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gpu]:
    return lambda kind: Gpu(kind, kinds[kind], tmp_path, monkeypatch)


@pytest.fixture
def gpu(make_gpu: Callable[..., Gpu]) -> Gpu:
    return make_gpu("tensorrt")


@pytest.fixture
def copy(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A bundle of the dialect native with engines of TensorRT."""
    return Path(shutil.copytree(bundles["native"], tmp_path / "bundle"))


@pytest.fixture
def untried(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A bundle with engines of TensorRT for RTX, which were built without a GPU."""
    return Path(shutil.copytree(bundles["rtx"], tmp_path / "untried", ignore=shutil.ignore_patterns("tried-*")))


def engines_of(bundle: Path) -> Path:
    """The bundle's one folder of engines."""
    (found,) = bundle.glob("*/build.json")
    return found.parent


def change(bundle: Path, /, **values: Any) -> None:
    """Change fields of build.json."""
    path = engines_of(bundle) / "build.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(gpu: Gpu, bundle: Path, status: int = BACKEND, **options: Any) -> str:
    with pytest.raises(Refused) as caught:
        gpu.open(bundle, **options)
    assert caught.value.status == status
    return caught.value.message


def pixels(path: Path = PICTURE) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def assert_same(edited: Any, results: list[Any]) -> None:
    for n, result in enumerate(results):
        assert edited.tokens[n].tolist() == result.tokens.tolist()
        assert np.array_equal(edited.rgb[n], np.asarray(result.image))


# Edits.


@pytest.mark.parametrize("name", CASES)
def test_an_edit_has_pythons_tokens_and_pixels(
    make_gpu: Callable[..., Gpu], bundles: dict[str, Path], name: str
) -> None:
    gpu = make_gpu(CASES[name])
    model = gpu.open(bundles[name], device=b"tensorrt")
    title = "TensorRT for RTX" if gpu.kind == "rtx" else "TensorRT"
    assert model.info.backend.decode() == f"{title} {VERSIONS[gpu.kind]} ({GPUS[gpu.kind][0]})"
    editor = python_editor(bundles[name], gpu.twin())
    theirs, mine = editor.session(PICTURE), model.session(pixels())
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[30:90, 20:71] = 255
    assert mine.source()[1].tolist() == theirs.condition_tokens[0].tolist()
    assert_same(mine.edit(WORDS, sampling=as_sampling({"seed": 7})), [theirs.edit(WORDS, seed=7)])
    settings = {"seed": 9, "cfg_interval": (5, 40)}
    assert_same(
        mine.edit(WORDS, sampling=as_sampling(settings), mask=mask, speculate=4),
        [theirs.edit(WORDS, mask=mask, speculate=4, **settings)],
    )
    first = theirs.edit(WORDS, seed=4, cfg_scale=1.0)
    again = mine.edit(WORDS, sampling=as_sampling({"seed": 5, "cfg_scale": 1.0}), kept=first.tokens[: 3 * GRID])
    assert_same(again, [theirs.resume(3, seed=5, cfg_scale=1.0)])
    assert gpu.launches() > COUNT  # steps are recorded once and replayed
    mine.close()
    model.close()
    assert gpu.held() == 0


def test_variants_go_through_engines_of_fewer_rows(gpu: Gpu, bundles: dict[str, Path]) -> None:
    model = gpu.open(bundles["delta"])
    theirs, mine = python_editor(bundles["delta"], gpu.twin()).session(PICTURE), model.session(pixels())
    edited = mine.edit(WORDS, variants=3, sampling=as_sampling({"seed": 2, "noise": "gumbel"}))
    assert_same(edited, theirs.variants(WORDS, 3, seed=2, noise="gumbel"))
    mine.close()
    model.close()


def test_a_sampling_head_draws_the_hosts_tokens(make_gpu: Callable[..., Gpu], bundles: dict[str, Path]) -> None:
    gpu = make_gpu("rtx")
    models = [gpu.open(bundles["rtx"])]
    models.append(make_gpu("tensorrt").open(bundles["native"]))  # without it
    device, host = (model.session(pixels()) for model in models)
    for settings, on_device in (
        ({"seed": 3}, True),
        ({"noise": "gumbel", "seed": 3, "cfg_scale": 1.0}, True),
        ({"greedy": True}, True),
        ({"top_k": 50, "top_p": 0.9, "temperature": 0.7}, True),
        ({"top_k": 0, "top_p": 0.9}, False),  # the head sorts only with top-k
        ({"cfg_interval": (20, 30), "seed": 1}, True),
    ):
        before, sampling = gpu.runs("sampler"), as_sampling(settings)
        drawn = device.edit(WORDS, sampling=sampling, pictures=False)
        assert drawn.tokens.tolist() == host.edit(WORDS, sampling=sampling, pictures=False).tokens.tolist()
        assert (gpu.runs("sampler") - before >= COUNT - 3) == on_device
    for opened in (device, host, *models):
        opened.close()


def test_steps_that_cannot_be_recorded_are_queued(gpu: Gpu, bundles: dict[str, Path]) -> None:
    gpu.stand_in.stand_in_can(0, 1)
    model = gpu.open(bundles["native"])
    mine = model.session(pixels())
    edited = mine.edit(WORDS, sampling=as_sampling({"seed": 7}))
    assert_same(edited, [python_editor(bundles["native"], gpu.twin()).edit(PICTURE, WORDS, seed=7)])
    assert gpu.launches() == 0
    mine.close()
    model.close()


def test_sizes_of_drafts_are_those_of_the_engines(gpu: Gpu, bundles: dict[str, Path]) -> None:
    model = gpu.open(bundles["native"])
    session = model.session(pixels())
    with pytest.raises(Refused, match="speculate must be EDITAR_SPECULATE_AUTO or one of 4 for this bundle, got 8"):
        session.edit(WORDS, speculate=8)
    session.close()
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

    from editar_rt.measure.gate import try_engines

    try_engines(editor)
    theirs = json.loads(file.read_text())
    assert mine.keys() == theirs.keys()
    shown = [{name: each[name] for name in ("engine", "output", "bound", "holds")} for each in mine["parity"]]
    assert shown == [{name: each[name] for name in shown[0]} for each in theirs["parity"]]
    for found, expected in zip(mine["parity"], theirs["parity"], strict=True):
        assert found["error"] == pytest.approx(expected["error"], rel=1e-3, abs=1e-9)
    gpu.open(untried).close()
    assert gpu.runs() == compared  # Python's result is taken too


@pytest.mark.parametrize("engine", ["decoder [2, 1]", "decoder [2, 4]", "decoder [1, 64]"])
def test_engines_that_answer_wrongly_are_refused_from_then_on(
    make_gpu: Callable[..., Gpu], untried: Path, engine: str
) -> None:
    gpu = make_gpu("rtx")
    gpu.stand_in.stand_in_spoil(engine.encode())
    name = "decoder-" + engine.split("[")[1][:-1].replace(", ", "x")
    said = refused(gpu, untried)
    assert said.startswith(f"the outputs of the engine {name} differ from those of the exporting machine (")
    assert said.endswith("; they will not be used on this machine")
    gpu.stand_in.stand_in_spoil(b"")
    said = refused(gpu, untried)
    assert "failed the comparison with the exporting machine on NVIDIA GeForce RTX 4090 (tried-" in said
    assert said.endswith("or delete that file to try again")
    with pytest.raises(Exception, match="failed the comparison"):
        python_editor(untried, gpu.twin())
    next(engines_of(untried).glob("tried-*.json")).unlink()
    gpu.open(untried).close()


# What is refused.


def missing_plugin(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"plugin_path": b"/nowhere/libeditar_tensorrt.so"}


def other_plugin(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"plugin_path": os.environ["EDITAR_TENSORRT"].encode()}


def missing_tensorrt(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setenv("EDITAR_TENSORRT", "/nowhere/libnvinfer.so.11")
    return {}


def not_named(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.delenv("EDITAR_TENSORRT")
    return {}


def not_tensorrt(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setenv("EDITAR_TENSORRT", str(gpu.plugin))
    return {}


def missing_cuda(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setenv("EDITAR_CUDART", "/nowhere/libcudart.so.13")
    return {}


def no_gpu(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    gpu.stand_in.stand_in_devices(0, 13000)
    return {}


def no_driver(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    gpu.stand_in.stand_in_devices(1, 0)
    return {}


def old_driver(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    gpu.stand_in.stand_in_devices(1, 11040)
    return {}


def full(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    gpu.stand_in.stand_in_memory(1 << 11)
    return {}


def cannot_start(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    gpu.stand_in.stand_in_can(1, 0)
    return {}


def newer_release(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    gpu.version(11, 5, 0, 3)
    return {}


def older_release(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    gpu.version(10, 15, 1, 29)
    return {}


def other_gpu(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    gpu.be("NVIDIA H200", "9.0")
    return {}


def other_bundle(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    change(bundle, bundle="0" * 64)
    return {}


def no_engines(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    shutil.rmtree(engines_of(bundle))
    return {}


def unknown_library(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    change(bundle, library="onnx")
    return {}


def no_rows(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    change(bundle, rows=[])
    return {}


def too_many_rows(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    change(bundle, rows=[1, 1 << 40])
    return {}


def wrong_type(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    change(bundle, tried=1)
    return {}


def control_characters(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    change(bundle, target="\x1b[2J")
    return {}


def not_json(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    (engines_of(bundle) / "build.json").write_text("{")
    return {}


def another_format(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    change(bundle, format_version=2)
    return {}


def a_path_outside(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    change(bundle, files={"../decoder.engine": {"sha256": "0" * 64, "bytes": 1}})
    return {}


REFUSALS: dict[Callable[..., dict[str, Any]], str] = {
    missing_plugin: r"libeditar_tensorrt, cannot be opened \(.*/nowhere.*\); build it .*: plugin_path$",
    other_plugin: r"is another one \(it has no function editar_plugin_table\); build it",
    missing_tensorrt: r"library of TensorRT cannot be opened \(.*/nowhere.*\); install TensorRT, .*EDITAR_TENSORRT$",
    not_named: r"the library of TensorRT cannot be opened \(.*libnvinfer\.so\.11: .*\); install TensorRT, or ",
    not_tensorrt: r"given as TensorRT is another one \(it has no function getInferLibVersion\)",
    missing_cuda: r"CUDA's runtime library, libcudart, cannot be opened \(.*\); install it, or .* EDITAR_CUDART$",
    no_gpu: r"^CUDA finds no GPU on this machine$",
    no_driver: r"^there is no NVIDIA driver on this machine; install one$",
    old_driver: r"driver supports CUDA up to 11.4, but this is CUDA 12.6; install a newer driver",
    full: r"out of memory on the GPU: 0 MiB are needed, but only 0 of 0 MiB are free; close other programs",
    cannot_start: r"TensorRT 11.4.0.106 cannot start: CUDA initialization failure with error: 35",
    newer_release: rf"are for TensorRT {VERSION}, but this machine has 11.5.0.3; {COMMAND}",
    older_release: r"libeditar_tensorrt was built for TensorRT 11.4, but this machine has 10.15.1.29; build it with",
    other_gpu: rf"are for GPU Orin \(8.7\), but this machine has NVIDIA H200 \(9.0\); {COMMAND}",
    other_bundle: rf"were built from another bundle than this one; {COMMAND}",
    no_engines: r"has no engines; build them on this device with: python -m export tensorrt \S+ --target TARGET",
    unknown_library: r"build.json is damaged \(there is no library 'onnx'\); build the engines again",
    no_rows: r"build.json is damaged \(it has no rows or chunks\); build the engines again",
    too_many_rows: r"build.json is damaged \(it has 1099511627776 rows or positions\); build",
    wrong_type: r"build.json is damaged \(build.json: tried must be bool, got 1\); build the engines again",
    control_characters: r"build.json is damaged \(build.json has control characters in the string '\\x1b\[2J'",
    not_json: r"build.json is not JSON \(.*\); build the engines again",
    another_format: r'build.json does not say "format": "editar-engines" of version 1; build the engines again',
    a_path_outside: r"is damaged \(bundle.json names '../decoder.engine', which is not a path inside the bundle",
}


@pytest.mark.parametrize("change", REFUSALS, ids=lambda change: change.__name__)
def test_what_is_missing_or_does_not_match_is_one_sentence(
    gpu: Gpu, copy: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[..., dict[str, Any]]
) -> None:
    message = refused(gpu, copy, **change(gpu, copy, monkeypatch))
    assert re.search(REFUSALS[change], message), message
    assert "\n" not in message


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def altered(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"flags", b"glags"))


def link(path: Path) -> None:
    outside = Path(shutil.move(path, path.parents[2] / "elsewhere.engine"))
    path.symlink_to(outside)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, f"lacks the engine decoder-2x1.engine; {COMMAND}"),
        (truncated, rf"has \d+ bytes, but build.json says \d+: it was truncated or altered; {COMMAND}"),
        (altered, rf"was altered \(its SHA-256 differs\); {COMMAND}"),
        (link, "decoder-2x1.engine is a link that leaves the bundle; do not trust it, or run: python"),
    ],
    ids=["missing", "truncated", "altered", "link"],
)
def test_a_damaged_engine_is_refused_when_it_is_needed(
    gpu: Gpu, copy: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(engines_of(copy) / "decoder-2x1.engine")
    model = gpu.open(copy)
    session = model.session(pixels())
    with pytest.raises(Refused, match=message) as caught:
        session.edit(WORDS)
    assert caught.value.status == BACKEND
    session.close()
    model.close()


def test_what_tensorrt_cannot_load_is_refused_with_its_words(gpu: Gpu, copy: Path) -> None:
    path, content = engines_of(copy) / "prefix.engine", b"not an engine"
    path.write_bytes(content)
    files = json.loads((engines_of(copy) / "build.json").read_text())["files"]
    change(copy, files=files | {path.name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}})
    model = gpu.open(copy)
    session = model.session(pixels())
    words = rf"prefix.engine: TensorRT {VERSION} could not load it: Serialization assertion .* failed; {COMMAND}"
    with pytest.raises(Refused, match=words):
        session.edit(WORDS)
    session.close()
    model.close()


# Which engines.


def test_the_caller_may_name_the_engines(gpu: Gpu, copy: Path) -> None:
    name = engines_of(copy).name
    for engines in (name, str(engines_of(copy))):
        gpu.open(copy, engines=engines.encode()).close()
    said = refused(gpu, copy, engines=b"samples")
    assert "samples has no engines (it lacks build.json); build them with: python -m export tensorrt" in said


@pytest.mark.parametrize("engines", ["..", "../elsewhere", "/", "linked"])
def test_engines_outside_of_the_bundle_are_refused(gpu: Gpu, copy: Path, engines: str) -> None:
    outside = Path(shutil.move(engines_of(copy), copy.parent / "elsewhere"))
    (copy / "linked").symlink_to(outside)
    said = refused(gpu, copy, BAD_ARGUMENT, engines=engines.encode())
    assert said == f"engines must be a folder inside the bundle {copy}, got {engines}"
    assert "has no engines; build them" in refused(gpu, copy)


def test_of_several_folders_the_first_that_fits_is_taken(gpu: Gpu, copy: Path) -> None:
    shutil.copytree(engines_of(copy), copy / "a-first")
    path = copy / "a-first/build.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gpu": "Thor"}))
    gpu.open(copy).close()


# The build.


def test_the_build_says_whether_the_plugin_is_built(tmp_path: Path) -> None:
    def configured(*options: str) -> str:
        header = f"-DONNXRUNTIME_ROOT={onnxruntime_root()}"
        shutil.rmtree(tmp_path / "build", ignore_errors=True)
        return run(["cmake", "-S", str(CPP), "-B", str(tmp_path / "build"), header, "-DEDITAR_CLI=OFF", *options])

    without = configured("-DTENSORRT_INCLUDE=")
    assert "libeditar_tensorrt is not built: NvInfer.h was not found; give the folder of TensorRT's headers" in without
    found = configured(f"-DTENSORRT_ROOT={TENSORRT}/rtx", f"-DCUDA_ROOT={TENSORRT}")
    assert "libeditar_tensorrt is built for TensorRT for RTX 1.7" in found
    for name in ("NvInfer.h", "cuda_runtime_api.h"):
        shutil.copy(TENSORRT / name, tmp_path)
    old = "#define NV_TENSORRT_MAJOR 8 //!< TensorRT major version.\n#define NV_TENSORRT_MINOR 6\n"
    (tmp_path / "NvInferVersion.h").write_text(old)
    with pytest.raises(AssertionError, match=r"of\s+TensorRT\s+8\.6,\s+but\s+10\.1\s+or\s+newer\s+is\s+needed"):
        configured(f"-DTENSORRT_ROOT={tmp_path}")


def test_the_plugin_exports_one_function_and_links_nothing_of_nvidias() -> None:
    library = str(installed() / "lib/libeditar_tensorrt.so")
    assert [line.split()[-1] for line in run(["nm", "-D", "--defined-only", library]).splitlines()] == [
        "editar_plugin_table"
    ]
    needed = run(["readelf", "-d", library]) + run(["readelf", "-d", str(installed() / "lib/libeditar.so")])
    assert not any(name in needed for name in ("nvinfer", "cuda", "cudart", "tensorrt_rtx"))
