"""What callers in Python give: another type than is asked for is one sentence, as a value out of range is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import numpy as np

from editar_rt.errors import OptionError

T = TypeVar("T")


def as_path(name: str, value: object) -> Path:
    """A path, given as text or as a path object."""
    if not isinstance(value, str | os.PathLike) or isinstance(given := os.fspath(value), bytes):
        raise OptionError(f"{name} must be a path, got {_shown(value)}")
    if "\0" in given:
        raise OptionError(f"{name} must be a path, in which there is no null character, got {_shown(given)}")
    return Path(given)


def as_whole(name: str, value: object, least: int | None = None) -> int:
    """A whole number, Python's or NumPy's; True and False are none."""
    if not is_whole(value) or (least is not None and value < least):
        allowed = "a whole number" if least is None else f"a whole number of {least} or more"
        raise OptionError(f"{name} must be {allowed}, got {_shown(value)}")
    return int(value)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is an integer, Python's or NumPy's; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def as_wholes(name: str, value: object, count: int) -> tuple[int, ...]:
    """So many whole numbers, in a tuple or a list."""
    if not isinstance(value, tuple | list) or len(value) != count:
        raise OptionError(f"{name} must be {count} whole numbers, got {_shown(value)}")
    return tuple(as_whole(f"each of {name}", each) for each in value)


def is_finite(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number, Python's or NumPy's; True and False are none."""
    most = sys.float_info.max  # integers may be larger
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    return bool(-most <= value <= most)


def as_one_of(name: str, value: object, allowed: Iterable[str]) -> str:
    """One of some words."""
    if not isinstance(value, str) or value not in (words := tuple(allowed)):
        raise OptionError(f"{name} must be one of {', '.join(allowed)}, got {_shown(value)}")
    return words[words.index(value)]


def as_instance(name: str, value: object, kind: type[T], called: str) -> T:
    """An object of a class.

    Args:
        called: what messages call such an object.
    """
    if not isinstance(value, kind):
        raise OptionError(f"{name} must be {called}, got {_shown(value)}")
    return value


def as_list(name: str, value: Any, kind: type[T], called: str) -> list[T]:
    """At least one object of a class, in any order of them but a text."""
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        raise OptionError(f"{name} must be a sequence of {called}, got {_shown(value)}")
    found = list(value)
    if not found or not all(isinstance(each, kind) for each in found):
        raise OptionError(f"{name} must be at least one of {called}, and nothing else, got {_shown(found)}")
    return found


def _shown(value: object) -> str:
    """Short enough for a sentence: the value of what is written in a line, and else its type."""
    shown = isinstance(value, str | bytes | int | float | tuple | list | type(None) | np.number)
    return f"{value!r:.60}" if shown else type(value).__name__
