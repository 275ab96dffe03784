"""One suite for every backend and dialect: what the loop relies on, and the reference's numbers through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import editar_rt
from editar_rt import Sampling
from editar_rt.backends.base import Backend
from editar_rt.editor import Editor
from editar_rt.generation.decoding import decode
from editar_rt.generation.sequence import Sequence
from tests.conftest import golden_arrays
from tests.runtime.filled_rows import FilledRows

# Bundle, device; largest error of the logits over their spread: float32 measured at 5e-7, float16 at 7e-4.
BACKENDS = {
    "ort": ("golden_gpt_bundle", "cpu", 2e-4),
    "ort, fp16": ("golden_gpt_bundle_fp16", "cpu", 5e-3),
    "standard": ("golden_gpt_bundle_standard", "cpu", 2e-4),
    "delta": ("golden_gpt_bundle_delta", "emulated", 2e-4),
    "delta, sampling head": ("golden_gpt_bundle_delta_head", "emulated", 2e-4),
    "delta, fp16": ("golden_gpt_bundle_delta_fp16", "emulated", 5e-3),
    "native": ("golden_gpt_bundle_native", "emulated", 2e-4),
    "native, fp16": ("golden_gpt_bundle_native_fp16", "emulated", 5e-3),
}
GOLDEN = golden_arrays("gpt_tiny")
CONDITION = GOLDEN["image_tokens"][:1].astype(np.int32)


@pytest.fixture(scope="module", params=BACKENDS)
def case(request: pytest.FixtureRequest) -> tuple[Editor, float]:
    bundle, device, bound = BACKENDS[request.param]
    folder: Path = request.getfixturevalue(bundle)
    return editar_rt.load(folder, device=device, threads=1), bound


@pytest.fixture(scope="module")
def editor(case: tuple[Editor, float]) -> Editor:
    return case[0]


@pytest.fixture(scope="module")
def backend(editor: Editor) -> Backend:
    return editor.backend


def texts(count: int, seed: int = 3) -> np.ndarray:
    shape = (count, *GOLDEN["text"].shape[1:])
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 16)).astype(np.int32)


def sequences(editor: Editor, sampling: Sampling, seeds: list[int], known: np.ndarray | None = None) -> Any:
    """A scheduler, and variants of one picture on it."""
    scheduler = editor.scheduler(len(seeds), sampling.guided)
    (inputs,) = editor.inputs(texts(1), CONDITION)
    return scheduler, [Sequence(scheduler.join(sampling.guided), inputs, sampling, seed, known, 16) for seed in seeds]


@pytest.mark.parametrize(
    ("name", "sampling", "picture"),
    [
        ("cfg1", Sampling(cfg_scale=1.0, greedy=True), True),
        ("cfg3", Sampling(cfg_scale=3.0, greedy=True), True),
        ("cfg3_interval8", Sampling(cfg_scale=3.0, cfg_interval=8, greedy=True), True),
        ("cfg3_image_dropped", Sampling(cfg_scale=3.0, greedy=True), False),
    ],
)
def test_golden_tokens(editor: Editor, name: str, sampling: Sampling, picture: bool) -> None:
    tokens = editor.generate(GOLDEN["text"], GOLDEN["image_tokens"] if picture else None, sampling)
    assert tokens.tolist() == GOLDEN[f"greedy_tokens_{name}"].tolist()


def test_golden_logits(case: tuple[Editor, float]) -> None:
    editor, bound = case
    answers = editor.score(GOLDEN["text"], GOLDEN["image_tokens"], GOLDEN["forced_tokens"])
    for answer, name in zip(answers, ("forced_logits_cond", "forced_logits_uncond")):
        expected = GOLDEN[name]
        assert np.abs(answer - expected).max() / (expected.max() - expected.min()) < bound


@pytest.mark.parametrize("sampling", [Sampling(seed=5), Sampling(cfg_scale=1.0), Sampling(cfg_interval=3)], ids=str)
def test_tokens_of_a_picture_do_not_depend_on_its_batch(editor: Editor, sampling: Sampling) -> None:
    text, picture = texts(3), pictures(3)
    together = editor.generate(text, picture, sampling)
    alone = [editor.generate(text[i : i + 1], picture[i : i + 1], sampling)[0] for i in range(3)]
    assert np.array_equal(together, np.stack(alone))


def test_a_kept_picture_gives_the_tokens_of_a_fresh_one(editor: Editor) -> None:
    scheduler = editor.scheduler(1, True)
    context = scheduler.join(True)
    for i in (0, 1, 2, 0):
        (inputs,) = editor.inputs(texts(3)[i : i + 1], CONDITION)
        kept = Sequence(context, inputs, Sampling(seed=i), i, None, 16)
        list(decode(scheduler, [kept]))
        fresh = editor.generate(texts(3)[i : i + 1], CONDITION, Sampling(seed=i))[0]
        assert kept.tokens.tolist() == fresh.tolist()


def test_variants_are_what_their_seeds_give_alone(editor: Editor) -> None:
    steps = decode(*sequences(editor, Sampling(), [0, 1, 2]))
    variants = np.concatenate([step.tokens for step in steps], axis=1)
    alone = [editor.generate(texts(1), CONDITION, Sampling(seed=seed))[0] for seed in range(3)]
    assert np.array_equal(variants, np.stack(alone))


def test_known_tokens_go_through_as_chunks(editor: Editor) -> None:
    """Free tokens are drawn as they would be if all were stepped over."""
    sampling = Sampling(seed=4)
    fresh = editor.generate(texts(1), CONDITION, sampling)
    known = fresh[0].copy()
    known[[0, 5, 6, 12]] = -1
    steps = list(decode(*sequences(editor, sampling, [4], known)))
    assert len(steps) < 16
    assert np.array_equal(np.concatenate([step.tokens for step in steps], axis=1), fresh)


def sequence(backend: Backend, pieces: list[int], rows: int = 1, last: int = 12) -> np.ndarray:
    """Logits of the last position of `last`, fed in pieces, in every row of a cache."""
    tokens = np.random.default_rng(0).integers(0, 256, (rows, last), np.int32)
    cache, done = FilledRows(backend, rows, last), 0
    for size in pieces:
        logits = cache.forward(tokens[:, done : done + size])
        done += size
    assert done == last and cache.lengths.tolist() == [last] * rows
    return logits.copy()


@pytest.mark.parametrize("pieces", [[1] * 12, [5, 7], [4, 1, 6, 1]], ids=str)
def test_pieces_of_a_sequence_are_as_good_as_the_whole(case: tuple[Editor, float], pieces: list[int]) -> None:
    editor, bound = case
    for rows in (1, 3):
        whole = sequence(editor.backend, [12], rows)
        assert np.abs(sequence(editor.backend, pieces, rows) - whole).max() < bound * np.ptp(whole)


def test_a_rewound_cache_is_as_good_as_a_new_one(case: tuple[Editor, float]) -> None:
    editor, bound = case
    tokens = np.random.default_rng(0).integers(0, 256, (2, 9), np.int32)
    cache = FilledRows(editor.backend, 2, 20)
    cache.forward(tokens)
    cache.forward(tokens[:, :4] + 1)
    cache.lengths[:] = 5
    again = cache.forward(tokens[:, 5:], outputs=4).copy()
    fresh = FilledRows(editor.backend, 2, 20)
    fresh.forward(tokens[:, :5])
    expected = fresh.forward(tokens[:, 5:], outputs=4)
    assert again.shape == (2, 4, 256)
    assert np.abs(again - expected).max() < bound * np.ptp(expected)


def test_rows_of_different_lengths_step_together(case: tuple[Editor, float]) -> None:
    editor, bound = case
    tokens = np.random.default_rng(0).integers(0, 256, (1, 9), np.int32)
    cache = FilledRows(editor.backend, 3, 20)
    for row, length in enumerate((7, 4, 8)):
        cache.forward(tokens[:, :length], first_row=row)
    for step in range(2):
        fed = np.asarray([[tokens[0, (n + step) % 9]] for n in (7, 4, 8)], np.int32)
        together = cache.forward(fed).copy()
    for row, length in enumerate((7, 4, 8)):
        alone = FilledRows(editor.backend, 1, 20)
        alone.forward(tokens[:, :length])
        for step in range(2):
            expected = alone.forward(np.asarray([[tokens[0, (length + step) % 9]]], np.int32))
        assert np.abs(together[row] - expected[0]).max() < bound * np.ptp(expected)


def test_a_copied_row_goes_on_as_its_source(case: tuple[Editor, float]) -> None:
    editor, bound = case
    tokens = np.random.default_rng(0).integers(0, 256, (1, 6), np.int32)
    cache = FilledRows(editor.backend, 4, 20)
    cache.forward(tokens, first_row=2)
    cache.copy_row(2, 1)
    assert cache.lengths.tolist() == [0, 6, 6, 0]
    logits = cache.forward(np.full((2, 1), 3, np.int32), first_row=1)
    assert np.abs(logits[0] - logits[1]).max() <= bound * np.ptp(logits)


def test_states_stand_in_for_tokens_in_a_step(case: tuple[Editor, float]) -> None:
    """A negative token takes the prefix, also where one position is fed."""
    editor, bound = case
    states = np.random.default_rng(0).standard_normal((2, 3, 128)).astype(np.float32)
    tokens = np.full((2, 3), -1, np.int32)
    cache = FilledRows(editor.backend, 2, 20)
    whole = cache.forward(tokens, states).copy()
    cache.lengths[:] = 0
    for position in range(3):
        logits = cache.forward(tokens[:, :1], states[:, position : position + 1])
    assert np.abs(logits - whole).max() < bound * np.ptp(whole)


def chunked(backend: Backend, tokens: np.ndarray, size: int) -> np.ndarray:
    """Logits [R, N, V] of tokens [R, N] after a prefill of 4 of them, in chunks of `size` that end where N does."""
    rows, count = tokens.shape
    cache = FilledRows(backend, rows, count)
    cache.forward(tokens[:, :4])
    found = np.zeros((rows, count, 0), np.float32)
    for start in range(4, count, size):
        begin = min(start, count - size)  # the last chunk repeats positions, so that it has `size` too
        cache.lengths[:] = begin
        logits = cache.forward(tokens[:, begin : begin + size], outputs=size)
        found = np.zeros((rows, count, logits.shape[-1]), np.float32) if not found.size else found
        found[:, begin : begin + size] = logits
    return found[:, 4:]


@pytest.mark.parametrize("rows", [1, 2])
def test_chunks_of_drafts_give_the_same_bits_in_every_size_where_the_decoder_says_so(
    case: tuple[Editor, float], rows: int
) -> None:
    """And every size gives the logits of steps but for rounding."""
    editor, bound = case
    chunks = editor.backend.make_decoder(2, 20).draft_chunks
    assert chunks.sizes == tuple(sorted(chunks.sizes)) and all(size % 2 == 0 for size in chunks.sizes)
    tokens = np.random.default_rng(2).integers(0, 256, (rows, 20), np.int32)
    steps = chunked(editor.backend, tokens, 1)
    by_size = [chunked(editor.backend, tokens, size) for size in chunks.sizes if size <= 16]
    assert len(by_size) > 2
    for logits in by_size:
        assert np.abs(logits - steps).max() / np.ptp(steps) < bound
        assert not chunks.alike or np.array_equal(logits, by_size[0])
