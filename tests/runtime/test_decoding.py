"""The loop over a decoder that is twenty lines of arithmetic, so that only the loop is tested."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from editar_rt.backends.base import Batch, DraftChunks, Output
from editar_rt.generation.decoding import Job, decode, run_jobs
from editar_rt.generation.noise import uniform, words
from editar_rt.generation.sampling import Draw, Sampling, guide, sample, sample_with_gumbel
from editar_rt.generation.scheduler import Scheduler
from editar_rt.generation.sequence import Inputs, Sequence, state_chunk, token_chunk

VOCABULARY, DIM, COUNT = 50, 4, 9


class FakeDecoder:
    """A row's logits follow from everything it was fed, in order."""

    piece = 6  # positions of a chunk at most
    draft_chunks = DraftChunks((2, 4, 6, 8), True)

    def __init__(self, rows: int, capacity: int, calls: list[tuple[int, int]]) -> None:
        self.capacity, self.calls = capacity, calls
        self.states = np.zeros((rows, capacity + 1))  # after every position

    def copy(self, source: int, target: int, start: int, stop: int, frozen: bool = False) -> None:
        self.states[target, start + 1 : stop + 1] = self.states[source, start + 1 : stop + 1]

    def release(self, row: int) -> None:
        self.states[row] = np.nan

    def runs(self, rows: int, positions: int) -> int:
        return 1

    def run(self, batch: Batch, draw: Draw | None = None) -> Output:
        self.calls.append(batch.tokens.shape)
        assert len(set(batch.rows.tolist())) == len(batch.rows)
        states = 0 if batch.states is None else np.broadcast_to(batch.states, (*batch.tokens.shape, DIM)).sum(-1)
        hidden = np.where(batch.tokens >= 0, batch.tokens, states)
        picked = np.zeros((len(batch.rows), batch.outputs))
        for place, (row, past, count) in enumerate(zip(*(each.tolist() for each in batch[:3]))):
            assert past + count <= self.capacity
            self.states[row, 0] = 0
            for i, value in enumerate(hidden[place, :count], start=past):
                self.states[row, i + 1] = np.sin(self.states[row, i] * 3.1 + value * 1.7 + 1)
            picked[place] = self.states[row, past + count + 1 - batch.outputs : past + count + 1]
        logits = np.asarray(np.cos(picked[..., None] * 40 * np.arange(1, VOCABULARY + 1)) * 3, np.float32)
        return Output(lambda: logits, None if draw is None else draw.on_host(logits))


class FakeBackend:
    name = "fake"

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def run(self, part: str, inputs: Any) -> dict[str, np.ndarray]:
        raise AssertionError("the loop runs the decoder only")

    def make_decoder(self, rows: int, capacity: int) -> FakeDecoder:
        return FakeDecoder(rows, capacity, self.calls)


RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, VOCABULARY, (8, COUNT), np.int32)
TEXT = RNG.standard_normal((8, 3, DIM)).astype(np.float32)
NO_TEXT = np.zeros((3, DIM), np.float32)


def inputs(picture: int, text: int | None = None) -> Inputs:
    text_states = TEXT[picture if text is None else text]
    return Inputs(token_chunk(PICTURES[picture]), state_chunk(text_states), state_chunk(NO_TEXT))


def make_scheduler(backend: FakeBackend, pictures: int, guided: bool = True) -> Scheduler:
    return Scheduler(backend, pictures, pictures if guided else 0, COUNT + 3, COUNT)  # type: ignore[arg-type]


def sequence_of(
    scheduler: Scheduler, picture: int, sampling: Sampling, known: np.ndarray | None = None, seed: int | None = None
) -> Sequence:
    context = scheduler.join(sampling.guided)
    return Sequence(context, inputs(picture), sampling, sampling.seed if seed is None else seed, known, COUNT)


def tokens(backend: FakeBackend, rows: int, sampling: Sampling, known: np.ndarray | None = None) -> np.ndarray:
    scheduler = make_scheduler(backend, rows, sampling.guided)
    pictures = [sequence_of(scheduler, n, sampling, None if known is None else known[n]) for n in range(rows)]
    found = np.full((rows, COUNT), -1, np.int32)
    run_jobs(scheduler, [Job.of([picture], own[None]) for picture, own in zip(pictures, found)])
    return found


