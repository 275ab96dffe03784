"""Bootstrap confidence intervals: how far a measure would move if other records had been drawn.

What is drawn again is records, not pictures. The pictures that several sampling seeds make of one record resemble each
other, so a record counts once, with the mean over its seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95

Numbers = NDArray[np.float64]


def mean_of(total: Numbers, count: int) -> float:
    return float(total) / count


def means_by_record(records: Sequence[Sequence[Mapping[str, Any]]], name: str) -> Numbers:
    """The mean of a measure over each record's pictures; records without it are left out."""
    found = [[v[name] for v in pictures if v.get(name) is not None] for pictures in records]
    return np.asarray([np.mean(numbers) for numbers in found if numbers])


def resampled(values: Numbers, statistic: Callable[[Numbers, int], float] = mean_of, stream: int = 0) -> Numbers:
    """A statistic of as many records as there are, drawn with replacement, over and over: [RESAMPLES].

    Args:
        values: of every record, [records, …].
        statistic: of the sum over the records drawn, and their number.
        stream: of random numbers; measures that are averaged take one each.
    """
    rng, count = np.random.default_rng(stream), len(values)
    found = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        found[i] = statistic(np.tensordot(times, values, axes=1), count)
    return found


def bounds(found: Numbers) -> list[float]:
    """[lower, upper] end of the middle `LEVEL` of resampled values."""
    tail = (1 - LEVEL) / 2
    return [float(b) for b in np.quantile(found, (tail, 1 - tail))]


def interval(values: Numbers) -> list[float]:
    """[lower, upper] end of the confidence interval of a mean over records."""
    return bounds(resampled(values))
