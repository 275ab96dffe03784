"""Fixtures of the C++ runtime's tests."""

from __future__ import annotations

import pytest

from tests.cpp.inside import Inside


@pytest.fixture(scope="session")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Inside:
    """The library's functions below its C ABI."""
    return Inside.built(tmp_path_factory.mktemp("inside"))
