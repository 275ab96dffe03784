"""Fixtures of the runtime's tests."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from editar_rt.__main__ import main
from editar_rt.backends.ort import backend
from tests.cuda_stand_in import Provider


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Provider:
    """ONNX Runtime with a CUDA provider, in the real one's place."""
    stand_in = Provider()
    monkeypatch.setattr(backend, "import_onnxruntime", lambda: stand_in)
    return stand_in


class Done(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.stdout.splitlines()[-1])


@pytest.fixture
def editar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command line in this process."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["editar", *map(str, arguments)])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        return Done(int(stopped.value.code or 0), said.out, said.err)

    return run