def plain_tokens(row: int, sampling: Sampling, known: np.ndarray | None = None, text: int | None = None) -> np.ndarray:
    """One picture by the book: both rows run whole, token by token, nothing is shared, copied or left out."""
    decoders = [FakeDecoder(1, 2 * COUNT + 3, []) for _ in range(2)]
    one, fed = np.zeros(1, np.int32), COUNT + 3
    logits = []
    for decoder, states in zip(decoders, (TEXT[row if text is None else text], NO_TEXT), strict=True):
        whole = np.concatenate([PICTURES[row], np.full(3, -1, np.int32)])[None]
        hidden = np.concatenate([np.zeros((COUNT, DIM), np.float32), states])[None]
        logits.append(decoder.run(Batch(one, one, one + fed, whole, hidden, 1)).logits()[0, 0])
    found: list[int] = []
    for position in range(COUNT):
        scale = float(sampling.scales(COUNT)[position])
        mixed = guide(*logits, scale) if scale > 1 else logits[0]
        if sampling.noise == "gumbel":
            drawn = sample_with_gumbel(mixed, sampling, words(sampling.seed, 0, position, VOCABULARY))
        else:
            drawn = sample(mixed, sampling, 0.0 if sampling.greedy else uniform(sampling.seed, 0, position))
        found.append(drawn if known is None or known[row, position] < 0 else int(known[row, position]))
        step = np.asarray([[found[-1]]], np.int32)
        past, fed = one + fed, fed + 1
        logits = [each.run(Batch(one, past, one + 1, step, None, 1)).logits()[0, 0] for each in decoders]
    return np.asarray(found)


def test_every_token_is_yielded_once_in_order() -> None:
    scheduler = make_scheduler(FakeBackend(), 2)
    variants = [sequence_of(scheduler, 0, Sampling(), seed=seed) for seed in (1, 2)]
    steps = list(decode(scheduler, variants))
    assert [s.position for s in steps] == list(range(COUNT)) and all(s.drawn for s in steps)


def test_picture_once_then_each_text_then_single_steps_and_the_last_token_is_not_fed() -> None:
    backend = FakeBackend()
    tokens(backend, 1, Sampling())
    assert backend.calls == [(1, 6), (1, COUNT - 6), (1, 3), (1, 3)] + [(2, 1)] * (COUNT - 1)


@pytest.mark.parametrize("sampling", [Sampling(seed=3), Sampling(cfg_scale=1.0), Sampling(cfg_interval=2)], ids=str)
def test_sharing_the_picture_changes_no_token(sampling: Sampling) -> None:
    found = tokens(FakeBackend(), 3, sampling)
    assert np.array_equal(found, np.stack([plain_tokens(row, sampling) for row in range(3)]))


def test_a_second_text_pays_its_own_prefill_alone() -> None:
    backend = FakeBackend()
    scheduler = make_scheduler(backend, 1)
    first = sequence_of(scheduler, 0, Sampling())
    list(decode(scheduler, [first]))
    backend.calls.clear()
    again = Sequence(first.context, inputs(0, text=1), Sampling(seed=8), 8, None, COUNT)
    scheduler.prefill(again)
    assert backend.calls == [(1, 3)]
    list(decode(scheduler, [again]))
    assert np.array_equal(again.tokens, plain_tokens(0, Sampling(seed=8), text=1))


def test_variants_share_one_prefill_and_are_what_their_seeds_give_alone() -> None:
    backend = FakeBackend()
    scheduler = make_scheduler(backend, 3)
    variants = [sequence_of(scheduler, 0, Sampling(), seed=seed) for seed in (5, 6, 7)]
    for variant in variants:
        scheduler.prefill(variant)
    assert backend.calls == [(1, 6), (1, COUNT - 6), (1, 3), (1, 3)]
    found = np.concatenate([step.tokens for step in decode(scheduler, variants)], axis=1)
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
    tokens(backend, 1, Sampling(cfg_scale=1.0))
    assert backend.calls == [(1, 6), (1, COUNT - 6), (1, 3)] + [(1, 1)] * (COUNT - 1)


