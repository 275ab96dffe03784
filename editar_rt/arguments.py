"""Checks of arguments given in Python: a wrong type is reported in one sentence, like a value out of range."""

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
        raise OptionError(f"{name} must be a path without null characters, got {_shown(given)}")
    return Path(given)


def as_integer(name: str, value: object, least: int | None = None) -> int:
    """An integer of Python or NumPy; True and False are not."""
    if not is_integer(value) or (least is not None and value < least):
        allowed = "an integer" if least is None else f"an integer of {least} or more"
        raise OptionError(f"{name} must be {allowed}, got {_shown(value)}")
    return int(value)


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value is an integer of Python or NumPy; True and False are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def as_integers(name: str, value: object, count: int) -> tuple[int, ...]:
    """`count` integers, in a tuple or a list."""
    if not isinstance(value, tuple | list) or len(value) != count:
        raise OptionError(f"{name} must be {count} integers, got {_shown(value)}")
    return tuple(as_integer(f"each of {name}", each) for each in value)


def is_finite(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number of Python or NumPy; True and False are not."""
    most = sys.float_info.max  # integers may be larger
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    return bool(-most <= value <= most)


def as_flag(name: str, value: object) -> bool:
    """True or False, Python's or NumPy's."""
    if not isinstance(value, bool | np.bool_):
        raise OptionError(f"{name} must be True or False, got {_shown(value)}")
    return bool(value)


def as_one_of(name: str, value: object, allowed: Iterable[str]) -> str:
    """One of the allowed words."""
    if not isinstance(value, str) or value not in (words := tuple(allowed)):
        raise OptionError(f"{name} must be one of {', '.join(allowed)}, got {_shown(value)}")
    return words[words.index(value)]


def as_instance(name: str, value: object, kind: type[T], called: str) -> T:
    """An object of a class.

    Args:
        called: the name of such an object in messages.
    """
    if not isinstance(value, kind):
        raise OptionError(f"{name} must be {called}, got {_shown(value)}")
    return value


def as_list(name: str, value: Any, kind: type[T], called: str) -> list[T]:
    """One or more objects of a class, from any sequence that is not text."""
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        raise OptionError(f"{name} must be a sequence of {called}, got {_shown(value)}")
    values = list(value)
    if not values or not all(isinstance(each, kind) for each in values):
        raise OptionError(f"{name} must be at least one of {called}, and nothing else, got {_shown(values)}")
    return values


def _shown(value: object) -> str:
    """A value for a message: itself if it is simple, otherwise its type; at most 60 characters."""
    shown = isinstance(value, str | bytes | int | float | tuple | list | type(None) | np.number)
    return f"{value!r:.60}" if shown else type(value).__name__
