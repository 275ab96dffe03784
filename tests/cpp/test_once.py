"""What is done once fails for each test that needs it, with the same words and where it failed."""

from __future__ import annotations

import traceback

import pytest

from tests.cpp.once import once


def test_an_error_is_raised_each_time_as_the_first_time() -> None:
    calls = []

    @once
    def build() -> None:
        calls.append(1)
        raise AssertionError("g++ has failed")

    printed = []
    for _ in range(3):
        with pytest.raises(AssertionError, match=r"g\+\+ has failed") as failed:
            build()
        printed.append("".join(traceback.format_exception(failed.value)))
    assert len(calls) == 1
    assert printed[0] == printed[1] == printed[2]
    assert "in build" in printed[0]
