"""Long compilations and checks are done once in a test run, and begun ahead of the tests that need them.

Most tests keep one core busy; the other one compiles meanwhile.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def once(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function once for each value of its arguments. Other threads wait for the result, or its error."""
    made: dict[object, Future[T]] = {}
    raised: dict[object, TracebackType | None] = {}
    lock = threading.Lock()

    @functools.wraps(function)
    def wrapped(*arguments: P.args, **options: P.kwargs) -> T:
        key = arguments, tuple(sorted(options.items()))
        with lock:
            first = key not in made
            future = made.setdefault(key, Future())
        if first:
            try:
                future.set_result(function(*arguments, **options))
            except BaseException as error:  # what skips a test is one
                raised[key] = error.__traceback__
                future.set_exception(error)
        if error := future.exception():
            raise error.with_traceback(raised[key])  # or each test that raises it would add to it
        return future.result()

    return wrapped
