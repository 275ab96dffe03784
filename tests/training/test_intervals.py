"""Confidence intervals are those of records drawn again."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.intervals import bounds, interval, resampled


def test_the_interval_of_a_mean_is_as_wide_as_its_standard_error_says() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = interval(values)
    error = values.std() / np.sqrt(len(values))
    # 1.96 standard errors on both sides; the ends of 1000 resamples are themselves known to about a tenth.
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.2 * error)


def test_intervals_are_repeatable_and_a_point_where_all_records_agree() -> None:
    values = np.arange(10.0)
    assert interval(values) == interval(values)
    assert interval(np.ones(5)) == [1, 1]


def test_a_statistic_of_sums_is_taken_over_the_records_drawn() -> None:
    counts = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 6.0]])
    found = resampled(counts, lambda total, count: total[0] / total[1])
    assert set(np.round(found, 9)) <= {round(a / b, 9) for a, b in _sums_of_three(counts)}
    low, high = bounds(found)
    assert 0 <= low < 4 / 12 < high <= 3 / 4


def _sums_of_three(counts: np.ndarray) -> list[tuple[float, float]]:
    return [tuple(counts[[i, j, k]].sum(axis=0)) for i in range(3) for j in range(3) for k in range(3)]


def test_streams_draw_other_records() -> None:
    values = np.arange(10.0)
    assert not np.array_equal(resampled(values, stream=0), resampled(values, stream=1))
