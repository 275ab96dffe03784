"""Fixtures of the runtime's tests."""

from __future__ import annotations

import pytest

from editar_rt.__main__ import main
from editar_rt.backends.ort import backend
from tests.commands import Command, in_process
from tests.cuda_stand_in import Provider


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Provider:
    """ONNX Runtime with a CUDA provider, in the real one's place."""
    stand_in = Provider()
    monkeypatch.setattr(backend, "import_onnxruntime", lambda: stand_in)
    return stand_in


@pytest.fixture
def editar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`editar` in this process."""
    return in_process(main, monkeypatch, capsys)
