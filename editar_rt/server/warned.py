"""Collects the runtime's warnings for the request that they are about.

Python's own `catch_warnings` changes the whole process; here a thread's warnings go to that thread's list. The program
that serves shows warnings by `show_or_collect` (`run.listening_to_warnings`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from editar_rt.errors import EditarWarning

_here = threading.local()


@contextmanager
def collecting(into: list[str]) -> Iterator[None]:
    """Add the block's warnings to a list, each once. Outside of a server they go where they always go."""
    before, _here.into = getattr(_here, "into", None), into
    try:
        yield
    finally:
        _here.into = before


def show_or_collect(shown: Callable[..., None]) -> Callable[..., None]:
    """A `warnings.showwarning` that collects within `collecting`, and calls `shown` for all else."""

    def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        into: list[str] | None = getattr(_here, "into", None)
        if into is None or not issubclass(category, EditarWarning):
            shown(message, category, *rest, **more)
        elif str(message) not in into:
            into.append(str(message))

    return show
