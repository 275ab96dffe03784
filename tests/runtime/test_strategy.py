"""Passes over several positions: drafted tokens change how many passes an image takes, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

import editar_rt
from editar_rt import Sampling
from editar_rt.backends.base import DraftChunks
from editar_rt.errors import OptionError
from editar_rt.generation.decoding import Job, decode, run_jobs
from editar_rt.generation.scheduler import Scheduler
from editar_rt.generation.sequence import Ints, Sequence
from editar_rt.generation.strategy import Costs, Jacobi, Speculation, best_size, sizes_for
from tests.runtime.demo import PICTURE, WORDS
from tests.runtime.test_decoding import COUNT, KNOWN, FakeBackend, inputs, plain_tokens

SAMPLINGS = [
    Sampling(seed=3),
    Sampling(cfg_scale=1.0),
    Sampling(cfg_interval=(3, 6)),
    Sampling(cfg_interval=2),
    Sampling(cfg_scale="linear:1,5"),
    Sampling(seed=3, noise="gumbel"),
]


class Drafter:
    """Drafts tokens by a function of positions `start` to `stop - 1`."""

    def __init__(self, tokens: Callable[[int, int], Ints]) -> None:
        self.tokens = tokens
        self.seen: list[tuple[int, int]] = []

    def draft(self, start: int, stop: int) -> Ints:
        return np.asarray(self.tokens(start, stop), np.int32)

    def saw(self, position: int, drawn: Ints) -> None:
        self.seen.append((position, len(drawn)))


def some_right(truth: Ints, share: float) -> Drafter:
    rng = np.random.default_rng(0)
    return Drafter(lambda start, stop: np.where(rng.random(stop - start) < share, truth[start:stop], 49))


def speculating(drafter: Drafter | Jacobi, size: int, shrinks: bool = True) -> Speculation:
    return Speculation(drafter, (size,), shrinks)


def run(
    backend: FakeBackend,
    settings: list[Sampling],
    speculations: list[Speculation | None],
    known: np.ndarray | None = None,
) -> tuple[Ints, list[Sequence]]:
    """Tokens of pictures 0, 1, … with settings of their own, stepping together."""
    guided = sum(sampling.guided for sampling in settings)
    scheduler = Scheduler(backend, len(settings), guided, COUNT + 3, COUNT)  # type: ignore[arg-type]
    found, jobs, sequences = np.full((len(settings), COUNT), -1, np.int32), [], []
    for n, (own, sampling, speculation) in enumerate(zip(found, settings, speculations, strict=True)):
        fixed = None if known is None else known[n]
        context = scheduler.join(sampling.guided)
        sequences.append(Sequence(context, inputs(n), sampling, sampling.seed, fixed, COUNT, speculation))
        jobs.append(Job.of(sequences[-1:], own[None]))
    run_jobs(scheduler, jobs)
    return found, sequences


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("shrinks", [True, False])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("known", [None, KNOWN[:1]], ids=["all", "some known"])
def test_any_draft_gives_the_tokens_of_plain_steps(
    size: int, share: float, shrinks: bool, sampling: Sampling, known: np.ndarray | None
) -> None:
    expected = plain_tokens(0, sampling, known)
    found, _ = run(FakeBackend(), [sampling], [speculating(some_right(expected, share), size, shrinks)], known)
    assert np.array_equal(found[0], expected)


@pytest.mark.parametrize("size", [2, 4, 6, 8])
def test_right_drafts_save_passes_and_wrong_ones_cost_none(size: int) -> None:
    expected = plain_tokens(0, Sampling(seed=3))
    assert not (expected == 49).any()
    for share, passes in ((1.0, math.ceil((COUNT - 1) / size)), (0.0, COUNT - 1)):
        _, (sequence,) = run(FakeBackend(), [Sampling(seed=3)], [speculating(some_right(expected, share), size)])
        assert sequence.passes == passes
    _, (plain,) = run(FakeBackend(), [Sampling(seed=3)], [None])
    assert plain.passes == COUNT - 1


def test_every_pass_has_the_same_shape_where_sizes_differ_in_their_bits() -> None:
    """Also the last ones, which feed some cached positions again."""
    backend = FakeBackend()
    expected = plain_tokens(0, Sampling(seed=3))
    run(backend, [Sampling(seed=3)], [speculating(some_right(expected, 0.7), 4, shrinks=False)])
    shapes = [shape for shape in backend.calls if shape[0] == 2]
    assert shapes and set(shapes) == {(2, 4)}


def test_pictures_that_accept_different_lengths_step_together_with_plain_ones() -> None:
    settings = [Sampling(seed=n, cfg_scale=[3.0, 1.0, 5.0][n % 3]) for n in range(6)]
    expected = np.stack([plain_tokens(n, sampling) for n, sampling in enumerate(settings)])
    speculations = [speculating(some_right(own, n / 5), 4) if n != 3 else None for n, own in enumerate(expected)]
    found, sequences = run(FakeBackend(), settings, speculations)
    assert np.array_equal(found, expected)
    assert sequences[5].passes < sequences[3].passes == sequences[0].passes == COUNT - 1


def test_variants_that_accept_different_lengths_are_reported_in_order_with_their_logits() -> None:
    """Each position once, for all variants, with the logits that its tokens were drawn from."""
    expected = [plain_tokens(0, Sampling(seed=seed)) for seed in (5, 6, 7)]

    def reported(size: int | None) -> list[tuple[int, list[int], np.ndarray]]:
        scheduler = Scheduler(FakeBackend(), 3, 3, COUNT + 3, COUNT)  # type: ignore[arg-type]
        variants = []
        for seed in (5, 6, 7):
            own = None if size is None else speculating(some_right(expected[0], 0.9), size)
            variants.append(Sequence(scheduler.join(True), inputs(0), Sampling(), seed, None, COUNT, own))
        return [(s.position, s.tokens[:, 0].tolist(), s.logits.copy()) for s in decode(scheduler, variants)]

    plain, drafted = reported(None), reported(4)
    assert [position for position, _, _ in drafted] == list(range(COUNT))
    for (_, tokens, logits), (_, other_tokens, other_logits) in zip(plain, drafted):
        assert tokens == other_tokens and np.array_equal(logits, other_logits)
    assert np.array_equal(np.asarray([tokens for _, tokens, _ in drafted]).T, np.stack(expected))


def test_jacobi_drafts_what_the_last_pass_drew_and_the_source_where_there_was_none() -> None:
    drafter = Jacobi(np.asarray([5, 6, -1, 8]))
    assert drafter.draft(0, 4).tolist() == [5, 6, 0, 8]
    drafter.saw(1, np.asarray([9, 9]))
    assert drafter.draft(0, 4).tolist() == [5, 9, 9, 8]


def test_known_tokens_are_drafts_that_hold() -> None:
    known = np.full((1, COUNT), -1, np.int32)
    expected = plain_tokens(0, Sampling(seed=3))
    known[0, 2:8] = expected[2:8]
    first = Drafter(lambda start, stop: np.where(np.arange(start, stop) == 1, expected[start:stop], 49))
    found, (sequence,) = run(FakeBackend(), [Sampling(seed=3)], [speculating(first, 8)], known)
    assert np.array_equal(found[0], expected) and sequence.passes == 1


# The choice of the size.


def test_auto_takes_the_size_with_the_most_tokens_for_its_measured_cost() -> None:
    costs, own = Costs(), Speculation(Jacobi(np.zeros(4)), (2, 4, 8, 16), True)
    for size, seconds in ((2, 1.1), (4, 1.3), (8, 1.5), (16, 2.0)):
        for _ in range(3):
            costs.add(2, size, seconds)
    for acceptance, size in ((0.95, 16), (0.75, 8), (0.2, 2)):
        own.acceptance = acceptance
        assert best_size([own], costs, 2) == size


def test_the_acceptance_follows_the_outcomes_of_drafts() -> None:
    own = Speculation(Jacobi(np.zeros(4)), (2, 4), True)
    for _ in range(40):
        own.learn(1, 0, True)
    assert own.acceptance < 0.05
    for _ in range(40):
        own.learn(4, 3, False)
    assert own.acceptance > 0.95


@pytest.mark.parametrize(("tokens", "plain"), [(1, True), (2, False)])
def test_auto_learns_from_a_probe_of_one_size_whether_to_speculate(tokens: int, plain: bool) -> None:
    own = Speculation(Jacobi(np.zeros(4)), (2, 4, 8), True, worth=1.6)
    while own.probing:
        assert best_size([own], Costs(), 2) == 4 and not own.plain
        own.learn(tokens, tokens - 1, True)
    assert own.plain == plain


def test_a_picture_whose_drafts_do_not_hold_takes_single_steps_after_the_probe(
    demo_editor: editar_rt.Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens are the same; before the probe's end, each wrong draft costs nothing but time."""
    plain = demo_editor.edit(PICTURE, WORDS, seed=1)
    monkeypatch.setattr(Jacobi, "draft", lambda drafter, start, stop: np.zeros(stop - start, np.int32))
    sizes: list[int] = []
    chunk = Sequence.chunk

    def counted(sequence: Sequence, size: int) -> tuple[int, Ints]:
        sizes.append(size)
        return chunk(sequence, size)

    monkeypatch.setattr(Sequence, "chunk", counted)
    found = demo_editor.edit(PICTURE, WORDS, seed=1, speculate="auto")
    assert np.array_equal(found.tokens, plain.tokens) and found.passes == plain.passes == 63
    assert sizes == [4] * 16 + [1] * 47


