"""Fixtures of the exporter's tests."""

from __future__ import annotations

import pytest

from export.__main__ import main
from tests.commands import Command, in_process


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`python -m export` in this process."""
    return in_process(main, monkeypatch, capsys)
