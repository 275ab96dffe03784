"""CUDA through ctypes, over a C library with the runtime's functions in host memory: order and types of arguments."""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from editar_rt.backends.engines import cuda
from editar_rt.backends.engines.cuda import CtypesRuntime, CudaMemory, Device, find_runtime, memory_in_use
from editar_rt.backends.engines.device import CaptureError, Lines
from editar_rt.errors import BackendError

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in for libcudart is compiled with gcc")


@pytest.fixture
def library(tmp_path: Path) -> ctypes.CDLL:
    source = Path(__file__).with_name("cudart_stand_in.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "libcudart.so", source], check=True)
    loaded = ctypes.CDLL(str(tmp_path / "libcudart.so"))
    loaded.held_bytes.restype = ctypes.c_size_t
    return loaded


@pytest.fixture
def memory(library: ctypes.CDLL) -> CudaMemory:
    return CudaMemory(CtypesRuntime(library))


def test_the_device_is_described(library: ctypes.CDLL) -> None:
    device = Device(CtypesRuntime(library))
    assert (device.name, device.capability, device.cuda) == ("Orin", "8.7", "12.6")


def test_no_gpu_and_an_old_driver_are_said(library: ctypes.CDLL) -> None:
    library.set_devices(0)
    with pytest.raises(BackendError, match="CUDA finds no GPU on this machine; check .* --device emulated"):
        Device(CtypesRuntime(library))
    library.set_driver(11040)
    with pytest.raises(BackendError, match=r"driver supports CUDA up to 11.4, but this is CUDA 12.6; install a newer"):
        Device(CtypesRuntime(library))
    library.set_driver(0)
    with pytest.raises(BackendError, match="no NVIDIA driver on this machine"):
        Device(CtypesRuntime(library))


def test_a_library_that_is_too_new_for_the_driver_gives_way_to_an_older(
    library: ctypes.CDLL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = Path(shutil.copy(tmp_path / "libcudart.so", tmp_path / "newer.so"))
    ctypes.CDLL(str(newer)).set_driver(11040)
    monkeypatch.setattr(cuda, "_libraries", lambda: iter([str(newer), str(tmp_path / "libcudart.so")]))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", None)
    assert Device(find_runtime()).name == "Orin"
    monkeypatch.setattr(cuda, "_libraries", lambda: iter([str(newer)]))
    with pytest.raises(BackendError, match="install a newer driver"):
        Device(find_runtime())
    monkeypatch.setattr(cuda, "_libraries", lambda: iter(()))
    with pytest.raises(BackendError, match="run: pip install cuda-bindings"):
        find_runtime()


def test_memory_in_use_is_what_is_not_free(
    library: ctypes.CDLL, memory: CudaMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "find_runtime", lambda: CtypesRuntime(library))
    before = memory_in_use()
    memory.allocate(4096)
    assert before is not None and memory_in_use() == before + library.held_bytes()
    monkeypatch.undo()
    monkeypatch.setattr(cuda, "_libraries", lambda: iter(()))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", None)
    assert memory_in_use() is None


def test_data_goes_there_and_back(memory: CudaMemory) -> None:
    source, target = memory.host_array(64), memory.host_array(128)
    assert not source.any()
    source[:] = np.arange(64)
    here, there = memory.allocate(64), memory.allocate(128)
    memory.zero(there, 128)
    memory.to_device(here, source)
    memory.copy_lines(Lines(there + 8, 32), Lines(here + 4, 16), 6, 4)
    memory.to_host(target, there)
    memory.synchronize()
    expected = np.zeros((4, 32), np.uint8)
    expected[:, 8:14] = source.reshape(4, 16)[:, 4:10]
    assert np.array_equal(target.reshape(4, 32), expected)


def test_lines_of_several_slices_are_copied_at_once(memory: CudaMemory) -> None:
    source, target = memory.host_array(64), memory.host_array(256)
    source[:] = np.arange(64)
    here, there = memory.allocate(64), memory.allocate(256)
    memory.zero(there, 256)
    memory.to_device(here, source)
    memory.copy_lines(Lines(there + 8, 32, 128), Lines(here + 4, 16, 32), 6, 2, 2)
    memory.to_host(target, there)
    memory.synchronize()
    expected = np.zeros((2, 4, 32), np.uint8)
    expected[:, :2, 8:14] = source.reshape(2, 2, 16)[..., 4:10]
    assert np.array_equal(target.reshape(2, 4, 32), expected)


def test_too_much_memory_says_what_is_needed_and_what_there_is(library: ctypes.CDLL, memory: CudaMemory) -> None:
    block = memory.allocate(512 << 10)
    with pytest.raises(
        BackendError, match="1 MiB are needed, but only 0 of 1 MiB are free; close other programs that use it"
    ):
        memory.allocate(1 << 20)
    memory.free(block)
    assert library.held_bytes() == 0


def test_host_memory_lives_as_long_as_its_views(memory: CudaMemory) -> None:
    view = memory.host_array(1 << 16)[256:].view(np.float32)
    gc.collect()
    view[:] = 1.5
    assert float(view.sum()) == 1.5 * view.size


def test_work_is_captured_and_launched(library: ctypes.CDLL, memory: CudaMemory) -> None:
    library.set_capture(1)
    block = memory.allocate(64)
    launch = memory.capture(lambda: memory.zero(block, 64))
    launch()
    launch()
    assert library.launched() == 2


def test_a_capture_that_fails_says_why(memory: CudaMemory) -> None:
    with pytest.raises(CaptureError, match=r"cudaStreamEndCapture failed with error 901 \(other\)"):
        memory.capture(lambda: None)
    memory.synchronize()  # nothing is left open


def test_waiting_inside_a_capture_fails_it(library: ctypes.CDLL, memory: CudaMemory) -> None:
    library.set_capture(1)
    with pytest.raises(CaptureError, match="cudaStreamSynchronize failed"):
        memory.capture(memory.synchronize)
