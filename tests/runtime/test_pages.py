"""Memory given back: what was read of a file and is not needed, what was freed and is kept."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest

from editar_rt.backends.ort import pages
from editar_rt.backends.ort.pages import WORTH, drop_file_pages, mappings, trim_heap

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped where")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights beside a graph, random and large enough to look for."""
    path = tmp_path / "graph.onnx.data"
    path.write_bytes(np.random.default_rng(0).bytes(WORTH))
    return path


def opened(path: Path) -> np.memmap:
    """A file as a session holds it, mapped for itself alone, and read."""
    array = np.memmap(path, np.uint8, "c")
    array.max()
    return array


def resident(path: Path) -> int:
    return sum(mapping.resident for mapping in mappings() if mapping.file == str(path))


@needs_linux
def test_what_was_read_of_weights_goes_and_comes_back(weights: Path) -> None:
    array = opened(weights)
    assert resident(weights) == WORTH
    assert drop_file_pages([weights]) == WORTH
    assert resident(weights) == 0
    assert array.tobytes() == weights.read_bytes()


@needs_linux
def test_what_was_written_and_other_files_stay(weights: Path) -> None:
    other = weights.with_name("graph.onnx_of_another")
    other.write_bytes(weights.read_bytes())
    kept, written = opened(other), opened(weights)
    written[0] = 255 - written[0]
    expected = written.tobytes()
    assert drop_file_pages([weights]) == 0
    assert resident(other) == WORTH == len(kept)
    assert written.tobytes() == expected


@needs_linux
def test_small_files_are_not_looked_for(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.write_bytes(weights.read_bytes()[: WORTH // 2])
    monkeypatch.setattr(pages, "SMAPS", None)  # reading it would fail
    array = opened(weights)
    assert drop_file_pages([weights]) == 0 and len(array) == WORTH // 2


def test_other_systems_keep_everything(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages.sys, "platform", "win32")
    monkeypatch.setattr(pages, "SMAPS", weights.with_name("no such file"))
    assert drop_file_pages([weights]) == 0 and not list(mappings())
    trim_heap()


@needs_linux
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library keeps nothing")
def test_freed_blocks_are_given_back() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    size, count = 64 << 10, 500  # small enough to lie in the heap
    blocks = [libc.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[:-1]:  # the last one holds the heap's end
        libc.free(block)
    before = sum(mapping.own for mapping in mappings())
    trim_heap()
    assert before - sum(mapping.own for mapping in mappings()) > size * count // 2
    libc.free(blocks[-1])
