"""Compares outputs with expected ones, for self-tests, parity with PyTorch, engines and replayed graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
TINY = 1e-12  # replaces the largest value of an output of zeros


def relative_error(difference: float, largest: float) -> float:
    """A largest absolute difference as a share of the largest expected value; NaN if one of them is NaN."""
    return difference / max(largest, TINY)


def largest_difference(found: Array, expected: Array) -> float:
    """The largest absolute difference of two arrays of floats; NaN if one of them contains NaN."""
    return float(np.abs(found - expected).max())


@dataclass(frozen=True)
class Comparison:
    """The comparison of one output of a part with its expected values."""

    part: str
    """The part, or the engine that runs it."""
    output: str
    difference: float
    """Largest absolute difference; for tokens, the number that differ."""
    error: float
    """Largest absolute difference divided by the largest expected value; for tokens, the share that differs."""
    bound: float
    """Largest allowed error."""
    identical: bool
    """Whether all values are equal."""

    @property
    def holds(self) -> bool:
        return self.error <= self.bound  # false for NaN

    @classmethod
    def of(cls, part: str, output: str, found: Array, expected: Array, bound: float) -> Comparison:
        """Compare two arrays of the same shape: floats, or tokens, which must be equal regardless of the bound.

        Args:
            expected: negative tokens match any token.
        """
        if np.issubdtype(expected.dtype, np.integer):
            return cls.of_tokens(part, output, found[expected >= 0], expected[expected >= 0], 0.0)
        difference = largest_difference(found, expected)
        error = relative_error(difference, float(np.abs(expected).max()))
        return cls(part, output, difference, error, bound, np.array_equal(found, expected))

    @classmethod
    def of_tokens(cls, part: str, output: str, found: Array, expected: Array, bound: float) -> Comparison:
        """Compare tokens, of which a share of `bound` may differ."""
        differ = found != expected
        return cls(part, output, float(differ.sum()), float(differ.mean()), bound, not differ.any())

    def __str__(self) -> str:
        verdict = "ok" if self.holds else "TOO FAR"
        return f"{self.part:16}  {self.output:28}  error {self.error:.1e}  bound {self.bound:.0e}  {verdict}"

    def to_json(self) -> dict[str, Any]:
        """As JSON values; NaN becomes None."""
        finite = {
            name: value if np.isfinite(value) else None
            for name, value in (("difference", self.difference), ("error", self.error))
        }
        head = {"part": self.part, "output": self.output, "identical": self.identical}
        return head | finite | {"bound": self.bound, "holds": self.holds}
