"""ONNX Runtime's plug-in provider for TensorRT for RTX: how it is registered, runs a bundle's graphs, and is refused.

No GPU runs it here. A stand-in has the functions of its package and names the CPU's provider, whose device ONNX
Runtime lists as it lists a plug-in's; so all but the provider is real. The last test asks the real package.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import onnxruntime as real
import pytest

import editar_rt
from editar_rt import Sampling
from editar_rt.backends import make_backend
from editar_rt.backends.ort import plugin
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import BackendError
from tests.conftest import golden_arrays

GOLDEN = golden_arrays("gpt_tiny")
NAME = "CPUExecutionProvider"
BUILD = r"has no engines; build them .* where TARGET is a recipe in engines/; "


class Package:
    """The package and what it makes ONNX Runtime list."""

    def __init__(self) -> None:
        self.registered: list[tuple[str, str]] = []
        self.devices = [device for device in real.get_ep_devices() if device.ep_name == NAME]
        self.fails = ""

    def get_ep_name(self) -> str:
        return NAME

    def get_library_path(self) -> str:
        return "/site-packages/libprovider.so"

    def register(self, name: str, library: str) -> None:
        if self.fails:
            raise RuntimeError(self.fails)
        if self.registered:
            raise RuntimeError(f"library is already registered under {name}")
        self.registered.append((name, library))

    def list(self) -> list[Any]:
        return self.devices if self.registered else []


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Package:
    package = Package()
    monkeypatch.setitem(sys.modules, plugin.MODULE, package)
    monkeypatch.setattr(real, "register_execution_provider_library", package.register)
    monkeypatch.setattr(real, "get_ep_devices", package.list)
    return package


@pytest.mark.parametrize("dialect", ["delta", "native"])
def test_a_bundle_without_engines_gives_the_golden_tokens(
    dialect: str, package: Package, request: pytest.FixtureRequest
) -> None:
    editor = editar_rt.load(request.getfixturevalue(f"golden_gpt_bundle_{dialect}"), device="tensorrt")
    assert editor.backend.name.startswith(f"ONNX Runtime {real.__version__} ({NAME}), caches in host memory")
    assert editor.backend.device == "tensorrt" and editor.backend.read_bandwidth() is None
    tokens = editor.generate(GOLDEN["text"], GOLDEN["image_tokens"], Sampling(cfg_interval=8, greedy=True))
    assert tokens.tolist() == GOLDEN["greedy_tokens_cfg3_interval8"].tolist()


def test_it_is_registered_once_and_only_when_it_is_asked_for(package: Package, golden_gpt_bundle_delta: Path) -> None:
    editar_rt.load(golden_gpt_bundle_delta, device="emulated")
    with pytest.raises(BackendError, match="has no engines"):
        editar_rt.load(golden_gpt_bundle_delta)
    assert not package.registered
    for _ in "12":
        editar_rt.load(golden_gpt_bundle_delta, device="tensorrt")
    assert package.registered == [(NAME, package.get_library_path())]


def test_every_session_is_on_the_provider(
    package: Package, golden_gpt_bundle_delta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its options name the device; a session without it is refused, not run on the CPU."""
    editor = editar_rt.load(golden_gpt_bundle_delta, device="tensorrt")
    asked: list[Any] = []

    def open_elsewhere(graph: str, options: Any, **more: Any) -> Any:
        asked.append(options.has_providers())
        return Mock(**{"get_providers.return_value": ["another"]})

    monkeypatch.setattr(real, "InferenceSession", open_elsewhere)
    with pytest.raises(BackendError, match=r"takes no part of \S+prefix.onnx; build engines, or choose --device"):
        editor.generate(GOLDEN["text"], GOLDEN["image_tokens"], Sampling(greedy=True))
    assert asked == [True]


def test_a_machine_without_the_package_names_the_line_that_installs_it(
    golden_gpt_bundle_delta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, plugin.MODULE, None)
    line = "is not installed; run: pip install onnxruntime-ep-nv-tensorrt-rtx-cu13; .* --device emulated"
    with pytest.raises(BackendError, match=BUILD + ".*" + line):
        editar_rt.load(golden_gpt_bundle_delta, device="tensorrt")


def test_a_library_that_does_not_load_is_said_with_its_reason(package: Package, golden_gpt_bundle_delta: Path) -> None:
    package.fails = "Failed to load library:\n libcuda.so.1: cannot open shared object file"
    said = r"does not load here \(Failed to load library: libcuda.so.1: .*\); it needs NVIDIA's driver.* --device emul"
    for _ in "12":
        with pytest.raises(BackendError, match=BUILD + ".*" + said):
            editar_rt.load(golden_gpt_bundle_delta, device="tensorrt")


def test_a_machine_without_a_gpu_is_said_again_and_again(package: Package, golden_gpt_bundle_delta: Path) -> None:
    package.devices = []
    for _ in "12":  # registered already, at the second
        with pytest.raises(BackendError, match=BUILD + ".* lists no device: this machine has no GPU"):
            editar_rt.load(golden_gpt_bundle_delta, device="tensorrt")


def test_a_bfloat16_cache_needs_engines(package: Package, golden_gpt_bundle_delta: Path) -> None:
    bundle = Bundle.open(golden_gpt_bundle_delta)
    bfloat16 = replace(bundle, manifest=replace(bundle.manifest, precision="bf16"))
    with pytest.raises(BackendError, match=BUILD + ".*caches in host memory, where NumPy has no bfloat16"):
        make_backend(bfloat16, "tensorrt")
    assert not package.registered


def test_an_onnx_runtime_without_plug_ins_is_refused() -> None:
    with pytest.raises(BackendError, match="1.22.0 knows no plug-in providers; run pip install -U onnxruntime"):
        plugin.RtxProvider.find(SimpleNamespace(__version__="1.22.0"))


@pytest.mark.skipif(
    importlib.util.find_spec(plugin.MODULE) is None,
    reason=f"147 MB, which CI does not install; install it with: {plugin.INSTALL}",
)
@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="this machine has NVIDIA's driver")
def test_the_real_package_asks_for_the_driver(golden_gpt_bundle_delta: Path) -> None:
    """In a new process, because importing the package changes the environment."""
    program = (
        "import sys, editar_rt\n"
        "try: editar_rt.load(sys.argv[1], device='tensorrt')\n"
        "except editar_rt.errors.BackendError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(golden_gpt_bundle_delta)]
    said = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    assert said.count("\n") == 1 and "libcuda.so.1" in said and "it needs NVIDIA's driver" in said
