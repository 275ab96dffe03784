"""Machines with a GPU that are none: the plug-in over a stand-in for CUDA and TensorRT (`tensorrt/stand_in.cpp`).

The engines are those of `tests/tensorrt_stand_in.py`: Python's builder makes them, and Python's runtime runs them too.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from editar_rt.backends.engines.backend import EngineBackend
from editar_rt.backends.engines.tensorrt import Machine, open_engines
from editar_rt.bundle.folder import Bundle
from editar_rt.editor import Editor
from export.recipe import EngineRecipe, read_engines
from export.tensorrt_builder import Watcher, build_engines
from tests.cpp.build import CPP, build
from tests.cpp.installed import HEADER, TENSORRT, engine_library, installed, onnxruntime_root
from tests.cpp.library import BACKEND, Library, Model, Refused, open_library
from tests.tensorrt_stand_in import RTX_VERSION, World, make_machine, make_tensorrt

VERSION = "11.4.0.106"
GPUS = {"tensorrt": ("Orin", "8.7"), "rtx": ("NVIDIA GeForce RTX 4090", "8.9")}
VERSIONS = {"tensorrt": VERSION, "rtx": RTX_VERSION}
DRIVER = "13.0"
RECIPES = {
    "tensorrt": EngineRecipe(chunks=("picture", "text"), drafts=(4,)),
    # Without an engine for one row: another row of its cache is computed too, where nothing reads it.
    "rtx": replace(read_engines("rtx-anywhere"), rows=(2,), drafts=(4,)),
}
CASES = {"delta": "tensorrt", "native": "rtx"}
"""The kinds of libraries by the bundles that tests use."""


@dataclass(frozen=True)
class Built:
    """Libraries of one kind, by the names of `tensorrt_compat.LIBRARIES`."""

    plugin: Path
    stand_in: Path


def build_kind(kind: str, folder: Path) -> Built:
    """Compile the stand-in, and the plug-in where the installed one is not of this kind."""
    headers = {"tensorrt": TENSORRT, "rtx": TENSORRT / "rtx"}[kind]
    flags = ["-O0", "-fPIC", "-shared", f"-I{headers}", "-DEDITAR_STATIC"]
    header = next(onnxruntime_root().rglob(HEADER)).parent
    parts = [TENSORRT / "stand_in.cpp", CPP / "src/json.cpp", CPP / "src/text.cpp"]
    stand_in = build(folder / f"stand_in_{kind}.so", parts, [*flags, f"-isystem{header}"], ["-ldl"])
    if kind == "tensorrt":
        return Built(installed() / "lib/libeditar_tensorrt.so", stand_in)
    sources = [*(CPP / "src/tensorrt").glob("*.cpp"), CPP / "src/dynamic_library.cpp"]
    return Built(build(folder / "libeditar_tensorrt.so", sources, flags, ["-ldl"]), stand_in)


class Gpu:
    """A machine with a GPU. Copies of the libraries in a folder of their own, so that nothing was opened before."""

    def __init__(self, kind: str, built: Built, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = folder / kind
        folder.mkdir()
        self.kind, self.plugin = kind, folder / built.plugin.name
        shutil.copy(built.plugin, self.plugin)
        path = shutil.copy(built.stand_in, folder)
        for variable in ("EDITAR_TENSORRT", "EDITAR_CUDART"):
            monkeypatch.setenv(variable, str(path))
        monkeypatch.setenv("EDITAR_ONNXRUNTIME", str(engine_library()))
        self.stand_in = ctypes.CDLL(str(path))
        self.stand_in.stand_in_kernels.restype = ctypes.c_char_p
        self.stand_in.stand_in_held.restype = ctypes.c_size_t
        self.stand_in.stand_in_memory.argtypes = [ctypes.c_size_t]
        self.library: Library = open_library()
        name, capability = GPUS[kind]
        self.be(name, capability)
        if kind == "rtx":
            self.version(1, 7, 1, 116)

    def be(self, name: str, capability: str) -> None:
        """Be another GPU."""
        major, minor = map(int, capability.split("."))
        self.stand_in.stand_in_gpu(name.encode(), major, minor)

    def version(self, major: int, minor: int, patch: int, build: int) -> None:
        """Be another release of the library."""
        self.stand_in.stand_in_version(major * 10000 + minor * 100 + patch, build)

    def kernels(self, found: bool) -> list[str]:
        """The kernels that were compiled, or those that were found in what was kept."""
        text: bytes = self.stand_in.stand_in_kernels(int(found))
        return text.decode().splitlines()

    def open(self, bundle: Path, **options: Any) -> Model:
        """Open a bundle; options are fields of `ModelOptions`."""
        options = {"onnxruntime_path": None, "plugin_path": str(self.plugin).encode()} | options
        return self.library.open(bundle, **options)

    def launches(self) -> int:
        """How often recorded work was replayed."""
        return int(self.stand_in.stand_in_launches())

    def held(self) -> int:
        """Bytes of the device's memory that are allocated."""
        return int(self.stand_in.stand_in_held())

    def runs(self, graph: str = "") -> int:
        """How often a graph has run, or all of them."""
        return int(self.stand_in.stand_in_runs(graph.encode()))

    def twin(self, world: World | None = None) -> Machine:
        """The same machine for Python's runtime."""
        return make_machine(VERSIONS[self.kind], world, *GPUS[self.kind], DRIVER)


def build_with(kind: str, folder: Path, recipe: EngineRecipe) -> Path:
    """Build a bundle's engines as `python -m export tensorrt` does. Returns their folder."""
    bundle, target = Bundle.open(folder), {"tensorrt": "h200", "rtx": "rtx-anywhere"}[kind]
    place = folder / target
    if kind == "rtx":
        library, machine = make_tensorrt(RTX_VERSION, World()), None
    else:
        machine = make_machine(VERSION, None, *GPUS[kind], DRIVER)
        library = machine.tensorrt
    build_engines(bundle, target, recipe, place, library, machine, False, Watcher())
    return place


def python_editor(folder: Path, machine: Machine) -> Editor:
    """Python's runtime over the same engines."""
    bundle = Bundle.open(folder)
    engines = open_engines(bundle, machine)
    return Editor(bundle, EngineBackend(bundle, engines, engines.info.plan))


def engines_of(bundle: Path) -> Path:
    """The bundle's one folder of engines."""
    (found,) = bundle.glob("*/build.json")
    return found.parent


def refused(gpu: Gpu, bundle: Path, status: int = BACKEND, **options: Any) -> str:
    """The sentence with which a bundle is not opened."""
    with pytest.raises(Refused) as caught:
        gpu.open(bundle, **options)
    assert caught.value.status == status
    return caught.value.message


def with_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a bundle's manifest, and let its engines belong to it again."""
    path, build_path = bundle / "bundle.json", engines_of(bundle) / "build.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    build_info = json.loads(build_path.read_text())
    build_path.write_text(json.dumps(build_info | {"bundle": hashlib.sha256(path.read_bytes()).hexdigest()}))
