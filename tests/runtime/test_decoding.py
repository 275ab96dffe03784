"""The loop over a decoder that is twenty lines of arithmetic, so that only the loop is tested."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from editar_rt.generation.decoding import Prefix, decode, picture_chunk, score
from editar_rt.generation.sampling import Sampling, guide, pick_tokens

VOCABULARY, DIM, COUNT = 50, 4, 9


class FakeCache:
    """A row's logits follow from everything it was fed, in order."""

    def __init__(self, rows: int, capacity: int, calls: list[tuple[int, int]]) -> None:
        self.capacity, self.calls = capacity, calls
        self.lengths = np.zeros(rows, np.int32)
        self.states = np.zeros((rows, capacity + 1))  # after every position

    def copy_row(self, source: int, target: int, frozen: bool = False) -> None:
        self.states[target], self.lengths[target] = self.states[source], self.lengths[source]

    def forward(
        self, tokens: np.ndarray, prefix: np.ndarray, logit_positions: np.ndarray, first_row: int = 0
    ) -> np.ndarray:
        self.calls.append(tokens.shape)
        hidden = np.where(tokens >= 0, tokens, np.broadcast_to(prefix, (*tokens.shape, DIM)).sum(-1))
        picked = np.zeros((len(tokens), len(logit_positions)))
        for row, values in enumerate(hidden, start=first_row):
            past = self.lengths[row]
            assert past + len(values) <= self.capacity
            for i, value in enumerate(values, start=past):
                self.states[row, i + 1] = np.sin(self.states[row, i] * 3.1 + value * 1.7 + 1)
            picked[row - first_row] = self.states[row, past + 1 + logit_positions]
            self.lengths[row] += len(values)
        return np.asarray(np.cos(picked[..., None] * 40 * np.arange(1, VOCABULARY + 1)) * 3, np.float32)


class FakeBackend:
    name = "fake"

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def run(self, part: str, inputs: Any) -> dict[str, np.ndarray]:
        raise AssertionError("the loop runs the decoder only")

    def make_cache(self, rows: int, capacity: int) -> FakeCache:
        return FakeCache(rows, capacity, self.calls)


RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, VOCABULARY, (8, COUNT), np.int32)
TEXT = RNG.standard_normal((8, 3, DIM)).astype(np.float32)
NULL_TEXT, NULL_PICTURE = np.zeros((1, 3, DIM), np.float32), np.ones((1, COUNT, DIM), np.float32)


def make_prefix(backend: FakeBackend, rows: int, guided: bool = True, owners: list[int] | None = None) -> Prefix:
    owners = list(range(rows)) if owners is None else owners
    picture = picture_chunk(PICTURES[: max(owners) + 1], NULL_PICTURE)
    return Prefix(backend, picture, owners, guided, TEXT.shape[1], COUNT)


def tokens(backend: FakeBackend, rows: int, sampling: Sampling, known: np.ndarray | None = None) -> np.ndarray:
    prefix = make_prefix(backend, rows, sampling.guided)
    first = prefix.read(TEXT[:rows], NULL_TEXT)
    return np.concatenate([step.tokens for step in decode(prefix, first, COUNT, sampling, known=known)], axis=1)


def plain_tokens(row: int, sampling: Sampling, known: np.ndarray | None = None) -> np.ndarray:
    """One picture by the book: both rows run whole, token by token, nothing is shared, copied or left out."""
    caches = [FakeCache(1, 2 * COUNT + 3, []) for _ in range(2)]
    every = np.arange(COUNT + 3)
    logits = []
    for cache, text in zip(caches, (TEXT[row], NULL_TEXT[0]), strict=True):
        whole = np.concatenate([PICTURES[row], np.full(3, -1)])[None]
        states = np.concatenate([np.zeros((COUNT, DIM), np.float32), text])[None]
        logits.append(cache.forward(whole, states, every)[:, -1])
    found = []
    for position in range(COUNT):
        scale = float(sampling.scales(COUNT)[position])
        mixed = guide(*logits, scale) if scale > 1 else logits[0]
        drawn = int(pick_tokens(mixed, sampling, position)[0])
        found.append(drawn if known is None or known[row, position] < 0 else int(known[row, position]))
        step = np.asarray([[found[-1]]])
        logits = [cache.forward(step, np.zeros((1, 1, DIM), np.float32), np.zeros(1, int))[:, 0] for cache in caches]
    return np.asarray(found)


def test_every_token_is_yielded_once_in_order() -> None:
    prefix = make_prefix(FakeBackend(), 2)
    steps = list(decode(prefix, prefix.read(TEXT[:2], NULL_TEXT), COUNT, Sampling()))
    assert [s.position for s in steps] == list(range(COUNT))


def test_picture_once_then_each_text_then_single_steps_and_the_last_token_is_not_fed() -> None:
    backend = FakeBackend()
    tokens(backend, 1, Sampling())
    assert backend.calls == [(1, COUNT), (1, 3), (1, 3)] + [(2, 1)] * (COUNT - 1)


