"""The onnxruntime module: imported without its usage data, its sessions safe to carry through a fork."""

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
    """The onnxruntime module; it comes in two packages of which one must be chosen.

    Raises:
        BackendError: it is not installed, or cannot be loaded.
        KeyboardInterrupt: Ctrl-C came while it loaded.
    """
    refuse_telemetry()
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as e:
        if any(isinstance(cause, KeyboardInterrupt) for cause in _causes(e)):  # compiled modules wrap it
            raise KeyboardInterrupt from None
        is_missing = isinstance(e, ModuleNotFoundError) and e.name == "onnxruntime"
        raise BackendError(
            f"ONNX Runtime {'is not installed' if is_missing else 'cannot be loaded'} ({e}); "
            'run: pip install "editar-rt[cpu]", or "editar-rt[gpu]" for CUDA'
        ) from None


def keep_through_forks(session: Any) -> Any:
    """Have forked processes never destroy a session of this one.

    The end of a session waits for its threads, and a fork has none of them: it would wait for ever. Its memory goes
    when the process does.
    """
    _sessions.add(session)
    return session


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What led to an error, the nearest first."""
    seen: set[int] = set()
    cause = error.__cause__ or error.__context__
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _hold_sessions() -> None:
    """Give every session one reference that nothing takes back, not even the interpreter's end."""
    for session in list(_sessions):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hold_sessions)
