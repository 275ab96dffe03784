"""TensorRT without a GPU: every version's interface, the builder, the gate and the refusals, over a stand-in.

The stand-in has the attributes of the real Python bindings of each version and runs graphs through ONNX Runtime
(`tests/tensorrt_stand_in.py`). What a real builder makes of a graph is not tested here.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import editar_rt
from editar_rt import Sampling, machine, names
from editar_rt.backends.engines import tensorrt
from editar_rt.backends.engines.backend import EngineBackend
from editar_rt.backends.engines.decoder import EngineDecoder
from editar_rt.backends.engines.folder import BUILD_NAME, read_build
from editar_rt.backends.engines.tensorrt import Machine, open_engines
from editar_rt.backends.engines.tensorrt_compat import load_tensorrt
from editar_rt.bundle.folder import Bundle
from editar_rt.editor import Editor
from editar_rt.errors import BackendError, OptionError
from editar_rt.measure.gate import GateError
from export.recipe import EngineRecipe
from export.tensorrt_builder import Watcher, build_engines, free_memory, memory_warnings
from tests.benchmarks.record_tensorrt_api import record
from tests.conftest import golden_arrays
from tests.tensorrt_stand_in import API, RTX_VERSION, VERSIONS, World, make_machine

GOLDEN = golden_arrays("gpt_tiny")
RECIPE = EngineRecipe(rows=(1, 2), chunks=("text",))


def build(folder: Path, machine: Machine, recipe: EngineRecipe = RECIPE, force: bool = False, **watcher: Any) -> Bundle:
    bundle = Bundle.open(folder)
    place = folder / "jetson-orin-jp6"
    build_engines(bundle, place.name, recipe, place, machine.tensorrt, machine, force, Watcher(**watcher))
    return bundle


@pytest.fixture
def half(golden_gpt_bundle_delta_fp16: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden_gpt_bundle_delta_fp16, tmp_path / "half"))


@pytest.fixture
def full(golden_gpt_bundle_delta: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden_gpt_bundle_delta, tmp_path / "full"))


def run(
    bundle: Bundle,
    machine: Machine,
    text: np.ndarray = GOLDEN["text"],
    picture: np.ndarray = GOLDEN["image_tokens"],
) -> np.ndarray:
    """Tokens that the engines in a bundle generate."""
    engines = open_engines(bundle, machine)
    editor = Editor(bundle, EngineBackend(bundle, engines, engines.info.plan))
    return editor.generate(text, picture, Sampling(cfg_interval=8, greedy=True))


@pytest.mark.parametrize("version", VERSIONS)
def test_engines_are_built_tried_published_and_run_with_every_version(version: str, half: Path) -> None:
    world = World()
    machine = make_machine(version, world)
    reported: list[str] = []
    progress: list[tuple[str, int, int]] = []
    bundle = build(half, machine, report=reported.append, progress=lambda *step: progress.append(step))
    info = read_build(half / "jetson-orin-jp6")
    assert set(info.engines) == {"prefix", "decoder-1x1", "decoder-2x1", "decoder-1x120"}
    assert info.tensorrt == version and info.gpu == "Orin" and info.compute_capability == "8.7"
    assert info.parity and all(each["holds"] for each in info.parity)
    assert info.flags["float16"] == ["decoder-1x1.engine", "decoder-2x1.engine", "decoder-1x120.engine"]
    assert {each["engine"] for each in info.parity} >= {"decoder-1x1", "decoder-2x1", "decoder-1x120", "prefix"}
    assert run(bundle, machine).tolist() == GOLDEN["greedy_tokens_cfg3_interval8"].tolist()
    assert open_engines(bundle, machine).name == f"TensorRT {version} (Orin)"
    monitored = "IProgressMonitor" in API[version]
    assert ({phase for phase, _, _ in progress} == {"Building Engine"}) == monitored
    # What differs between versions.
    explicit = "EXPLICIT_BATCH" in API[version]["NetworkDefinitionCreationFlag"]
    strong = "STRONGLY_TYPED" in API[version]["NetworkDefinitionCreationFlag"]
    expected = ["EXPLICIT_BATCH"] * explicit + ["STRONGLY_TYPED"] * strong
    assert {call for call in world.calls if call.startswith("network")} == {" ".join(["network", *expected])}
    assert "clear TF32" in world.calls and f"WORKSPACE {2048 << 20}" in world.calls
    assert ("FASTER_DYNAMIC_SHAPES_0805 True" in world.calls) == version.startswith("8.")
    built = [call for call in world.calls if call.startswith("build")]
    if strong:
        assert set(built) == {"build [] 0 types"}
    else:
        assert "build ['FP16', 'OBEY_PRECISION_CONSTRAINTS']" in built[1]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_sampling_head_is_built_tried_and_draws(
    version: str, golden_gpt_bundle_delta_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(golden_gpt_bundle_delta_head, tmp_path / "bundle"))
    machine = make_machine(version)
    bundle = build(folder, machine)
    info = read_build(folder / "jetson-orin-jp6")
    assert {"sampler-1x1", "sampler-2x1"} <= set(info.engines)
    compared = {(each["engine"], each["output"]) for each in info.parity if each["engine"].startswith("sampler")}
    assert compared == {
        ("sampler-1x1", "drawn, not guided"),
        ("sampler-2x1", "drawn, not guided"),
        ("sampler-2x1", "drawn, guided"),
    }
    drawn, draw = [], EngineDecoder._run_and_draw

    def counted(*call: Any) -> Any:
        drawn.append((found := draw(*call)) is not None)
        return found

    monkeypatch.setattr(EngineDecoder, "_run_and_draw", counted)
    tokens = run(bundle, machine, GOLDEN["text"][:1], GOLDEN["image_tokens"][:1])
    assert tokens.tolist() == GOLDEN["greedy_tokens_cfg3_interval8"][:1].tolist()
    assert drawn == [True] * 15


def test_a_sampler_that_draws_wrongly_is_not_published(golden_gpt_bundle_delta_head: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden_gpt_bundle_delta_head, tmp_path / "bundle"))
    world = World()

    def spoil(name: str, outputs: dict[str, np.ndarray]) -> None:
        if names.DRAWN in outputs and len(outputs[names.DRAWN]) == 2:
            outputs[names.DRAWN][0] += 1

    world.spoil = spoil
    with pytest.raises(GateError, match="the outputs of the engine sampler-2x1 differ"):
        build(folder, make_machine("10.13.0.35", world))
    assert not (folder / "jetson-orin-jp6").exists()


@pytest.mark.parametrize("version", VERSIONS)
def test_int4_weights_are_built_where_tensorrt_reads_them(
    version: str, golden_gpt_bundle_delta_int4: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(golden_gpt_bundle_delta_int4, tmp_path / "bundle"))
    machine = make_machine(version)
    assert machine.tensorrt.reads_int4 == ("INT4" in API[version]["DataType"])
    if version.startswith("8."):
        with pytest.raises(
            OptionError, match=rf"need TensorRT 10.0 or newer, but this is {version}; .*--precision fp16"
        ):
            build(folder, machine)
        assert not (folder / "jetson-orin-jp6").exists()
        return
    bundle = build(folder, machine)
    info = read_build(folder / "jetson-orin-jp6")
    assert info.flags["strongly_typed"] and all(each["holds"] for each in info.parity)
    expected = editar_rt.load(folder, device="emulated").generate(
        GOLDEN["text"], GOLDEN["image_tokens"], Sampling(cfg_interval=8, greedy=True)
    )
    assert run(bundle, machine).tolist() == expected.tolist()


def test_memory_is_estimated_by_the_weights_that_are_there(
    golden_gpt_bundle_delta_int4: Path, golden_gpt_bundle_delta_fp16: Path
) -> None:
    int4, half = (Bundle.open(folder) for folder in (golden_gpt_bundle_delta_int4, golden_gpt_bundle_delta_fp16))
    between = 4 * (half.manifest.files["decoder.onnx.data"].bytes - 1)  # of memory that is free
    assert list(memory_warnings(int4, between)) == [] and list(memory_warnings(half, between))


def test_a_weakly_typed_builder_is_told_the_graphs_types(half: Path) -> None:
    """Of every node that gives real numbers, the type that ONNX has for it."""
    import onnx

    build(half, make_machine("8.5.3.1"))
    engine = json.loads((half / "jetson-orin-jp6" / "decoder-2x1.engine").read_bytes())
    graph = onnx.shape_inference.infer_shapes(onnx.load(half / "decoder.onnx")).graph
    real = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    marked = {node.name: real[node.output[0]] for node in graph.node if real[node.output[0]] in (1, 10)}
    assert engine["types"].keys() == marked.keys()
    halves = {name for name, dtype in marked.items() if dtype == 10}
    values = {name: dtypes[0] for name, dtypes in engine["types"].items()}
    assert len({values[name] for name in halves}) == len({values[name] for name in marked.keys() - halves}) == 1
    assert any("Softmax" in name for name in marked.keys() - halves)


@pytest.mark.parametrize("version", VERSIONS[2:])
def test_one_engine_for_all_shapes(version: str, full: Path) -> None:
    machine = make_machine(version)
    bundle = build(full, machine, replace(RECIPE, shared=True))
    assert sorted(path.name for path in (full / "jetson-orin-jp6").glob("*.engine")) == [
        "decoder.engine",
        "prefix.engine",
    ]
    assert run(bundle, machine).tolist() == GOLDEN["greedy_tokens_cfg3_interval8"].tolist()


def test_one_engine_for_all_shapes_is_refused_where_it_gives_wrong_results(full: Path) -> None:
    with pytest.raises(OptionError, match=r"TensorRT 8.6.1 gives wrong results .* without shared = true"):
        build(full, make_machine("8.6.1"), replace(RECIPE, shared=True))


def spoil_with(value: float, engine: str, row: int = 0) -> Any:
    def spoil(name: str, outputs: dict[str, np.ndarray]) -> None:
        if name == engine:
            outputs[names.LOGITS][row, :, 1::2] = value  # between the values that a self-test keeps

    return spoil


@pytest.mark.parametrize(
    ("engine", "row", "message"),
    [
        ("decoder [1, 1]", 0, "the outputs of the engine decoder-1x1 differ"),
        (
            "decoder [2, 1]",
            1,
            r"the outputs of the engine decoder-2x1 differ from those of the exporting machine \(.*row 1",
        ),
        ("decoder [1, 120]", 0, "differ from those of the exporting machine"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), 1e3], ids=["NaN", "wrong"])
def test_an_engine_that_answers_wrongly_is_not_published(
    full: Path, engine: str, row: int, message: str, value: float
) -> None:
    world = World()
    world.spoil = spoil_with(value, engine, row)
    with pytest.raises((GateError, BackendError), match=message if value == 1e3 else "the outputs of the engine"):
        build(full, make_machine("10.13.0.35", world))
    assert not (full / "jetson-orin-jp6").exists()
    assert not list(full.glob("*.partial-*"))


def test_the_timings_of_a_build_serve_the_next(full: Path) -> None:
    machine = make_machine("8.5.3.1")
    build(full, machine)
    file = full / "tensorrt-8.5.3.1-8.7.timings"
    assert file.read_bytes() == b"...."  # one more for each of four engines
    build(full, machine, force=True)
    assert len(file.read_bytes()) == 8
    with pytest.raises(editar_rt.EditarError, match="exists; choose another folder, or replace it with --force"):
        build(full, machine)


def test_cublas_is_left_out_where_the_recipe_says_so(full: Path) -> None:
    world = World()
    build(full, make_machine("8.5.3.1", world), replace(RECIPE, external=False))
    sources = [call for call in world.calls if call.startswith("sources")]
    assert sources and not any(name in call for call in sources for name in ("CUBLAS", "CUDNN"))


def test_other_dialects_and_places_are_refused(golden_gpt_bundle: Path, full: Path, tmp_path: Path) -> None:
    machine = make_machine("10.13.0.35")
    with pytest.raises(OptionError, match=r"python -m export convert .* --target jetson-orin-jp6 -o OUT"):
        build(golden_gpt_bundle, machine)
    bundle = Bundle.open(full)
    with pytest.raises(OptionError, match=r"engines must be in their bundle's folder.*choose -o"):
        build_engines(bundle, "rtx", RECIPE, tmp_path / "elsewhere", machine.tensorrt, machine, False, Watcher())


def test_a_graph_that_the_parser_does_not_read(full: Path) -> None:
    world = World()
    machine = make_machine("8.5.3.1", world)
    bundle = Bundle.open(full)
    network = machine.tensorrt.make_network(machine.tensorrt.make_builder())
    (full / "broken.onnx").write_bytes(b"\x08no")
    with pytest.raises(BackendError, match=r"TensorRT 8.5.3.1 could not read broken.onnx: it is not ONNX"):
        machine.tensorrt.parse(network, bundle.folder / "broken.onnx")


def test_a_builder_that_cannot_start_says_why(full: Path) -> None:
    world = World()
    world.cannot_start = True
    with pytest.raises(
        BackendError, match="TensorRT 11.4.0.106 cannot start: CUDA initialization failure with error: 35"
    ):
        build(full, make_machine("11.4.0.106", world))


@pytest.fixture(scope="module")
def built(golden_gpt_bundle_delta: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(golden_gpt_bundle_delta, tmp_path_factory.mktemp("built") / "bundle"))
    build(folder, make_machine("10.13.0.35"))
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


COMMAND = r"run: python -m export tensorrt \S+ --target jetson-orin-jp6 --force"


def change(folder: Path, **fields: Any) -> None:
    path = folder / "jetson-orin-jp6" / BUILD_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (("8.6.1", "Orin", "8.7"), "are for TensorRT 10.13.0.35, but this machine has 8.6.1"),
        (("10.13.0.35", "Thor", "11.0"), r"are for GPU Orin \(8.7\), but this machine has Thor \(11.0\)"),
    ],
)
def test_engines_for_another_version_or_gpu_are_refused(
    built: Path, machine: tuple[str, str, str], message: str
) -> None:
    version, gpu, capability = machine
    with pytest.raises(BackendError, match=f"{message}; {COMMAND}"):
        open_engines(Bundle.open(built), make_machine(version, None, gpu, capability))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "truncated or altered"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"flags", b"glags")), "its SHA-256 differs"),
        (Path.unlink, "lacks the engine"),
    ],
    ids=["truncated", "altered", "missing"],
)
def test_damaged_engines_are_refused(copy: Path, damage: Any, message: str) -> None:
    damage(copy / "jetson-orin-jp6" / "decoder-2x1.engine")
    with pytest.raises(BackendError, match=f"{message}.*{COMMAND}"):
        run(Bundle.open(copy), make_machine("10.13.0.35"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("{}", 'does not say "format": "editar-engines"'),
        ('{"format": "editar-engines", "format_version": 1}', "is damaged .*lacks"),
    ],
)
def test_a_damaged_build_json_is_refused(copy: Path, text: str, message: str) -> None:
    (copy / "jetson-orin-jp6" / BUILD_NAME).write_text(text)
    with pytest.raises(BackendError, match=message):
        open_engines(Bundle.open(copy), make_machine("10.13.0.35"))


def test_engines_of_another_bundle_and_paths_that_leave_the_folder_are_refused(copy: Path) -> None:
    change(copy, bundle="0" * 64)
    with pytest.raises(BackendError, match=f"built from another bundle than this one; {COMMAND}"):
        open_engines(Bundle.open(copy), make_machine("10.13.0.35"))
    change(copy, files={"../x": {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(BackendError, match="not a path inside"):
        open_engines(Bundle.open(copy), make_machine("10.13.0.35"))


@pytest.mark.parametrize("name", ["decoder-2x1.engine", BUILD_NAME])
def test_engines_behind_links_out_of_the_bundle_are_not_loaded(copy: Path, tmp_path: Path, name: str) -> None:
    path = copy / "jetson-orin-jp6" / name
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(BackendError, match="is a link that leaves the bundle|has no engines"):
        run(Bundle.open(copy), make_machine("10.13.0.35"))


def test_an_engine_that_does_not_load_says_what_tensorrt_says(copy: Path) -> None:
    folder = copy / "jetson-orin-jp6"
    (folder / "decoder-2x1.engine").write_bytes(b"nonsense")
    digest = editar_rt.bundle.folder.file_digest(folder / "decoder-2x1.engine")
    files = json.loads((folder / BUILD_NAME).read_text())["files"]
    change(copy, files=files | {"decoder-2x1.engine": {"sha256": digest.sha256, "bytes": digest.bytes}})
    with pytest.raises(BackendError, match=f"magicTagRead failed; {COMMAND}"):
        run(Bundle.open(copy), make_machine("10.13.0.35"))


def test_a_bundle_without_engines_says_how_to_build_them(full: Path) -> None:
    with pytest.raises(
        BackendError, match=r"has no engines; .* python -m export tensorrt \S+ --target TARGET, where TARGET"
    ):
        editar_rt.load(full, device="tensorrt")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_a_machine_without_tensorrt_says_so(copy: Path) -> None:
    for device in ("tensorrt", "auto"):
        with pytest.raises(BackendError, match=r'TensorRT\'s Python module does not load.*pip install "\.\[trt\]"'):
            editar_rt.load(copy, device=device)
    with pytest.raises(BackendError, match="python3-libnvinfer"):
        load_tensorrt()


def test_scratch_memory_is_one_block_for_all_contexts(built: Path) -> None:
    world = World()
    machine = make_machine("10.13.0.35", world)
    engines = open_engines(Bundle.open(built), machine)
    held = len(world.memory._blocks)
    assert held == 1
    for shape in engines.info.plan.shapes([names.DECODER]):
        engines.open(shape)
    assert len(world.memory._blocks) == held


def test_an_editor_takes_the_engines(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "this_machine", lambda library: make_machine("10.13.0.35"))
    monkeypatch.setattr(machine, "COPIED_BYTES", 8 << 20)
    for device in ("tensorrt", "auto"):
        editor = editar_rt.load(copy, device=device)
        assert editor.backend.name == "TensorRT 10.13.0.35 (Orin)" and editor.backend.device == "tensorrt"
        assert editor.backend.read_bandwidth() > 0
    assert editar_rt.load(copy, device="emulated").backend.device == "cpu"


def test_memory_is_warned_about_before_the_build(full: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(full)
    assert list(memory_warnings(bundle, 1 << 40)) == [] == list(memory_warnings(bundle, None))
    (line,) = memory_warnings(bundle, 1 << 20)
    assert "building decoder takes about" in line and "1 MiB are free" in line
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  8 kB\nMemAvailable:     2048 kB\n")
    assert free_memory(file) == 2 << 20
    assert free_memory(tmp_path / "none") is None


def test_the_command_needs_neither_torch_nor_onnx(full: Path, golden_gpt_bundle: Path) -> None:
    """As on a device: those modules are not even there."""
    program = """
