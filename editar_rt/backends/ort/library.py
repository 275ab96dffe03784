"""Imports onnxruntime without its telemetry, and makes its sessions safe in forks."""

from __future__ import annotations

import ctypes
import importlib
import os
import weakref
from collections.abc import Iterator
from typing import Any

from editar_rt.errors import BackendError
from editar_rt.telemetry import refuse_telemetry

_sessions: weakref.WeakSet[Any] = weakref.WeakSet()


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


def keep_through_forks(session: Any) -> Any:
    """Prevent forked processes from destroying this process's session.

    Destroying a session waits for its threads, which do not exist in a fork, so it would wait forever. The system frees
    the memory when the process ends.
    """
    _sessions.add(session)
    return session


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The causes of an error, the nearest first."""
    seen: set[int] = set()
    cause = error.__cause__ or error.__context__
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _hold_sessions() -> None:
    """Add a reference to every session that is never released, not even at interpreter exit."""
    for session in list(_sessions):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hold_sessions)