@pytest.mark.parametrize("sampling", [Sampling(seed=3), Sampling(cfg_scale=1.0), Sampling(cfg_interval=2)], ids=str)
def test_sharing_the_picture_changes_no_token(sampling: Sampling) -> None:
    found = tokens(FakeBackend(), 3, sampling)
    assert np.array_equal(found, np.stack([plain_tokens(row, sampling) for row in range(3)]))


def test_a_second_text_pays_its_own_prefill_alone() -> None:
    backend = FakeBackend()
    prefix = make_prefix(backend, 1)
    list(decode(prefix, prefix.read(TEXT[:1], NULL_TEXT), COUNT, Sampling()))
    backend.calls.clear()
    first = prefix.read(TEXT[1:2], NULL_TEXT)
    assert backend.calls == [(1, 3)]
    again = [int(step.tokens[0, 0]) for step in decode(prefix, first, COUNT, Sampling(seed=8))]
    fresh = make_prefix(FakeBackend(), 1)
    steps = decode(fresh, fresh.read(TEXT[1:2], NULL_TEXT), COUNT, Sampling(seed=8))
    assert again == [int(step.tokens[0, 0]) for step in steps]


def test_variants_share_one_prefill_and_are_what_their_seeds_give_alone() -> None:
    backend = FakeBackend()
    prefix = make_prefix(backend, 3, owners=[0, 0, 0])
    first = prefix.read(TEXT[:1], NULL_TEXT)
    assert backend.calls == [(1, COUNT), (1, 3), (1, 3)]
    steps = decode(prefix, first, COUNT, Sampling(), seeds=[5, 6, 7])
    found = np.concatenate([step.tokens for step in steps], axis=1)
    assert np.array_equal(found, np.stack([plain_tokens(0, Sampling(seed=seed)) for seed in (5, 6, 7)]))


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
    assert backend.calls == [(1, COUNT)] * 2 + [(1, 3)] * 2 + [(2, 1)] * (COUNT - 1)


def test_the_null_rows_leave_after_the_interval() -> None:
    backend = FakeBackend()
    tokens(backend, 2, Sampling(cfg_interval=2))
    # Prefill and single steps 0, 1, 2 are guided; the step that computes token 4 is single step 3.
    assert [rows for rows, positions in backend.calls if positions == 1] == [4, 4, 4, 2, 2, 2, 2, 2]


KNOWN = np.where(np.isin(np.arange(COUNT), [1, 4, 5]), -1, PICTURES)


def test_known_tokens_are_taken_and_the_others_are_what_stepping_gives() -> None:
    found = tokens(FakeBackend(), 3, Sampling(seed=3), KNOWN[:3])
    assert np.array_equal(found, np.stack([plain_tokens(row, Sampling(seed=3), KNOWN) for row in range(3)]))


def test_a_run_of_known_tokens_is_one_chunk_with_the_token_before_it() -> None:
    backend = FakeBackend()
    prefix = make_prefix(backend, 1)
    first = prefix.read(TEXT[:1], NULL_TEXT)
    backend.calls.clear()
    steps = list(decode(prefix, first, COUNT, Sampling(), known=KNOWN[:1]))
    assert [(step.position, step.stop, step.logits is None) for step in steps] == [
        (0, 1, True), (1, 2, False), (2, 4, True), (4, 5, False), (5, 6, False), (6, COUNT, True),
    ]  # fmt: skip
    assert backend.calls == [(2, 1), (2, 3), (2, 1)]  # nothing behind token 5


def test_what_the_cache_holds_of_known_tokens_is_not_run_again() -> None:
    backend = FakeBackend()
    prefix = make_prefix(backend, 1)
    first = prefix.read(TEXT[:1], NULL_TEXT)
    made = np.concatenate([step.tokens for step in decode(prefix, first, COUNT, Sampling())], axis=1)
    # With the same text one token is fed again for its logits; after another one only the null row can stay.
    for text, calls in ((TEXT[:1], [(2, 1)]), (TEXT[1:2], [(1, 3), (1, 1), (1, 6)])):
        known = made.copy()
        known[:, 6:] = -1
        backend.calls.clear()
        first = prefix.read(text, NULL_TEXT)
        list(decode(prefix, first, COUNT, Sampling(seed=1), known=known))
        assert backend.calls == calls + [(2, 1)] * 2


def test_closing_the_generator_stops_the_work() -> None:
    backend = FakeBackend()
    prefix = make_prefix(backend, 1)
    steps = decode(prefix, prefix.read(TEXT[:1], NULL_TEXT), COUNT, Sampling())
    before = len(backend.calls)
    next(steps), next(steps)
    steps.close()
    assert len(backend.calls) == before + 1


def test_scores_are_the_logits_that_stepping_sees() -> None:
    forced = tokens(FakeBackend(), 2, Sampling(cfg_scale=1.0, greedy=True))
    logits = score(FakeBackend(), picture_chunk(PICTURES[:2], NULL_PICTURE), TEXT[:2], forced)
    assert np.array_equal(logits.argmax(-1), forced)
