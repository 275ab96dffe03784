"""What the plug-in for TensorRT's engines refuses, each in one sentence, and how it is built.

Over the stand-in of `gpu.py`. The sentences are those of Python's runtime where it knows the case.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cpp.build import CPP
from tests.cpp.gpu import VERSION, Gpu, engines_of, refused, with_manifest
from tests.cpp.installed import TENSORRT, installed, onnxruntime_root, run
from tests.cpp.library import BACKEND, BAD_ARGUMENT, BAD_BUNDLE, Refused
from tests.runtime.demo import SIDE, WORDS

GREY = np.full((SIDE, SIDE, 3), 128, np.uint8)
COMMAND = r"run: python -m export tensorrt \S+ --target \S+ --force"


def change(bundle: Path, /, **values: Any) -> None:
    """Change fields of build.json."""
    path = engines_of(bundle) / "build.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


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


def a_huge_file(gpu: Gpu, bundle: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    change(bundle, files={"decoder.engine": {"sha256": "0" * 64, "bytes": 1 << 60}})
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
    a_huge_file: r"build.json is damaged \(decoder.engine has an impossible size\); build the engines again",
    a_path_outside: r"is damaged \(bundle.json names '../decoder.engine', which is not a path inside the bundle",
}


@pytest.mark.parametrize("change", REFUSALS, ids=lambda change: change.__name__)
def test_what_is_missing_or_does_not_match_is_one_sentence(
    gpu: Gpu, tried: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[..., dict[str, Any]]
) -> None:
    message = refused(gpu, tried, **change(gpu, tried, monkeypatch))
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
    gpu: Gpu, tried: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(engines_of(tried) / "decoder-2x1.engine")
    model = gpu.open(tried)
    session = model.session(GREY)
    with pytest.raises(Refused, match=message) as caught:
        session.edit(WORDS)
    assert caught.value.status == BACKEND
    session.close()
    model.close()


def test_what_tensorrt_cannot_load_is_refused_with_its_words(gpu: Gpu, tried: Path) -> None:
    path, content = engines_of(tried) / "prefix.engine", b"not an engine"
    path.write_bytes(content)
    files = json.loads((engines_of(tried) / "build.json").read_text())["files"]
    change(tried, files=files | {path.name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}})
    model = gpu.open(tried)
    session = model.session(GREY)
    words = rf"prefix.engine: TensorRT {VERSION} could not load it: Serialization assertion .* failed; {COMMAND}"
    with pytest.raises(Refused, match=words):
        session.edit(WORDS)
    session.close()
    model.close()


@pytest.mark.parametrize("name", ["tokens", "logits", "positions", "new_rows"])
def test_a_manifest_whose_buffers_are_too_small_is_refused(gpu: Gpu, tried: Path, name: str) -> None:
    """Its symbols are allowed ones, in other places: an engine would write behind what they describe."""

    def swap(manifest: dict[str, Any]) -> None:
        decoder = manifest["parts"]["decoder"]
        for tensor in (*decoder["inputs"], *decoder["outputs"]):
            if tensor["name"] == name:
                tensor["shape"] = [{"rows": "positions"}.get(size, size) for size in tensor["shape"]]

    with_manifest(tried, swap)
    model = gpu.open(tried)
    session = model.session(GREY)
    with pytest.raises(Refused, match=rf"the tensor {name} of a part has another shape or type than") as caught:
        session.edit(WORDS)
    assert caught.value.status == BAD_BUNDLE
    session.close()
    model.close()


# Which engines.


def test_the_caller_may_name_the_engines(gpu: Gpu, tried: Path) -> None:
    name = engines_of(tried).name
    for engines in (name, str(engines_of(tried))):
        gpu.open(tried, engine_folder=engines.encode()).close()
    said = refused(gpu, tried, engine_folder=b"samples")
    assert "samples has no engines (it lacks build.json); build them with: python -m export tensorrt" in said


@pytest.mark.parametrize("engines", ["..", "../elsewhere", "/", "linked"])
def test_engines_outside_of_the_bundle_are_refused(gpu: Gpu, tried: Path, engines: str) -> None:
    outside = Path(shutil.move(engines_of(tried), tried.parent / "elsewhere"))
    (tried / "linked").symlink_to(outside)
    said = refused(gpu, tried, BAD_ARGUMENT, engine_folder=engines.encode())
    assert said == f"engine_folder must be a folder inside the bundle {tried}, got {engines}"
    assert "has no engines; build them" in refused(gpu, tried)


def test_of_several_folders_the_first_that_fits_is_taken(gpu: Gpu, tried: Path) -> None:
    shutil.copytree(engines_of(tried), tried / "a-first")
    path = tried / "a-first/build.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gpu": "Thor"}))
    gpu.open(tried).close()


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
