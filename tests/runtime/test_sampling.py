"""From logits to tokens."""

from __future__ import annotations

import numpy as np
import pytest

from editar_rt.errors import BackendError, OptionError
from editar_rt.generation.noise import gumbel, uniform, words
from editar_rt.generation.sampling import (
    Draw,
    Sampling,
    distribution,
    guide,
    largest_tokens,
    sample,
    sample_alike,
    sample_with_gumbel,
    softmax,
)


def test_guidance_moves_away_from_the_null_logits() -> None:
    cond, null = np.float32([[1, 2]]), np.float32([[0, 4]])
    assert guide(cond, null, 3.0).tolist() == [[3, -2]]


def kept_tokens(logits: np.ndarray, top_k: int, top_p: float) -> list[int]:
    kept, probabilities = distribution(np.asarray(logits, np.float32), Sampling(top_k=top_k, top_p=top_p))
    assert probabilities.sum() == pytest.approx(1)
    return kept.tolist()


def test_top_k_keeps_ties_with_the_kth_logit() -> None:
    assert kept_tokens([5, 3, 3, 3, 1], top_k=2, top_p=1.0) == [0, 1, 2, 3]


@pytest.mark.parametrize("top_k", [0, 5, 9])
def test_top_k_of_zero_or_everything_keeps_everything(top_k: int) -> None:
    assert kept_tokens([5, 4, 3, 2, 1], top_k, 1.0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [7, 1000, 1023])
@pytest.mark.parametrize("levels", [1, 3, 50, 10**6])
def test_the_largest_are_those_a_full_sort_finds(size: int, levels: int) -> None:
    """With few levels nearly all are tied; sizes that groups divide and sizes that they do not."""
    rng = np.random.default_rng(size + levels)
    for count in (1, 2, 5, 100, 333, 999):
        logits = rng.integers(0, levels, size).astype(np.float32)
        threshold = np.sort(logits)[-min(count, size)]
        assert largest_tokens(logits, count).tolist() == np.flatnonzero(logits >= threshold).tolist()


def test_top_p_keeps_the_token_that_crosses_it_and_always_the_first() -> None:
    logits = np.log([0.1, 0.6, 0.3])
    assert kept_tokens(logits, 0, 0.65) == [1, 2]
    assert kept_tokens(logits, 0, 0.01) == [1]


def test_top_p_counts_only_what_top_k_left() -> None:
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    # Of the two left the first has 4/7 = 0.571 of the probability.
    assert kept_tokens(logits, 2, 0.5) == [0]
    assert kept_tokens(logits, 2, 0.6) == [0, 1]


def test_top_p_counts_probabilities_after_the_temperature() -> None:
    # Halving the temperature squares the odds: 4 to 1 becomes 16 to 1, and 16/17 = 0.94.
    logits = np.log(np.float32([0.8, 0.2]))
    assert distribution(logits, Sampling(top_p=0.9))[0].tolist() == [0, 1]
    assert distribution(logits, Sampling(top_p=0.9, temperature=0.5))[0].tolist() == [0]


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e300])
def test_extreme_temperatures_end_in_the_largest_logit_or_in_equal_chances(temperature: float) -> None:
    _, probabilities = distribution(np.float32([1, 2, -3]), Sampling(temperature=temperature))
    expected = [1 / 3] * 3 if temperature > 1 else [0, 1, 0]
    np.testing.assert_allclose(probabilities, expected, atol=1e-12)


def test_a_token_of_minus_infinity_is_never_drawn() -> None:
    logits = np.float32([-np.inf, 0, -np.inf, 0, -np.inf])
    drawn = {sample(logits, Sampling(), number) for number in (0.0, 0.3, 0.5, 0.999, 1 - 2**-53)}
    assert drawn == {1, 3}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("greedy", [False, True])
def test_logits_that_are_not_finite_are_refused(bad: float, greedy: bool) -> None:
    with pytest.raises(BackendError, match="logits are not finite"):
        sample(np.float32([0, bad, 2]), Sampling(greedy=greedy), 0.5)


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
        assert sample(logits, sampling, number) == straightforward(logits, sampling, number)


