"""Guidance scales over the positions of a picture: constant, linear, cosine or explicit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from editar_rt.arguments import is_finite
from editar_rt.errors import OptionError

SHAPES = ("linear", "cosine", "values")
MAX_SCALE = 1e6  # scaled differences of logits stay far below float32's limit
ALLOWED = f"0 to {MAX_SCALE:g}, linear:FIRST,LAST, cosine:FIRST,LAST or values:A,B,… with one value per token"


@dataclass(frozen=True)
class Schedule:
    """A guidance scale that changes from token to token, in raster order.

    Args:
        shape: `linear` and `cosine` go from the first value at token 0 to the last at token N − 1, cosine slowly at
            both ends; `values` has one value per token.
        values: two, or N for `values`; each 0 to `MAX_SCALE`.
    """

    shape: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        good = isinstance(self.shape, str) and self.shape in SHAPES and isinstance(self.values, tuple | list)
        good = good and (self.shape == "values" or len(self.values) == 2) and len(self.values) > 0
        if not good or not all(is_finite(v) and 0 <= v <= MAX_SCALE for v in self.values):
            raise OptionError(f"cfg_scale must be {ALLOWED}, got {self.shape!s:.20}:{self.values!s:.60}")
        object.__setattr__(self, "values", tuple(map(float, self.values)))

    def __str__(self) -> str:
        """The text that `read_scale` parses."""
        return (
            f"{self.shape}:{','.join(format(v, 'g') if v == float(format(v, 'g')) else repr(v) for v in self.values)}"
        )

    @property
    def largest(self) -> float:
        return max(self.values)

    def at(self, count: int) -> NDArray[np.float64]:
        """The scales of all tokens, [count].

        Raises:
            OptionError: the number of `values` is not `count`.
        """
        if self.shape == "values":
            if len(self.values) != count:
                raise OptionError(f"cfg_scale has {len(self.values)} values, but a picture has {count} tokens")
            return np.asarray(self.values, np.float64)
        progress = np.linspace(0, 1, count)
        if self.shape == "cosine":
            progress = (1 - np.cos(np.pi * progress)) / 2
        first, last = self.values
        return first + (last - first) * progress


Scale = float | str | Schedule | Callable[[int, int], float]


def read_scale(scale: Scale) -> float | Schedule | Callable[[int, int], float]:
    """Check a scale and parse it if it is text.

    Raises:
        OptionError: not a number from 0 to `MAX_SCALE`, a schedule or a function.
    """
    if isinstance(scale, Schedule) or callable(scale):
        return scale
    try:
        if isinstance(scale, str) and ":" in scale:
            shape, _, values = scale.partition(":")
            return Schedule(shape.strip(), tuple(float(v) for v in values.split(",")))
        number = float(scale)
    except (TypeError, ValueError, OverflowError):
        raise OptionError(f"cfg_scale must be {ALLOWED}, got {scale!r:.80}") from None
    if not 0 <= number <= MAX_SCALE:
        raise OptionError(f"cfg_scale must be {ALLOWED}, got {number}")
    return number


def scales_of(scale: Scale, count: int) -> NDArray[np.float64]:
    """The scales of all tokens, [count].

    Raises:
        OptionError: the number of `values` is not `count`, or a function returns a value outside 0 to `MAX_SCALE`.
    """
    checked = read_scale(scale)
    if isinstance(checked, Schedule):
        return checked.at(count).copy()
    if not callable(checked):
        return np.full(count, checked)
    scales = np.asarray([checked(position, count) for position in range(count)], np.float64)
    if not ((scales >= 0) & (scales <= MAX_SCALE)).all():
        raise OptionError(
            f"the function given as cfg_scale must return a number from 0 to {MAX_SCALE:g} for every token"
        )
    return scales