import sys
for name in ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "transformers", "tensorrt"):
    sys.modules[name] = None  # importing it fails
sys.argv[0] = "export"
import runpy
runpy.run_module("export", run_name="__main__")
"""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, "tensorrt", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)

    answer = run(str(full), "--target", "jetson-orin-jp6")
    assert answer.returncode == 1
    assert answer.stderr.startswith("export: TensorRT's Python module does not load")
    for arguments, sentence in (
        ((str(golden_gpt_bundle), "--target", "rtx"), "export: TensorRT needs the dialect delta or native, but "),
        ((str(full), "--target", "cpu"), "has no table [tensorrt]"),
        ((str(full), "--target", "rtx", "-o", "elsewhere"), "export: engines must be in their bundle's folder"),
    ):
        answer = run(*arguments)
        assert answer.returncode == 2 and sentence in answer.stderr and "Traceback" not in answer.stderr


# The real bindings.


WHEELS = {"8.5.3.1": "tensorrt", "8.6.1": "tensorrt-bindings", "10.13.0.35": "tensorrt-cu11-bindings"}
WHEELS |= {"11.4.0.106": "tensorrt-cu12-bindings", RTX_VERSION: "tensorrt-rtx-cu13-bindings"}


@pytest.mark.parametrize("version", API)
def test_the_real_bindings_have_what_was_recorded(version: str, tmp_path: Path) -> None:
    """Downloads NVIDIA's wheel of a version (1 MB; of 8.5 550 MB) and looks at the classes in it."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if shutil.which("gcc") is None or shutil.which("readelf") is None or not sys.platform.startswith("linux"):
        pytest.skip("stand-ins for TensorRT's libraries are made with gcc and binutils, which are not here")
    if version == "8.5.3.1" and python != "3.10":
        pytest.skip(f"the wheel of {version} is for Python 3.10 and this is {python}; what was recorded of it is used")
    platforms = [f"--platform=manylinux{p}_x86_64" for p in ("_2_28", "_2_17", "2014")]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--retries=0"]
    command += ["--timeout=15", "--python-version", python, *platforms, "-d", tmp_path, f"{WHEELS[version]}=={version}"]
    answer = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    wheel = next(tmp_path.glob("*.whl"), None)
    if wheel is None:
        last = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"no wheel of TensorRT {version} for Python {python} could be fetched: {last}")
    shutil.unpack_archive(wheel, tmp_path / "wheel", "zip")
    found = record(tmp_path / "wheel")[version]
    for kind, attributes in API[version].items():
        assert set(attributes) <= set(found[kind]), kind