def test_draws_follow_the_softmax() -> None:
    logits = np.float32([0.0, 1.0, 2.0, -1.0])
    drawn = [sample(logits, Sampling(), uniform(seed, 0, 0)) for seed in range(20_000)]
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    # Four standard deviations of a share of 20,000 draws are at most 0.015.
    np.testing.assert_allclose(shares, softmax(logits), atol=0.015)


@pytest.mark.parametrize("settings", [Sampling(), Sampling(top_k=30, temperature=1.5), Sampling(top_p=0.8, top_k=40)])
def test_gumbel_noise_draws_from_the_same_distribution(settings: Sampling) -> None:
    """Chi-square over 20,000 seeds. A right sampler exceeds the bound with a probability of 1e-6."""
    logits = np.random.default_rng(4).standard_normal(50).astype(np.float32)
    drawn = [sample_with_gumbel(logits, settings, words(seed, 0, 5, 50)) for seed in range(20_000)]
    kept, probabilities = distribution(logits, settings)
    counts = np.bincount(drawn, minlength=50)
    assert counts.sum() == counts[kept].sum()
    expected = 20_000 * probabilities
    square, free = float(((counts[kept] - expected) ** 2 / expected).sum()), len(kept) - 1
    bound = free * (1 - 2 / (9 * free) + 4.75 * np.sqrt(2 / (9 * free))) ** 3  # Wilson and Hilferty
    assert square < bound


def test_gumbel_noise_keeps_more_tokens_when_a_distribution_changes_a_little() -> None:
    rng, kept = np.random.default_rng(0), {"uniform": 0, "gumbel": 0}
    for seed in range(300):
        logits = rng.standard_normal(500).astype(np.float32)
        other = logits + (0.2 * rng.standard_normal(500)).astype(np.float32)
        for noise in kept:
            tokens = [draw_one(each, Sampling(seed=seed, noise=noise)) for each in (logits, other)]
            kept[noise] += tokens[0] == tokens[1]
    assert kept["gumbel"] > 250 > 150 > kept["uniform"]


def draw_one(logits: np.ndarray, sampling: Sampling) -> int:
    one = np.zeros(1, np.int32)
    return int(Draw(one, one, (sampling,), np.ones((1, 1)), (sampling.seed,), (0,)).on_host(logits[None, None])[0, 0])


def test_the_words_of_gumbel_noise_never_change() -> None:
    """Philox's block t // 4 + 1 of the counter (·, 0, index + 2³², position), and of it the word t mod 4."""
    generator = np.random.Philox(key=5, counter=[2, 0, 1 + 2**32, 9])  # NumPy counts up before it draws
    assert words(5, 1, 9, 12)[8:].tolist() == generator.random_raw(4).tolist()
    assert words(0, 0, 0, 2).tolist() == WORDS
    assert gumbel(np.asarray(WORDS, np.uint64)).tolist() == NOISE


WORDS, NOISE = [8370376640230025748, 14620320421396104344], [0.2354831221065896, 1.4589703876137303]


def test_no_word_gives_infinite_noise() -> None:
    lowest, highest = gumbel(np.asarray([0, 2**64 - 1], np.uint64)).tolist()
    assert -3.7 < lowest < -3.5 and 36.7 < highest < 36.8


def test_a_draw_depends_on_seed_index_and_position_alone() -> None:
    numbers = {uniform(s, i, p) for s in (0, 1, 2**63) for i in (0, 1) for p in range(50)}
    assert len(numbers) == 300
    assert all(0 <= n < 1 for n in numbers)
    assert uniform(5, 0, 7) == uniform(5, 0, 7)


def draw_of(settings: list[Sampling], guided: list[bool]) -> Draw:
    """Pictures in a batch of [cond …, uncond …], two positions each, of which some are guided."""
    cond = np.arange(len(settings), dtype=np.int32)
    uncond = np.where(guided, cond + len(settings), cond).astype(np.int32)
    scales = np.asarray([each.scales(2) if on else [1, 1] for each, on in zip(settings, guided)])
    seeds = tuple(each.seed for each in settings)
    return Draw(cond, uncond, tuple(settings), scales, seeds, (0,) * len(settings))


