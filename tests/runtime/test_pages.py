"""Memory given back: what was read of a file and is not needed, what was freed and is kept; and whose it is."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from editar_rt.backends.ort import pages
from editar_rt.backends.ort.pages import WORTH, drop_file_pages, mappings, trim_heap
from editar_rt.backends.ort.sessions import Session

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


# Sessions that come and go meanwhile.


class MappingRuntime:
    """ONNX Runtime, as far as it matters here: a session maps a file of weights until it is destroyed."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.meanwhile = meanwhile  # what happens while a session opens

    def InferenceSession(self, graph: str, options: object) -> MappingSession:
        session = MappingSession(graph)
        self.meanwhile()
        return session


class MappingSession:
    def __init__(self, graph: str) -> None:
        self.weights = opened(Path(graph))

    def io_binding(self) -> Any:
        return SimpleNamespace(session=self)


def addresses(path: Path) -> list[int]:
    return [mapping.start for mapping in mappings() if mapping.file == str(path)]


def take_addresses(start: int, size: int) -> np.ndarray | None:
    """Memory at these addresses, as another thread might get it; None while something is mapped there."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    private_anonymous, if_free = 0x22, 0x100000
    if libc.mmap(start, size, 3, private_anonymous | if_free, -1, 0) != start:
        return None
    memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(start))
    memory[:] = 1
    return memory


def in_another_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def drop_while(meanwhile: Callable[[], object], weights: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """`drop_file_pages`, with something that happens after the mappings are listed and before they are used."""

    def listed() -> Iterator[pages.Mapping]:
        found = list(mappings())
        meanwhile()
        yield from found

    with monkeypatch.context() as patch:
        patch.setattr(pages, "mappings", listed)
        return drop_file_pages([weights])


@needs_linux
@pytest.mark.parametrize("held", ["a session", "a binding"])
@pytest.mark.parametrize("closed_by", ["another thread", "the garbage collector"])
def test_a_session_that_goes_while_pages_are_dropped_goes_afterwards(
    closed_by: str, held: str, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its addresses could hold somebody's memory by now, which would be zeroed."""
    session = Session(MappingRuntime(), str(weights), None)
    holder: list[object] = [session if held == "a session" else session.io_binding()]
    del session
    (start,) = addresses(weights)
    taken: list[np.ndarray | None] = []

    def meanwhile() -> None:
        if closed_by == "another thread":
            in_another_thread(holder.clear)
        else:
            gc.collect()
        taken.append(take_addresses(start, WORTH))

    if closed_by == "the garbage collector":
        holder.append(holder)
        holder = []
    drop_while(meanwhile, weights, monkeypatch)
    (memory,) = taken
    assert memory is None or memory.all()
    assert not addresses(weights), "it stays open"


@needs_linux
def test_while_a_session_opens_no_pages_are_dropped(weights: Path) -> None:
    dropped: list[int] = []
    runtime = MappingRuntime(lambda: in_another_thread(lambda: dropped.append(drop_file_pages([weights]))))
    session = Session(runtime, str(weights), None)
    assert dropped == [0] and resident(weights) == WORTH
    assert drop_file_pages([weights]) == WORTH
    del session
    assert not addresses(weights)


@needs_linux
def test_a_session_opens_after_pages_were_dropped(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, opening = threading.Event(), threading.Event()

    def open_one() -> None:
        begun.set()
        Session(MappingRuntime(opening.set), str(weights), None)

    thread = threading.Thread(target=open_one)

    def meanwhile() -> None:
        thread.start()
        begun.wait()
        assert not opening.wait(0.05)

    drop_while(meanwhile, weights, monkeypatch)
    thread.join(60)
    assert opening.is_set() and not addresses(weights)


@needs_linux
def test_an_error_keeps_nothing_of_a_session_that_did_not_open(weights: Path) -> None:
    def fail() -> None:
        raise RuntimeError("no such operator")

    with pytest.raises(RuntimeError, match="no such operator") as failed:
        Session(MappingRuntime(fail), str(weights), None)
    assert failed.value.__traceback__ is not None and not addresses(weights)


@needs_linux
def test_sessions_come_and_go_in_many_threads(weights: Path) -> None:
    """None is forgotten, and nobody waits for ever."""

    def work() -> None:
        for _ in range(50):
            session = Session(MappingRuntime(), str(weights), None)
            drop_file_pages([weights])
            binding = session.io_binding()
            del session
            drop_file_pages([weights])
            del binding

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and not addresses(weights)
