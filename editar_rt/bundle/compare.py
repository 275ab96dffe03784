"""How far two outputs are apart: one measure for self-tests, parity with PyTorch, engines and replayed graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
TINY = 1e-12  # stands for the largest value of an output that is all zeros


def relative_error(difference: float, largest: float) -> float:
    """A largest absolute difference as a share of the largest expected value; NaN where either is."""
    return difference / max(largest, TINY)


def largest_difference(found: Array, expected: Array) -> float:
    """Of real numbers; NaN where either has one."""
    return float(np.abs(found - expected).max())


@dataclass(frozen=True)
class Comparison:
    """One output of one part, here and where it is expected from."""

    part: str
    """Or the engine that runs it."""
    output: str
    difference: float
    """Largest absolute difference; of tokens, how many differ."""
    error: float
    """Largest absolute difference over the largest expected value; of tokens, the share that differs."""
    bound: float
    """Largest error allowed."""
    identical: bool
    """To the bit."""

    @property
    def holds(self) -> bool:
        return self.error <= self.bound  # false for NaN

    @classmethod
    def of(cls, part: str, output: str, found: Array, expected: Array, bound: float) -> Comparison:
        """Compare two arrays of one shape: tokens, which must be equal whatever the bound, or real numbers.

        Args:
            expected: negative tokens stand for any.
        """
        if np.issubdtype(expected.dtype, np.integer):
            return cls.of_tokens(part, output, found[expected >= 0], expected[expected >= 0], 0.0)
        difference = largest_difference(found, expected)
        error = relative_error(difference, float(np.abs(expected).max()))
        return cls(part, output, difference, error, bound, np.array_equal(found, expected))

    @classmethod
    def of_tokens(cls, part: str, output: str, found: Array, expected: Array, bound: float) -> Comparison:
        """Compare tokens, of which a share may differ."""
        differ = found != expected
        return cls(part, output, float(differ.sum()), float(differ.mean()), bound, not differ.any())

    def __str__(self) -> str:
        verdict = "ok" if self.holds else "TOO FAR"
        return f"{self.part:16}  {self.output:28}  error {self.error:.1e}  bound {self.bound:.0e}  {verdict}"

    def to_json(self) -> dict[str, Any]:
        """For JSON, which has no NaN."""
        finite = {
            name: value if np.isfinite(value) else None
            for name, value in (("difference", self.difference), ("error", self.error))
        }
        head = {"part": self.part, "output": self.output, "identical": self.identical}
        return head | finite | {"bound": self.bound, "holds": self.holds}