def test_pictures_of_a_batch_draw_as_they_would_alone() -> None:
    """Each with its own settings, guided or not; several positions of each."""
    settings = [Sampling(seed=3), Sampling(cfg_scale=1.0, top_k=7), Sampling(greedy=True), Sampling(top_p=0.5)]
    settings.append(Sampling(seed=4, noise="gumbel"))
    guided = [True, False, True, False, True]
    logits = np.random.default_rng(1).standard_normal((10, 2, 500)).astype(np.float32)
    together = draw_of(settings, guided).on_host(logits)
    for n, (own, on) in enumerate(zip(settings, guided)):
        alone = draw_of([own], [on]).on_host(logits[[n, n + 5]])
        assert together[n].tolist() == alone[0].tolist()
        for position in range(2):
            row = logits[n, position]
            if on:
                row = guide(row, logits[n + 5, position], float(own.scales(2)[position]))
            if own.noise == "gumbel":
                expected = sample_with_gumbel(row, own, words(own.seed, 0, position, 500))
            else:
                expected = sample(row, own, uniform(own.seed, 0, position))
            assert together[n, position] == expected


@pytest.mark.parametrize("size", [64, 1024, 2048, 16384])
@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
def test_rows_sampled_at_once_get_the_tokens_of_one_by_one(size: int, spread: float) -> None:
    rng = np.random.default_rng(0)
    for trial in range(60):
        sampling = Sampling(
            temperature=float(rng.choice([0.3, 1.0, 1.7])),
            top_k=int(rng.choice([0, 1, 50, 500, 1000])),
            top_p=float(rng.choice([1.0, 1.0, 0.9])),
        )
        logits = (spread * rng.standard_normal((7, size))).astype(np.float32)
        if trial % 5 == 0:
            logits = np.round(logits)  # ties
        if trial % 7 == 0:
            logits[2, : size // 2] = -np.inf
        numbers = rng.random(7)
        expected = [sample(row, sampling, number) for row, number in zip(logits, numbers.tolist())]
        assert sample_alike(logits, sampling, numbers) == expected


def test_the_host_draws_the_tokens_that_a_device_did_not() -> None:
    draw = draw_of([Sampling(seed=3), Sampling(seed=4)], [False, False])
    logits = np.random.default_rng(1).standard_normal((2, 2, 500)).astype(np.float32)
    every = draw.on_host(logits)
    some = draw.on_host(logits, np.asarray([[11, -1], [-1, 12]], np.int32))
    assert some.tolist() == [[11, every[0, 1]], [every[1, 0], 12]]


def test_the_numbers_of_a_seed_never_change() -> None:
    """Someone may have written down a seed; another runtime can follow the same recipe.

    NumPy's Philox 4×64: key = seed, counter = (0, 0, index, position), the top 53 bits of the first word.
    """
    assert uniform(0, 0, 0) == 0.011546754286331562
    assert uniform(2**64 - 1, 1, 63) == 0.3807982168719358


def test_the_numbers_are_numpys() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        seed, index, position = int(rng.integers(0, 2**64, dtype=np.uint64)), *rng.integers(0, 2**31, 2).tolist()
        generator = np.random.Philox(key=seed, counter=[0, 0, index, position])
        assert uniform(seed, index, position) == (int(generator.random_raw()) >> 11) * 2.0**-53


def test_greedy_takes_the_largest_logit() -> None:
    assert sample(np.float32([1, 9, 3]), Sampling(greedy=True), 0.0) == 1


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("top_p", 1.5, r"top_p must be in \(0, 1\], got 1.5"),
        ("top_p", 0.0, "top_p"),
        ("top_p", float("nan"), "top_p"),
        ("top_k", -1, r"top_k must be 0 \(off\) or more, got -1"),
        ("temperature", 0.0, "temperature must be a finite number above 0, got 0.0"),
        ("temperature", float("inf"), "temperature"),
        ("seed", -1, "seed must be 0 to"),
        ("seed", 2**64, "seed"),
        ("cfg_scale", -1.0, "cfg_scale must be 0 to 1e[+]06"),
        ("cfg_scale", float("nan"), "cfg_scale"),
        ("cfg_scale", 1e39, "cfg_scale must be 0 to 1e[+]06"),
        ("cfg_scale", "linear:1,1e39", "cfg_scale must be 0 to 1e[+]06"),
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
    assert (Sampling(cfg_interval=interval).scales(5) > 1).tolist() == guided
