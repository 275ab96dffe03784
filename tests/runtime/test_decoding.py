"""The loop over a decoder that is twenty lines of arithmetic, so that only the loop is tested."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from editar_rt.decoding import Prefix, decode, make_prefix, score
from editar_rt.sampling import Sampling

VOCABULARY, DIM, COUNT = 50, 4, 9


class FakeCache:
    """A row's logits follow from everything it was fed, in order."""

    def __init__(self, rows: int, capacity: int, calls: list[tuple[int, int]]) -> None:
        self.rows, self.capacity, self.length, self.calls = rows, capacity, 0, calls
        self.state = np.zeros(rows)

    def keep_rows(self, rows: int) -> None:
        self.rows, self.state = rows, self.state[:rows]

    def forward(self, tokens: np.ndarray, prefix: np.ndarray, logit_positions: np.ndarray) -> np.ndarray:
        self.calls.append(tokens.shape)
        assert tokens.shape[0] == self.rows
        self.length += tokens.shape[1]
        assert self.length <= self.capacity
        hidden = np.where(tokens >= 0, tokens, np.broadcast_to(prefix, (*tokens.shape, DIM)).sum(-1))
        states = []
        for column in hidden.T:
            self.state = np.sin(self.state * 3.1 + column * 1.7 + 1)
            states.append(self.state)
        picked = np.stack(states, 1)[:, logit_positions]
        return np.asarray(np.cos(picked[..., None] * 40 * np.arange(1, VOCABULARY + 1)) * 3, np.float32)


class FakeBackend:
    name = "fake"

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def run(self, part: str, inputs: Any) -> dict[str, np.ndarray]:
        raise AssertionError("the loop runs the decoder only")

    def make_cache(self, rows: int, capacity: int) -> FakeCache:
        return FakeCache(rows, capacity, self.calls)


def prefixes(rows: int) -> tuple[Prefix, Prefix]:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, VOCABULARY, (8, COUNT), np.int32)[:rows]
    text = rng.standard_normal((8, 3, DIM)).astype(np.float32)[:rows]
    null_picture = np.zeros((1, COUNT, DIM), np.float32)
    return make_prefix(text, pictures, null_picture), make_prefix(text * 0, pictures, null_picture)


def tokens(backend: FakeBackend, rows: int, sampling: Sampling) -> np.ndarray:
    cond, null = prefixes(rows)
    return np.stack([step.tokens for step in decode(backend, cond, null, COUNT, sampling)], axis=1)


def test_every_token_is_yielded_once_in_order() -> None:
    cond, null = prefixes(2)
    steps = list(decode(FakeBackend(), cond, null, COUNT, Sampling()))
    assert [s.position for s in steps] == list(range(COUNT))


def test_one_prefill_then_single_steps_and_the_last_token_is_not_fed() -> None:
    backend = FakeBackend()
    tokens(backend, 1, Sampling())
    assert backend.calls == [(2, COUNT + 3)] + [(2, 1)] * (COUNT - 1)


def test_the_same_seed_gives_the_same_tokens_and_another_does_not() -> None:
    first = tokens(FakeBackend(), 2, Sampling(seed=1))
    assert np.array_equal(first, tokens(FakeBackend(), 2, Sampling(seed=1)))
    assert not np.array_equal(first, tokens(FakeBackend(), 2, Sampling(seed=2)))


@pytest.mark.parametrize("interval", [-1, 0, 3])
def test_a_picture_has_the_same_tokens_alone_and_in_a_batch(interval: int) -> None:
    sampling = Sampling(seed=4, cfg_interval=interval)
    assert np.array_equal(tokens(FakeBackend(), 5, sampling)[:1], tokens(FakeBackend(), 1, sampling))


def test_without_guidance_only_the_conditional_rows_run() -> None:
    backend = FakeBackend()
    tokens(backend, 2, Sampling(cfg_scale=1.0))
    assert {rows for rows, _ in backend.calls} == {2}


def test_the_null_rows_leave_after_the_interval() -> None:
    backend = FakeBackend()
    tokens(backend, 2, Sampling(cfg_interval=2))
    # Prefill and single steps 0, 1, 2 are guided; the step that computes token 4 is single step 3.
    assert [rows for rows, _ in backend.calls] == [4, 4, 4, 4, 2, 2, 2, 2, 2]


def test_closing_the_generator_stops_the_work() -> None:
    backend = FakeBackend()
    cond, null = prefixes(1)
    steps = decode(backend, cond, null, COUNT, Sampling())
    next(steps), next(steps)
    steps.close()
    assert len(backend.calls) == 2


def test_scores_are_the_logits_that_stepping_sees() -> None:
    cond, _ = prefixes(2)
    forced = tokens(FakeBackend(), 2, Sampling(cfg_scale=1.0, greedy=True))
    logits = score(FakeBackend(), cond, forced)
    assert np.array_equal(logits.argmax(-1), forced)
