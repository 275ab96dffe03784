"""Opens and closes sessions of ONNX Runtime, which map and unmap files of weights.

Whoever looks up addresses of such mappings to use them (`pages`) must know that they stay: after a mapping is gone, its
addresses may hold anybody's memory. So sessions are opened and closed here, and `mappings_stay` says whether none is.

The garbage collector destroys sessions in any thread at any time, also in the thread that uses the addresses, so
closing must not wait for it. A session that nobody refers to is put aside, and closed as soon as it may be.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()  # held while the mappings stay
_changing: list[None] = []  # an entry for each session that is being opened or closed; added with the lock
_unused: deque[Any] = deque()  # what was lent and is to be destroyed
_sessions: weakref.WeakSet[Any] = weakref.WeakSet()


class Lent:
    """An object of ONNX Runtime that keeps a session open, with everything that it has."""

    def __init__(self, lent: Any) -> None:
        self._lent = [lent]  # the only reference
        # Not at exit, where threads may still run it.
        weakref.finalize(self, _give_back, self._lent).atexit = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lent[0], name)


class Session(Lent):
    """An `onnxruntime.InferenceSession`.

    Args:
        ort: the onnxruntime module.
        graph: a file, or its content.
        more: arguments of `InferenceSession`.

    Raises:
        Exception: any error of ONNX Runtime.
    """

    def __init__(self, ort: Any, graph: str | bytes, options: Any, **more: Any) -> None:
        with _lock:
            _changing.append(None)
        try:
            _close_unused()  # of other threads, while the lock was held
            session = ort.InferenceSession(graph, options, **more)
        except Exception as e:
            traceback.clear_frames(e.__traceback__)  # they would keep what was mapped until the error is forgotten
            raise
        finally:
            _changing.pop()
        _sessions.add(session)
        super().__init__(session)

    def io_binding(self) -> Lent:
        return Lent(self._lent[0].io_binding())

    def run_with_iobinding(self, binding: Lent, options: Any = None) -> None:
        self._lent[0].run_with_iobinding(binding._lent[0], options)


@contextmanager
def mappings_stay() -> Iterator[bool]:
    """Whether all mappings of weights stay until the end of the block; False if a session is being opened or closed."""
    if not _lock.acquire(blocking=False):
        yield False
        return
    try:
        yield not _changing
    finally:
        _lock.release()
        _close_unused()


def _give_back(lent: list[Any]) -> None:
    _unused.append(lent.pop())
    _close_unused()


def _close_unused() -> None:
    """Destroy what nobody uses. If the lock is held, by whatever thread, that thread does it afterwards."""
    while _unused and _lock.acquire(blocking=False):
        _changing.append(None)
        _lock.release()
        try:
            with contextlib.suppress(IndexError):  # another thread was faster
                _unused.popleft()
        finally:
            _changing.pop()


def _enter_fork() -> None:
    """Keep a forked process from destroying its parent's sessions, even at the interpreter's exit.

    Destroying a session waits for its threads, which do not exist in a fork, so it would wait forever. The system frees
    the memory when the process ends. Nor are there the threads that held the lock.
    """
    global _lock
    _lock = threading.Lock()
    _changing.clear()
    for session in list(_sessions):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_enter_fork)
