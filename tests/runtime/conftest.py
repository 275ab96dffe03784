"""Fixtures of the runtime's tests."""

from __future__ import annotations

import pytest

from editar_rt.backends.ort import backend
from tests.cuda_stand_in import Provider


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Provider:
    """ONNX Runtime with a CUDA provider, in the real one's place."""
    stand_in = Provider()
    monkeypatch.setattr(backend, "import_onnxruntime", lambda: stand_in)
    return stand_in
