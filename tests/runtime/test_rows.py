"""Rows of a cache that hold the same and can be the same memory."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import pytest

from editar_rt.backends import rows
from editar_rt.backends.rows import PAGE, RowBuffer

WIDTH = 32  # float32: 128 bytes a position
A_PAGE = PAGE // (4 * WIDTH)  # positions
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can map a page twice; copies are tested")


def filled() -> RowBuffer:
    """Three rows of two heads, the first row random."""
    buffer = RowBuffer(3, 2, 3 * A_PAGE, WIDTH, np.float32)
    buffer.array[0] = np.random.default_rng(0).standard_normal(buffer.array[0].shape)
    return buffer


@pytest.mark.parametrize("maps", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("positions", [1, A_PAGE, 2 * A_PAGE + 5])
def test_a_row_has_the_positions_of_another_and_no_more(
    maps: bool, frozen: bool, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not maps:
        monkeypatch.setattr(rows._Pages, "make", lambda size: None)
    buffer = filled()
    buffer.copy(0, 2, positions, frozen)
    assert np.array_equal(buffer.array[2, :, :positions], buffer.array[0, :, :positions])
    assert not buffer.array[1].any()
    assert not buffer.array[2, :, 2 * A_PAGE + 5 :].any()


@needs_linux
def test_whole_pages_that_stay_are_one_memory_and_the_rest_is_not() -> None:
    buffer = filled()
    buffer.copy(0, 1, 2 * A_PAGE + 5, frozen=True)
    buffer.array[0] = 7
    assert (buffer.array[1, :, : 2 * A_PAGE] == 7).all()
    assert (buffer.array[1, :, 2 * A_PAGE : 2 * A_PAGE + 5] != 7).all()


def test_rows_that_may_still_change_are_copies() -> None:
    buffer = filled()
    buffer.copy(0, 1, 2 * A_PAGE, frozen=False)
    buffer.array[0] = 7
    assert (buffer.array[1] != 7).all()


def test_a_system_that_refuses_gets_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows._Pages, "alias", lambda *_: False)
    buffer = filled()
    buffer.copy(0, 1, 2 * A_PAGE, frozen=True)
    assert np.array_equal(buffer.array[1, :, : 2 * A_PAGE], buffer.array[0, :, : 2 * A_PAGE])


@needs_linux
def test_the_memory_goes_with_the_last_array() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("editar-kv-cache")

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
