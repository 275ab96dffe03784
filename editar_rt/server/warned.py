"""Collects the runtime's warnings for the request that they are about.

Python's own `catch_warnings` changes the whole process; here a thread's warnings go to that thread's list.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from editar_rt.errors import EditarWarning

_here = threading.local()


@contextmanager
def collecting(into: list[str]) -> Iterator[None]:
    """Add the block's warnings to a list, each once. Without `listening`, they go where they always go."""
    before, _here.into = getattr(_here, "into", None), into
    try:
        yield
    finally:
        _here.into = before


@contextmanager
def listening() -> Iterator[None]:
    """While the block runs, warnings within `collecting` are collected instead of shown. For programs."""
    shown = warnings.showwarning

    def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        into: list[str] | None = getattr(_here, "into", None)
        if into is None or not issubclass(category, EditarWarning):
            shown(message, category, *rest, **more)
        elif str(message) not in into:
            into.append(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", EditarWarning)
        warnings.showwarning = show
        yield