def test_the_unconditional_rows_leave_after_the_interval() -> None:
    backend = FakeBackend()
    tokens(backend, 1, Sampling(cfg_interval=2))
    # Prefill and single steps 0, 1, 2 are guided; the step that computes token 4 is single step 3.
    assert [rows for rows, positions in backend.calls if positions == 1] == [2, 2, 2, 1, 1, 1, 1, 1]


KNOWN = np.where(np.isin(np.arange(COUNT), [1, 4, 5]), -1, PICTURES)


def test_known_tokens_are_taken_and_the_others_are_what_stepping_gives() -> None:
    found = tokens(FakeBackend(), 3, Sampling(seed=3), KNOWN[:3])
    assert np.array_equal(found, np.stack([plain_tokens(row, Sampling(seed=3), KNOWN) for row in range(3)]))


def test_a_run_of_known_tokens_is_one_chunk_with_the_token_before_it() -> None:
    backend = FakeBackend()
    scheduler = make_scheduler(backend, 1)
    picture = sequence_of(scheduler, 0, Sampling(), KNOWN[0])
    scheduler.prefill(picture)
    backend.calls.clear()
    steps = list(decode(scheduler, [picture]))
    assert [(step.position, step.stop, step.logits is None) for step in steps] == [
        (0, 1, True), (1, 2, False), (2, 4, True), (4, 5, False), (5, 6, False), (6, COUNT, True),
    ]  # fmt: skip
    assert backend.calls == [(2, 1), (1, 3), (1, 3), (2, 1)]  # nothing after token 5


def test_cached_tokens_that_are_known_are_not_run_again() -> None:
    backend = FakeBackend()
    scheduler = make_scheduler(backend, 1)
    first = sequence_of(scheduler, 0, Sampling())
    list(decode(scheduler, [first]))
    # With the same text one token is fed again for its logits; after another one only the row without text can stay.
    for text, calls in ((0, [(2, 1)]), (1, [(1, 3), (1, 6), (1, 1)])):
        known = first.tokens.copy()
        known[6:] = -1
        backend.calls.clear()
        list(decode(scheduler, [Sequence(first.context, inputs(0, text), Sampling(seed=1), 1, known, COUNT)]))
        assert backend.calls == calls + [(2, 1)] * 2


def test_a_long_prefill_goes_in_pieces_between_the_steps_of_others() -> None:
    backend = FakeBackend()
    scheduler = make_scheduler(backend, 2)
    early = sequence_of(scheduler, 0, Sampling(seed=1))
    while early.position < 2:
        scheduler.step([early])
    late = sequence_of(scheduler, 1, Sampling(seed=2))
    backend.calls.clear()
    while late.position == 0:
        assert [each.sequence for each in scheduler.step([early, late])][-1] is early  # one token in every call
    assert backend.calls[:4] == [(1, 6), (2, 1), (1, COUNT - 6), (1, 3)]  # a piece, a step, the next pieces
    while not (early.finished and late.finished):
        scheduler.step([early, late])
    assert early.tokens.tolist() == plain_tokens(0, Sampling(seed=1)).tolist()
    assert late.tokens.tolist() == plain_tokens(1, Sampling(seed=2)).tolist()


def test_closing_the_generator_stops_the_work() -> None:
    backend = FakeBackend()
    scheduler = make_scheduler(backend, 1)
    picture = sequence_of(scheduler, 0, Sampling())
    scheduler.prefill(picture)
    steps, before = decode(scheduler, [picture]), len(backend.calls)
    next(steps), next(steps)
    steps.close()
    assert len(backend.calls) == before + 1


def test_scores_are_the_logits_that_stepping_sees() -> None:
    forced = tokens(FakeBackend(), 2, Sampling(cfg_scale=1.0, greedy=True))
    scheduler = make_scheduler(FakeBackend(), 1, guided=False)
    context = scheduler.join(False)
    logits = [scheduler.score(context, inputs(n).picture, inputs(n).text, forced[n]) for n in range(2)]
    assert np.array_equal(np.stack(logits).argmax(-1), forced)
