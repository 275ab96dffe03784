"""Guidance scales over the positions of a picture: constant, on a line, on half a cosine, or any values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from editar_rt.errors import OptionError

SHAPES = ("linear", "cosine", "values")
ALLOWED = "0 or more, linear:FIRST,LAST, cosine:FIRST,LAST or values:A,B,… with one a token"


@dataclass(frozen=True)
class Schedule:
    """A guidance scale that changes from token to token, in row order.

    Args:
        shape: `linear` and `cosine` go from the first value at token 0 to the last at token N − 1, cosine slowly at
            both ends; `values` has one for every token.
        values: two, or N; finite, 0 or more.
    """

    shape: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        good = self.shape in SHAPES and (self.shape == "values" or len(self.values) == 2)
        if not good or not self.values or not all(math.isfinite(v) and v >= 0 for v in self.values):
            raise OptionError(f"cfg_scale must be {ALLOWED}, got {self!s:.80}")

    def __str__(self) -> str:
        """As it is written on the command line."""
        return (
            f"{self.shape}:{','.join(format(v, 'g') if v == float(format(v, 'g')) else repr(v) for v in self.values)}"
        )

    @property
    def largest(self) -> float:
        return max(self.values)

    def at(self, count: int) -> NDArray[np.float64]:
        """The scales of all tokens, [count].

        Raises:
            OptionError: another number of `values`.
        """
        if self.shape == "values":
            if len(self.values) != count:
                raise OptionError(f"cfg_scale has {len(self.values)} values, but a picture has {count} tokens")
            return np.asarray(self.values, np.float64)
        way = np.linspace(0, 1, count)
        if self.shape == "cosine":
            way = (1 - np.cos(np.pi * way)) / 2
        first, last = self.values
        return first + (last - first) * way


Scale = float | str | Schedule | Callable[[int, int], float]


def read_scale(scale: Scale) -> float | Schedule | Callable[[int, int], float]:
    """A scale as users write it, checked: text becomes what it says.

    Raises:
        OptionError: neither a number of 0 or more, nor a schedule, nor a function.
    """
    if isinstance(scale, Schedule) or callable(scale):
        return scale
    try:
        if isinstance(scale, str) and ":" in scale:
            shape, _, values = scale.partition(":")
            return Schedule(shape.strip(), tuple(float(v) for v in values.split(",")))
        number = float(scale)
    except (TypeError, ValueError):
        raise OptionError(f"cfg_scale must be {ALLOWED}, got {scale!r:.80}") from None
    if not math.isfinite(number) or number < 0:
        raise OptionError(f"cfg_scale must be {ALLOWED}, got {number}")
    return number


def scales_of(scale: Scale, count: int) -> NDArray[np.float64]:
    """The scales of all tokens, [count].

    Raises:
        OptionError: `values` of another number, or a function that gives something else than 0 or more.
    """
    checked = read_scale(scale)
    if isinstance(checked, Schedule):
        return checked.at(count).copy()
    if not callable(checked):
        return np.full(count, checked)
    found = np.asarray([checked(position, count) for position in range(count)], np.float64)
    if not (np.isfinite(found) & (found >= 0)).all():
        raise OptionError("the function given as cfg_scale must give finite numbers of 0 or more for every token")
    return found
