"""Imports onnxruntime without its telemetry."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from editar_rt.errors import BackendError
from editar_rt.telemetry import refuse_telemetry


def import_onnxruntime() -> Any:
    """Import the onnxruntime module, which two packages provide.

    Raises:
        BackendError: the module is not installed or cannot be loaded.
        KeyboardInterrupt: Ctrl-C was pressed while the module loaded.
    """
    refuse_telemetry()
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as e:
        if any(isinstance(cause, KeyboardInterrupt) for cause in _causes(e)):  # compiled modules wrap KeyboardInterrupt
            raise KeyboardInterrupt from None
        is_missing = isinstance(e, ModuleNotFoundError) and e.name == "onnxruntime"
        raise BackendError(
            f"ONNX Runtime {'is not installed' if is_missing else 'cannot be loaded'} ({e}); "
            'run in a clone of the project: pip install ".[cpu]", or ".[gpu]" for CUDA'
        ) from None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The causes of an error, the nearest first."""
    seen: set[int] = set()
    cause = error.__cause__ or error.__context__
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
