"""Rows of the C++ runtime's cache share pages as Python's do, and weights' pages are given back."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from editar_rt.backends.ort import pages
from editar_rt.backends.ort.rows import PAGE, RowBuffers, bytes_counted_twice
from tests.cpp.inside import Inside

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can map a page twice")
ROWS, HEADS, WIDTH = 4, 2, 128  # bytes of a position
A_PAGE = PAGE // WIDTH  # positions
POSITIONS = 3 * A_PAGE
STEPS = 400


class Rows:
    """The C++ runtime's rows, with the methods of Python's."""

    def __init__(self, inside: Inside) -> None:
        self._inside, data = inside, ctypes.c_void_p()
        found = inside.call("rows", ROWS, HEADS, POSITIONS - 5, ctypes.c_int64(WIDTH), ctypes.byref(data))
        assert int(found) == POSITIONS  # rounded up to whole pages
        block = (ctypes.c_uint8 * (ROWS * HEADS * POSITIONS * WIDTH)).from_address(data.value or 0)
        self.array = np.ctypeslib.as_array(block).reshape(ROWS, HEADS, POSITIONS, WIDTH)

    def copy(self, source: int, target: int, start: int, stop: int, frozen: bool) -> None:
        self._inside.call("copy_row", source, target, start, stop, int(frozen))

    def prepare_write(self, row: int, position: int) -> None:
        self._inside.call("prepare_write", row, position)


@pytest.fixture
def cpp(inside: Inside) -> Iterator[Rows]:
    yield Rows(inside)
    inside.call("rows", 0, 0, 0, ctypes.c_int64(0), ctypes.byref(ctypes.c_void_p()))


def test_no_row_changes_another_whatever_is_copied_and_written(cpp: Rows) -> None:
    """Beside Python's rows, and plain arrays."""
    rng = np.random.default_rng(0)
    theirs = RowBuffers(1, ROWS, HEADS, POSITIONS, WIDTH, np.uint8)
    plain, filled, shared = np.zeros_like(cpp.array), [0] * ROWS, 0
    for step in range(STEPS):
        row, source = rng.integers(0, ROWS, 2).tolist()
        if rng.random() < 0.5 and filled[source] and source != row:
            start = int(rng.choice([0, min(filled[row], filled[source])]))
            stop, frozen = filled[source] - int(rng.integers(0, 2)), bool(rng.random() < 0.8)
            if start > stop:
                continue
            plain[row, :, start:stop] = plain[source, :, start:stop]
            for each in (cpp, theirs):
                each.copy(source, row, start, stop, frozen)
        else:
            start = int(rng.integers(0, filled[row] + 1))
            stop = int(rng.integers(start, POSITIONS + 1))
            plain[row, :, start:stop] = rng.integers(0, 256, (HEADS, stop - start, WIDTH))
            for each, array in ((cpp, cpp.array), (theirs, theirs.buffers[0].array)):
                each.prepare_write(row, start)
                array[row, :, start:stop] = plain[row, :, start:stop]
        filled[row] = stop
        for other, count in enumerate(filled):
            assert np.array_equal(cpp.array[other, :, :count], plain[other, :, :count])
            assert np.array_equal(theirs.buffers[0].array[other, :, :count], plain[other, :, :count])
        shared += step % 40 == 0 and bytes_counted_twice() > 0  # of both
    assert shared > STEPS / 40 / 4  # else nothing was tested


def test_whole_pages_that_stay_are_one_memory_and_count_once(inside: Inside, cpp: Rows) -> None:
    cpp.array[0] = 3
    before = bytes_counted_twice()
    cpp.copy(0, 1, 0, 2 * A_PAGE + 5, frozen=True)
    assert cpp.array[1].max() == 3
    twice = int(inside.call("counted_twice"))
    assert twice == bytes_counted_twice() and twice - before == 2 * HEADS * PAGE
    cpp.array[0] = 7
    assert (cpp.array[1, :, : 2 * A_PAGE] == 7).all() and (cpp.array[1, :, 2 * A_PAGE : 2 * A_PAGE + 5] == 3).all()


def test_the_memory_goes_with_the_rows(inside: Inside) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text(encoding="utf-8").count("editar-kv-cache")

    before, open_files = mapped(), len(os.listdir("/proc/self/fd"))
    rows = Rows(inside)
    rows.copy(0, 1, 0, 2 * A_PAGE, frozen=True)
    assert mapped() > before
    inside.call("rows", 0, 0, 0, ctypes.c_int64(0), ctypes.byref(ctypes.c_void_p()))
    assert mapped() == before and len(os.listdir("/proc/self/fd")) == open_files


def test_pages_of_weights_go_and_those_that_were_written_stay(inside: Inside, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(np.random.default_rng(0).bytes(pages.WORTH))
    read, written = (np.memmap(path, np.uint8, "c") for _ in range(2))
    assert read.max() == written.max() == 255
    written[0] = 255 - written[0]
    expected = written.tobytes()

    def resident() -> list[int]:
        return sorted(each.resident for each in pages.mappings() if each.file == str(path))

    assert resident() == [pages.WORTH, pages.WORTH]
    inside.call("drop_file_pages", os.fsencode(path))
    assert resident() == [0, pages.WORTH]
    assert read.tobytes() == path.read_bytes() and written.tobytes() == expected