def test_auto_keeps_to_one_size_where_sizes_differ_in_their_bits_and_is_plain_where_rows_go_one_by_one() -> None:
    alike, fixed = DraftChunks((2, 4, 6, 8, 10, 16, 32), True), DraftChunks((8, 16, 32), False)
    assert sizes_for("auto", alike, True, 64) == (2, 4, 8, 16, 32)
    assert sizes_for("auto", alike, True, 9) == (2, 4, 8)
    assert sizes_for("auto", fixed, True, 64) == (16,)
    assert sizes_for("auto", fixed, True, 10) == (8,)
    unlike = alike._replace(like_steps=False)
    for chunks, together in ((alike, False), (unlike, True), (DraftChunks((), False), True)):
        assert sizes_for("auto", chunks, together, 64) == ()


@pytest.mark.parametrize(
    ("size", "chunks", "says"),
    [
        (64, DraftChunks((2, 4, 6), True), "must be auto or an even number from 2 to 6 for this bundle, got 64"),
        (4, DraftChunks((8, 16), False), "must be auto or one of 8, 16 for this bundle, got 4"),
        (4, DraftChunks((), False), "this bundle's decoder verifies no drafts; leave out speculate"),
    ],
)
def test_a_size_that_the_decoder_lacks_is_refused(size: int, chunks: DraftChunks, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        sizes_for(size, chunks, True, 32)


@pytest.mark.parametrize("value", [0, 1, 3, -2, 2.0, "fast", True])
def test_odd_sizes_and_other_values_are_refused(value: object) -> None:
    with pytest.raises(OptionError, match="speculate must be auto or an even number of positions, 2 or more, got"):
        editar_rt.Request(PICTURE, WORDS, speculate=value)  # type: ignore[arg-type]


# A real decoder.


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.3, cfg_scale=2.0, seed=5),
        Sampling(greedy=True),
        Sampling(cfg_interval=(9, 40)),
        Sampling(cfg_interval=20, noise="gumbel", temperature=1.0),
    ],
)
@pytest.mark.parametrize("speculate", [2, 8, 62, "auto"])
def test_a_real_decoder_verifies_drafts(
    demo_editor: editar_rt.Editor, sampling: Sampling, speculate: int | str
) -> None:
    """With float32 on a CPU a chunk's logits are a step's but for rounding, which decides none of these draws."""
    plain = demo_editor.edit(PICTURE, WORDS, sampling=sampling)
    found = demo_editor.edit(PICTURE, WORDS, sampling=sampling, speculate=speculate)
    assert np.array_equal(found.tokens, plain.tokens)
    assert plain.passes in (63, 64)  # where guidance begins, a chunk comes before a step
    if speculate != "auto":
        assert found.passes < plain.passes
