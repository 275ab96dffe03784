"""Fixtures of training's tests."""

from __future__ import annotations

import pytest

from tests.commands import Command, in_process

pytest.importorskip("torch")

from tests.traces import share_traces
from training.__main__ import main

share_traces()


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`python -m training` in this process."""
    return in_process(main, monkeypatch, capsys)
