"""Exponential and logarithm whose bits are the same everywhere, and the tokens that are drawn with them."""

from __future__ import annotations

import math
import os
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest

from editar_rt.generation import exact
from editar_rt.generation.noise import gumbel
from editar_rt.generation.sampling import Sampling, candidates, largest_tokens, sample

TABLE = Path(__file__).parents[1] / "golden" / "exact.txt"
DRAWS = int(os.environ.get("EDITAR_TEST_DRAWS", "100000"))


FUNCTIONS = {
    "exp": lambda words: exact.exp(words.view(np.float64)),
    "log": lambda words: exact.log(words.view(np.float64)),
    "gumbel": gumbel,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_bits_are_those_of_the_table(name: str) -> None:
    rows = [line.split() for line in TABLE.read_text(encoding="ascii").splitlines()]
    own = [(int(x, 16), int(y, 16)) for function, x, y in rows if function == name]
    arguments, values = np.asarray(own, np.uint64).T.copy()
    assert len(own) > 200
    assert FUNCTIONS[name](arguments).view(np.uint64).tolist() == values.tolist()
    one_by_one = [FUNCTIONS[name](arguments[n : n + 1])[0] for n in range(len(arguments))]
    assert np.asarray(one_by_one).view(np.uint64).tolist() == values.tolist()  # whatever the length of an array


def error(value: float, true: Decimal) -> float:
    """In units in the last place."""
    return float(abs(Decimal(value) - true) / Decimal(math.ulp(value)))


def test_errors_are_as_small_as_stated() -> None:
    rng = np.random.default_rng(0)
    negative = np.concatenate([-700 * rng.random(500), -rng.random(500), -np.exp(rng.uniform(-40, 0, 200))])
    positive = np.concatenate([rng.random(500), 1 - np.exp(rng.uniform(-36, 0, 500)), np.exp(rng.uniform(-37, 4, 500))])
    with localcontext() as context:
        context.prec = 40
        assert max(error(y, Decimal(x).exp()) for x, y in zip(negative.tolist(), exact.exp(negative).tolist())) < 1
        logs = [error(y, Decimal(x).ln()) for x, y in zip(positive.tolist(), exact.log(positive).tolist())]
        assert max(logs) < 1.5


def test_far_below_zero_the_exponential_is_zero_and_not_subnormal() -> None:
    assert exact.exp(np.asarray([-700.0, -700.0001, -1e300, -np.inf]))[1:].tolist() == [0, 0, 0]
    assert exact.exp(np.asarray([-700.0]))[0] > np.finfo(np.float64).tiny


def drawn_by_the_c_library(logits: np.ndarray, sampling: Sampling, numbers: np.ndarray) -> list[int]:
    """As versions up to 0.2 drew: with the C library's exponential, and probabilities that sum to 1."""
    kept = largest_tokens(logits, sampling.top_k)
    weights = np.exp((logits[kept].astype(np.float64) - logits.max()) / sampling.temperature)
    probabilities = weights / weights.sum()
    if sampling.top_p < 1:
        order = np.argsort(-probabilities, kind="stable")
        before = np.concatenate([[0.0], np.cumsum(probabilities[order])[:-1]])
        stay = np.sort(order[before <= sampling.top_p])
        kept, probabilities = kept[stay], probabilities[stay] / probabilities[stay].sum()
    cumulative = np.cumsum(probabilities)
    places = np.searchsorted(cumulative, numbers * cumulative[-1], side="right")
    return kept[np.minimum(places, len(kept) - 1)].tolist()


def test_old_seeds_keep_their_tokens() -> None:
    """`EDITAR_TEST_DRAWS=16000000` compares as many as were compared when the definition changed: no token differed."""
    rng = np.random.default_rng(0)
    each = 1000
    for _ in range(max(1, DRAWS // each)):
        size = int(rng.choice([64, 2048, 16384]))
        logits = (rng.choice([0.5, 2.0, 8.0]) * rng.standard_normal(size)).astype(np.float32)
        sampling = Sampling(
            temperature=float(rng.choice([0.3, 1.0, 1.7])),
            top_k=int(rng.choice([0, 50, 1000])),
            top_p=float(rng.choice([1.0, 1.0, 0.9])),
        )
        numbers = rng.integers(0, 2**53, each) * 2.0**-53
        # One call for all numbers would hide an error of `sample`; a few of them are drawn by itself.
        expected = drawn_by_the_c_library(logits, sampling, numbers)
        assert [sample(logits, sampling, n) for n in numbers[:20].tolist()] == expected[:20]
        assert drawn_now(logits, sampling, numbers) == expected


def drawn_now(logits: np.ndarray, sampling: Sampling, numbers: np.ndarray) -> list[int]:
    """`sample` for many numbers and the same logits."""
    kept, weights = candidates(logits, sampling)
    sums = np.cumsum(weights)
    places = np.searchsorted(sums, numbers * sums[-1], side="right")
    return kept[np.minimum(places, len(kept) - 1)].tolist()
