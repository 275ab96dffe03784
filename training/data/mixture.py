"""Data sets mixed by shares: which sample comes when follows from the recipe's seed and its place in the stream alone.

Nothing is remembered between steps, so a run that stops anywhere and resumes, or that goes on with another number of
processes, sees the data that it would have seen. In every `CYCLE` samples each data set has exactly its share; within
one data set every record comes once an epoch, in a new order each time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.records import BadRecord, BadRecords, DataError, Dataset, Sample

CYCLE = 1000
MOST_BAD = 100  # records in a row: then the data set is broken, not a record


def quotas(shares: Sequence[float]) -> NDArray[np.int64]:
    """Samples of each data set in one cycle, by largest remainder; they add up to `CYCLE`.

    Raises:
        DataError: a share that is not positive, or so small that it gets no sample in a cycle.
    """
    given = np.asarray(shares, np.float64)
    if not given.size or not np.isfinite(given).all() or (given <= 0).any():
        raise DataError(f"shares must be positive numbers, at least one; got {list(shares)}")
    exact = given / given.sum() * CYCLE
    counts = np.floor(exact + 1e-9).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: CYCLE - int(counts.sum())]] += 1
    if not counts.all():
        raise DataError(f"the share {given[counts == 0][0]:g} of {given.sum():g} is less than one sample in {CYCLE}")
    return counts


@functools.lru_cache(maxsize=64)
def _cycle_order(counts: tuple[int, ...], seed: int, cycle: int) -> NDArray[np.int64]:
    """Data sets of a cycle's samples, [CYCLE]."""
    return np.random.default_rng([seed, 0, cycle]).permutation(np.repeat(np.arange(len(counts)), counts))


@functools.lru_cache(maxsize=128)  # of every data set one, and another where its epoch ends
def _epoch_order(size: int, seed: int, source: int, epoch: int) -> NDArray[np.int32]:
    """Order of a data set's records in an epoch, [size]."""
    return np.random.default_rng([seed, 1, source, epoch]).permutation(size).astype(np.int32)


def draw(seed: int, sizes: Sequence[int], shares: Sequence[float], first: int, count: int) -> NDArray[np.int64]:
    """Samples first … first + count - 1 of the endless stream, int64 [count, 2]: which data set, which record of it.

    Args:
        sizes: records of each data set.
        shares: of the samples, in any unit.
    """
    if len(sizes) != len(shares) or any(size < 1 for size in sizes):
        raise DataError(f"every share needs a data set that is not empty, got sizes {list(sizes)}")
    counts = quotas(shares)
    key = tuple(counts.tolist())
    picked = np.empty((count, 2), np.int64)
    for place in range(count):
        cycle, at = divmod(first + place, CYCLE)
        order = _cycle_order(key, seed, cycle)
        source = int(order[at])
        drawn = cycle * int(counts[source]) + int((order[:at] == source).sum())
        epoch, position = divmod(drawn, sizes[source])
        picked[place] = source, _epoch_order(sizes[source], seed, source, epoch)[position]
    return picked


class Mixture:
    """Several data sets and their shares, for `draw`. A bad record is counted, and the next good one after it taken.

    Args:
        report: is told of the first bad records, each once, as they are met.
    """

    def __init__(
        self, datasets: Sequence[Dataset], shares: Sequence[float], report: Callable[[str], None] = lambda line: None
    ) -> None:
        self.datasets, self.shares = list(datasets), list(shares)
        self.sizes = [len(d) for d in self.datasets]
        self.bad = BadRecords(tell=report)
        draw(0, self.sizes, self.shares, 0, 1)  # refuses what cannot be mixed

    def sample(self, source: int, index: int) -> Sample:
        """A record, or the first good one after it.

        Raises:
            DataError: `MOST_BAD` bad records in a row.
        """
        dataset = self.datasets[source]
        tried = min(MOST_BAD, len(dataset))
        for offset in range(tried):
            record = (index + offset) % len(dataset)
            try:
                return dataset[record]
            except BadRecord as error:
                self.bad.add(dataset.name, error, (source, record))
                last = error
        raise DataError(f"{dataset.name} has {tried} bad records in a row; the last: {last}")
