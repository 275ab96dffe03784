"""Rows of a cache that hold the same and can be the same memory."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import pytest

from editar_rt import machine
from editar_rt.backends.ort import rows
from editar_rt.backends.ort.rows import PAGE, RowBuffers, bytes_counted_twice
from editar_rt.machine import peak_resident_bytes

WIDTH = 32  # float32: 128 bytes a position
A_PAGE = PAGE // (4 * WIDTH)  # positions
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can map a page twice; copies are tested")


class Filled(RowBuffers):
    """One buffer of three rows of two heads, the first row random."""

    def __init__(self) -> None:
        super().__init__(1, 3, 2, 3 * A_PAGE, WIDTH, np.float32)
        self.array = self.buffers[0].array
        self.array[0] = np.random.default_rng(0).standard_normal(self.array[0].shape)


def filled() -> Filled:
    return Filled()


@pytest.mark.parametrize("maps", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("positions", [1, A_PAGE, 2 * A_PAGE + 5])
def test_a_row_has_the_positions_of_another_and_no_more(
    maps: bool, frozen: bool, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not maps:
        monkeypatch.setattr(rows._Pages, "make", lambda size: None)
    buffer = filled()
    buffer.copy(0, 2, 0, positions, frozen)
    assert np.array_equal(buffer.array[2, :, :positions], buffer.array[0, :, :positions])
    assert not buffer.array[1].any()
    assert not buffer.array[2, :, 2 * A_PAGE + 5 :].any()


@needs_linux
def test_whole_pages_that_stay_are_one_memory_and_the_rest_is_not() -> None:
    buffer = filled()
    buffer.copy(0, 1, 0, 2 * A_PAGE + 5, frozen=True)
    buffer.array[0] = 7
    assert (buffer.array[1, :, : 2 * A_PAGE] == 7).all()
    assert (buffer.array[1, :, 2 * A_PAGE : 2 * A_PAGE + 5] != 7).all()


def test_rows_that_may_still_change_are_copies() -> None:
    buffer = filled()
    buffer.copy(0, 1, 0, 2 * A_PAGE, frozen=False)
    buffer.array[0] = 7
    assert (buffer.array[1] != 7).all()


@needs_linux
@pytest.mark.parametrize("written", [0, 1])
def test_a_row_that_is_written_where_pages_are_shared_leaves_the_other_as_it_was(written: int) -> None:
    buffer = filled()
    buffer.copy(0, 1, 0, 2 * A_PAGE + 5, frozen=True)
    expected = buffer.array[0].copy()
    buffer.prepare_write(written, 3)
    buffer.array[written, :, 3:] = 7
    assert np.array_equal(buffer.array[written, :, :3], expected[:, :3])
    assert np.array_equal(buffer.array[1 - written, :, : 2 * A_PAGE + 5], expected[:, : 2 * A_PAGE + 5])


@needs_linux
def test_a_row_that_is_used_again_gives_its_pages_to_those_that_share_them() -> None:
    """Rows 1 and 2 take the pages of row 0, row 2 by way of row 1; then row 0 becomes another picture's."""
    buffer = filled()
    expected = buffer.array[0, :, : 2 * A_PAGE].copy()
    buffer.copy(0, 1, 0, 2 * A_PAGE, frozen=True)
    buffer.copy(1, 2, 0, 2 * A_PAGE, frozen=True)
    buffer.prepare_write(0, 0)
    buffer.array[0] = 7
    assert all(np.array_equal(buffer.array[row, :, : 2 * A_PAGE], expected) for row in (1, 2))


def test_a_system_that_refuses_gets_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows._Pages, "alias", lambda *_: False)
    buffer = filled()
    buffer.copy(0, 1, 0, 2 * A_PAGE, frozen=True)
    assert np.array_equal(buffer.array[1, :, : 2 * A_PAGE], buffer.array[0, :, : 2 * A_PAGE])


@needs_linux
def test_the_memory_goes_with_the_last_array() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text(encoding="utf-8").count("editar-kv-cache")

    gc.collect()
    before = mapped()
    buffer = filled()
    kept = buffer.array[0]
    assert mapped() > before
    del buffer
    gc.collect()
    assert mapped() > before and kept.any()  # somebody still looks into it
    del kept
    gc.collect()
    assert mapped() == before


@needs_linux
def test_what_rows_share_is_counted_twice_once_both_have_read_it() -> None:
    buffer = filled()
    alone = bytes_counted_twice()
    buffer.copy(0, 1, 0, 2 * A_PAGE, frozen=True)
    assert bytes_counted_twice() == alone  # mapped, not read
    assert buffer.array[1].any()
    assert bytes_counted_twice() - alone == 2 * 2 * PAGE  # two pages in each of two heads
    assert buffer.array[2].sum() == 0 and bytes_counted_twice() - alone == 4 * PAGE  # its own pages, zeros


@needs_linux
def test_the_peak_counts_a_page_once_and_is_no_less_than_before_any_was_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = peak_resident_bytes()
    assert peak is not None
    monkeypatch.setattr(machine, "_peak_before_sharing", None)
    assert machine.peak_memory_bytes(1 << 20) == peak_resident_bytes() - (1 << 20)
    filled().copy(0, 1, 0, A_PAGE, frozen=True)
    assert machine._peak_before_sharing >= peak
    assert machine.peak_memory_bytes(1 << 20) >= peak
