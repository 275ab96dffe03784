"""From logits to tokens."""

from __future__ import annotations

import numpy as np
import pytest

from editar_rt.errors import OptionError
from editar_rt.sampling import Sampling, draw, guide, kept_tokens, pick_tokens, softmax, uniform


def test_guidance_moves_away_from_the_null_logits() -> None:
    cond, null = np.float32([[1, 2]]), np.float32([[0, 4]])
    assert guide(cond, null, 3.0).tolist() == [[3, -2]]


def test_top_k_keeps_ties_with_the_kth_logit() -> None:
    logits = np.float32([5, 3, 3, 3, 1])
    assert kept_tokens(logits, top_k=2, top_p=1.0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("top_k", [0, 5, 9])
def test_top_k_of_zero_or_everything_keeps_everything(top_k: int) -> None:
    assert kept_tokens(np.float32([5, 4, 3, 2, 1]), top_k, 1.0).tolist() == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_token_that_crosses_it_and_always_the_first() -> None:
    logits = np.log(np.float32([0.1, 0.6, 0.3]))
    assert kept_tokens(logits, 0, 0.65).tolist() == [1, 2]
    assert kept_tokens(logits, 0, 0.01).tolist() == [1]


def test_top_p_counts_only_what_top_k_left() -> None:
    logits = np.log(np.float32([0.4, 0.3, 0.2, 0.1]))
    # Of the two left the first has 4/7 = 0.571 of the probability.
    assert kept_tokens(logits, 2, 0.5).tolist() == [0]
    assert kept_tokens(logits, 2, 0.6).tolist() == [0, 1]


def straightforward(logits: np.ndarray, sampling: Sampling, number: float) -> int:
    """The same, token by token, with sorting instead of partitioning."""
    scaled = logits / np.float32(sampling.temperature)
    allowed = set(range(len(scaled)))
    if 0 < sampling.top_k < len(scaled):
        threshold = sorted(scaled)[-sampling.top_k]
        allowed = {i for i in allowed if scaled[i] >= threshold}
    order = sorted(allowed, key=lambda i: (-scaled[i], i))
    weights = np.exp(scaled[order].astype(np.float64) - scaled.max())
    probabilities, total = weights / weights.sum(), 0.0
    for i, p in zip(order, probabilities):
        if total > sampling.top_p and sampling.top_p < 1:
            allowed.discard(i)
        total += p
    weights = np.asarray(
        [np.exp(np.float64(scaled[i]) - scaled.max()) if i in allowed else 0 for i in range(len(scaled))]
    )
    running = 0.0
    for i, w in enumerate(weights / weights.sum()):
        running += w
        if number < running:
            return i
    return max(allowed)


def test_draws_agree_with_a_straightforward_implementation() -> None:
    rng = np.random.default_rng(0)
    for trial in range(300):
        logits = rng.standard_normal(200).astype(np.float32) * 3
        sampling = Sampling(
            temperature=float(rng.uniform(0.3, 2)), top_k=int(rng.integers(0, 220)), top_p=float(rng.uniform(0.1, 1))
        )
        number = uniform(trial, 0, 0)
        assert draw(logits, sampling, number) == straightforward(logits, sampling, number)


def test_draws_follow_the_softmax() -> None:
    logits = np.float32([0.0, 1.0, 2.0, -1.0])
    drawn = [draw(logits, Sampling(), uniform(seed, 0, 0)) for seed in range(20_000)]
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    # Four standard deviations of a share of 20,000 draws are at most 0.015.
    np.testing.assert_allclose(shares, softmax(logits), atol=0.015)


def test_a_draw_depends_on_seed_index_and_position_alone() -> None:
    numbers = {uniform(s, i, p) for s in (0, 1, 2**63) for i in (0, 1) for p in range(50)}
    assert len(numbers) == 300
    assert all(0 <= n < 1 for n in numbers)
    assert uniform(5, 0, 7) == uniform(5, 0, 7)


def test_rows_of_a_batch_draw_as_they_would_alone() -> None:
    logits = np.random.default_rng(1).standard_normal((4, 500)).astype(np.float32)
    together = pick_tokens(logits, Sampling(seed=3), position=11)
    alone = [int(pick_tokens(row[None], Sampling(seed=3), position=11)[0]) for row in logits]
    assert together.tolist() == alone


def test_greedy_takes_the_largest_logit() -> None:
    assert pick_tokens(np.float32([[1, 9, 3], [7, 2, 1]]), Sampling(greedy=True), 0).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("top_p", 1.5, r"top_p must be in \(0, 1\], got 1.5"),
        ("top_p", 0.0, "top_p"),
        ("top_p", float("nan"), "top_p"),
        ("top_k", -1, r"top_k must be 0 \(off\) or more, got -1"),
        ("temperature", 0.0, "temperature must be above 0, got 0.0"),
        ("temperature", float("inf"), "temperature"),
        ("seed", -1, "seed must be 0 to"),
        ("seed", 2**64, "seed"),
        ("cfg_scale", -1.0, "cfg_scale must be 0 or more"),
        ("cfg_scale", float("nan"), "cfg_scale"),
        ("cfg_interval", -2, "cfg_interval must be -1 or more"),
    ],
)
def test_values_outside_are_refused_with_what_is_allowed(field: str, value: float, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        Sampling(**{field: value})


@pytest.mark.parametrize(
    ("interval", "guided"), [(-1, [True] * 5), (0, [True, True, False, False, False]), (2, [True] * 4 + [False])]
)
def test_guidance_lasts_through_the_intervals_step(interval: int, guided: list[bool]) -> None:
    """Single steps are counted from 0; target token 0 comes from the prefill, which is always guided."""
    assert [Sampling(cfg_interval=interval).guided_at(target) for target in range(5)] == guided
