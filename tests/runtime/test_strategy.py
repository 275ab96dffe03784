"""Steps over several positions: drafted tokens change how many runs a picture takes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import editar_rt
from editar_rt import Sampling
from editar_rt.generation.decoding import Job, decode, run_jobs
from editar_rt.generation.scheduler import Scheduler
from editar_rt.generation.sequence import Ints, Sequence
from tests.runtime.demo import PICTURE, WORDS
from tests.runtime.test_decoding import COUNT, KNOWN, FakeBackend, inputs, plain_tokens


class Drafter:
    """Drafts `size` tokens by a function of (position, number)."""

    def __init__(self, size: int, tokens: Callable[[int, int], Ints]) -> None:
        self.most, self.tokens = size, tokens
        self.seen: list[tuple[int, int]] = []

    def draft(self, sequence: Sequence, most: int) -> Ints:
        return np.asarray(self.tokens(sequence.position, most), np.int32)

    def saw(self, sequence: Sequence, position: int, drawn: Ints) -> None:
        self.seen.append((position, len(drawn)))


def run(backend: FakeBackend, drafter: Drafter, settings: list[Sampling], known: np.ndarray | None = None) -> Ints:
    """Tokens of pictures 0, 1, … with settings of their own, stepping together."""
    guided = sum(sampling.guided for sampling in settings)
    scheduler = Scheduler(backend, len(settings), guided, COUNT + 3, COUNT, strategy=drafter)  # type: ignore[arg-type]
    found, jobs = np.full((len(settings), COUNT), -1, np.int32), []
    for n, (own, sampling) in enumerate(zip(found, settings, strict=True)):
        fixed = None if known is None else known[n]
        context = scheduler.join(sampling.guided)
        sequence = Sequence(context, inputs(n), sampling, sampling.seed, fixed, COUNT)
        jobs.append(Job.of([sequence], own[None]))
    run_jobs(scheduler, jobs)
    return found


def some_right(truth: Ints, share: float) -> Callable[[int, int], Ints]:
    rng = np.random.default_rng(0)
    return lambda at, n: np.where(rng.random(n) < share, truth[at : at + n], 0).astype(np.int32)


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(seed=3), Sampling(cfg_scale=1.0), Sampling(cfg_interval=(3, 6)), Sampling(cfg_scale="linear:1,5")],
    ids=str,
)
@pytest.mark.parametrize("known", [None, KNOWN[:1]], ids=["all", "some known"])
def test_any_draft_gives_the_tokens_of_plain_steps(
    size: int, share: float, sampling: Sampling, known: np.ndarray | None
) -> None:
    expected = plain_tokens(0, sampling, known)
    found = run(FakeBackend(), Drafter(size, some_right(expected, share)), [sampling], known)
    assert np.array_equal(found[0], expected)


def test_right_drafts_save_steps_and_wrong_ones_cost_none() -> None:
    expected = plain_tokens(0, Sampling(seed=3))
    right, wrong = Drafter(3, some_right(expected, 1.0)), Drafter(3, lambda at, n: np.full(n, 49, np.int32))
    assert not (expected == 49).any()
    for drafter, steps in ((right, [(1, 4), (5, 4)]), (wrong, [(at, min(4, COUNT - at)) for at in range(1, COUNT)])):
        run(FakeBackend(), drafter, [Sampling(seed=3)])
        assert drafter.seen == steps


def test_pictures_that_accept_different_lengths_step_together() -> None:
    settings = [Sampling(seed=n, cfg_scale=[3.0, 1.0, 5.0][n % 3]) for n in range(5)]
    expected = np.stack([plain_tokens(n, sampling) for n, sampling in enumerate(settings)])
    found = run(FakeBackend(), Drafter(3, some_right(expected[2], 0.8)), settings)
    assert np.array_equal(found, expected)


def test_variants_that_accept_different_lengths_are_reported_in_order_with_their_logits() -> None:
    """Each position once, for all variants, with the logits that its tokens were drawn from."""
    expected = [plain_tokens(0, Sampling(seed=seed)) for seed in (5, 6, 7)]

    def reported(size: int) -> list[tuple[int, list[int], np.ndarray]]:
        backend, drafter = FakeBackend(), Drafter(size, some_right(expected[0], 0.9))
        scheduler = Scheduler(backend, 3, 3, COUNT + 3, COUNT, strategy=drafter)  # type: ignore[arg-type]
        variants = [Sequence(scheduler.join(True), inputs(0), Sampling(), seed, None, COUNT) for seed in (5, 6, 7)]
        return [(s.position, s.tokens[:, 0].tolist(), s.logits.copy()) for s in decode(scheduler, variants)]

    plain, drafted = reported(0), reported(4)
    assert [position for position, _, _ in drafted] == list(range(COUNT))
    for (_, tokens, logits), (_, other_tokens, other_logits) in zip(plain, drafted):
        assert tokens == other_tokens and np.array_equal(logits, other_logits)
    assert np.array_equal(np.asarray([tokens for _, tokens, _ in drafted]).T, np.stack(expected))


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0.3, cfg_scale=2.0, seed=5), Sampling(greedy=True), Sampling(cfg_interval=(9, 40))],
)
def test_a_real_decoder_verifies_drafts(demo_editor: editar_rt.Editor, sampling: Sampling) -> None:
    """With float32 on a CPU a chunk's logits are a step's but for rounding, which decides none of these draws."""
    sampling = Sampling.checked(sampling, demo_editor.default_sampling)
    plain = demo_editor.edit(PICTURE, WORDS, sampling=sampling).tokens
    condition = demo_editor.session(PICTURE).condition_tokens
    (given,) = demo_editor.inputs(demo_editor.encode_text([WORDS]), condition)
    drafter = Drafter(7, some_right(plain, 0.8))
    scheduler = Scheduler(demo_editor.backend, 1, 1, demo_editor.prefix_length, 64, strategy=drafter)
    sequence = Sequence(scheduler.join(True), given, sampling, sampling.seed, None, 64)
    while not sequence.finished:
        scheduler.step([sequence])
    assert np.array_equal(sequence.tokens, plain)
    assert len(drafter.seen) < 40
