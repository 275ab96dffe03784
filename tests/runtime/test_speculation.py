"""Speculation in edits: the tokens are those of plain decoding, in fewer passes, whatever else an edit does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import editar_rt
from editar_rt import Request
from editar_rt.errors import OptionError
from editar_rt.generation.sampling import Sampling
from editar_rt.generation.sequence import Ints, Sequence
from editar_rt.generation.strategy import Given, Jacobi, Speculation
from editar_rt.observe.trace import Trace
from tests.runtime.demo import PICTURE, WORDS
from tests.runtime.filled_rows import FilledRows
from tests.runtime.test_strategy import Drafter

MASK = np.zeros((128, 128), bool)
MASK[40:90, 20:100] = True
OPTIONS: list[dict[str, Any]] = [
    {"seed": 3},
    {"seed": 3, "noise": "gumbel", "temperature": 1.0},
    {"greedy": True},
    {"mask": MASK},
    {"mask": MASK, "cfg_interval": (20, 40)},
    {"cfg_interval": 12},
    {"cfg_scale": "linear:1,5"},
    {"cfg_scale": 1.0},
    {"cfg_scale": lambda position, count: 3.0 if position % 16 < 8 else 1.0},
    {"top_p": 0.9},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("speculate", [4, "auto"])
def test_an_edit_has_the_same_tokens_in_fewer_passes(
    demo_editor: editar_rt.Editor, options: dict[str, Any], speculate: int | str
) -> None:
    plain = demo_editor.edit(PICTURE, WORDS, **options)
    found = demo_editor.edit(PICTURE, WORDS, speculate=speculate, **options)
    assert np.array_equal(found.tokens, plain.tokens)
    assert found.passes < plain.passes or speculate == "auto"


def test_variants_and_batches_have_the_tokens_of_edits_alone(demo_editor: editar_rt.Editor) -> None:
    """In a batch each picture has its own way; those that speculate accept different lengths."""
    alone = [demo_editor.edit(PICTURE, WORDS, seed=seed) for seed in range(4)]
    expected = np.stack([each.tokens for each in alone])
    variants = demo_editor.variants(PICTURE, WORDS, 4, speculate=8)
    assert np.array_equal(np.stack([each.tokens for each in variants]), expected)
    assert all(each.passes < 40 for each in variants)
    ways = [8, None, "auto", 4]
    requests = [Request(PICTURE, WORDS, seed=seed, speculate=way) for seed, way in enumerate(ways)]  # type: ignore[arg-type]
    batch = demo_editor.edit_batch(requests)
    assert np.array_equal(np.stack([each.tokens for each in batch]), expected)
    assert batch[0].passes < 40 and batch[3].passes < 40 and batch[1].passes == 63


def test_progress_and_previews_see_every_position_in_order(demo_editor: editar_rt.Editor) -> None:
    seen: list[tuple[int, int]] = []
    lines: list[int] = []
    demo_editor.edit(
        PICTURE,
        WORDS,
        speculate=8,
        on_progress=lambda *at: seen.append(at),
        on_preview=lambda picture, done, total: lines.append(done),
        preview_share=1.0,
    )
    assert seen == [(done, 64) for done in range(1, 65)]
    assert lines == sorted(lines) and lines


@pytest.mark.parametrize("at", [1, 5, 6, 30, 63])
def test_a_cancelled_edit_stops_within_a_pass_and_continues_as_if_it_had_not(
    demo_editor: editar_rt.Editor, at: int
) -> None:
    plain = demo_editor.edit(PICTURE, WORDS, seed=2).tokens
    session, cancel = demo_editor.session(PICTURE), threading.Event()
    stopped = session.edit(
        WORDS, seed=2, speculate=8, cancel=cancel, on_progress=lambda done, _: cancel.set() if done == at else None
    )
    source = session.condition_tokens[0]
    assert not stopped.finished
    assert np.array_equal(stopped.tokens, np.concatenate([plain[:at], source[at:]]))
    assert np.array_equal(session.resume().tokens, plain)


def test_a_line_can_be_drawn_again_with_another_seed(demo_editor: editar_rt.Editor) -> None:
    found = []
    for speculate in (None, 8):
        session = demo_editor.session(PICTURE)
        session.edit(WORDS, seed=2, speculate=speculate)
        found.append([session.resume(4, seed=9).tokens, session.resume(2, seed=5).tokens])
        found[-1] += [each.tokens for each in session.resume_variants(2, 3, seed=7)]
        found[-1].append(session.edit("remove the cube", seed=1).tokens)
    assert np.array_equal(found[0], found[1])


def test_a_trace_tells_the_passes_and_is_replayed_in_few(
    demo_editor: editar_rt.Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[int, ...]] = []
    accept = Sequence.accept

    def counted(sequence: Sequence, start: int, fed: Ints, made: Ints) -> list[tuple[int, int]]:
        runs.append(fed.shape)
        return accept(sequence, start, fed, made)

    for speculate in (None, 8):
        result = demo_editor.edit(PICTURE, WORDS, seed=4, speculate=speculate, trace=tmp_path / "t.npz")
        trace = Trace.load(tmp_path / "t.npz")
        assert trace.header.speculate == speculate and trace.header.passes == [result.passes]
        monkeypatch.setattr(Sequence, "accept", counted)
        runs.clear()
        found = editar_rt.replay(demo_editor, trace)
        monkeypatch.undo()
        assert found.difference is None and found.compared == 64 and found.largest_error < 1e-3
        assert runs == ([(8,)] * 7 + [(8,)] if speculate else [(16,)] * 4)


@pytest.mark.parametrize("speculate", [None, 8])
@pytest.mark.parametrize("position", [0, 1, 8, 9, 40, 63])
def test_a_replay_finds_the_first_difference_where_plain_decoding_finds_it(
    demo_editor: editar_rt.Editor, tmp_path: Path, speculate: int | None, position: int
) -> None:
    demo_editor.edit(PICTURE, WORDS, seed=4, speculate=speculate, trace=tmp_path / "t.npz")
    trace = Trace.load(tmp_path / "t.npz")
    right = int(trace.tokens[0, position])
    trace.tokens[0, position] = (right + 7) % 2048
    found = editar_rt.replay(demo_editor, trace)
    assert found.difference is not None and found.compared == position
    assert (found.difference.position, found.difference.found) == (position, right)


def decoded(editor: editar_rt.Editor, sampling: Sampling, speculation: Speculation | None) -> tuple[Ints, Any, int]:
    """Tokens, logits of every position, and passes."""
    condition = editor.session(PICTURE).condition_tokens
    (given,) = editor.inputs(editor.encode_text([WORDS]), condition)
    scheduler = editor.scheduler(1, sampling.guided)
    sequence = Sequence(scheduler.join(sampling.guided), given, sampling, sampling.seed, None, 64, speculation)
    logits = []
    while not sequence.finished:
        logits += [drawn.logits().copy() for drawn in scheduler.step([sequence])]
    return sequence.tokens, np.stack(logits), sequence.passes


DRAFTERS: dict[str, Callable[[Ints], Any]] = {
    "right": Given,
    "wrong": lambda truth: Given((truth + 1) % 2048),
    "random": lambda truth: Drafter(lambda start, stop: np.random.default_rng(start).integers(0, 2048, stop - start)),
    "Jacobi": lambda truth: Jacobi(np.zeros(64, np.int32)),
}


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("size", [2, 6, 16, 62])
def test_logits_are_the_same_bits_whatever_the_size_and_the_drafts(
    demo_editor: editar_rt.Editor, drafter: str, size: int
) -> None:
    """With float32 on a CPU, except for the first token's, which the prefill gives."""
    sampling = Sampling(seed=6, noise="gumbel")
    tokens, logits, _ = decoded(demo_editor, sampling, Speculation(Jacobi(np.zeros(64, np.int32)), (8,), True))
    found = decoded(demo_editor, sampling, Speculation(DRAFTERS[drafter](tokens), (size,), True))
    assert np.array_equal(found[0], tokens) and np.array_equal(found[1], logits)
    expected = {"right": -(-63 // size), "wrong": 63}.get(drafter)
    assert expected is None or found[2] == expected


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (3, "speculate must be auto or an even number of positions, 2 or more, got 3"),
        (0, "speculate must be auto or an even number"),
        (64, "speculate must be auto or an even number from 2 to 62 for this bundle, got 64"),
    ],
)
def test_sizes_that_cannot_be_are_refused(demo_editor: editar_rt.Editor, value: int, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        demo_editor.edit(PICTURE, WORDS, speculate=value)
    session = demo_editor.session(PICTURE)
    with pytest.raises(OptionError, match=says):
        session.edit(WORDS, speculate=value)
    assert session.edit(WORDS, seed=1).finished  # the session is as good as before


def largest_difference_by_size(editor: editar_rt.Editor, guided: bool) -> float:
    """Of the logits of a picture, relative to their spread, between passes of 2, 4 and 8 positions."""
    rng = np.random.default_rng(0)
    states = rng.standard_normal((1, editor.model.text_tokens or 1, editor.model.text_dim or 1)).astype(np.float32)
    condition = rng.integers(0, 256, (1, 16)).astype(np.int32)
    sampling = Sampling(seed=1, cfg_scale=3.0 if guided else 1.0)
    found = []
    for size in (2, 4, 8):
        steps = editor.steps(states, condition, sampling, speculate=size)
        found.append(np.stack([step.logits[0].copy() for step in steps if step.logits is not None]))
    return max(float(np.abs(logits - found[0]).max() / np.ptp(found[0])) for logits in found[1:])


@pytest.mark.parametrize("guided", [True, False])
def test_quantized_weights_give_the_same_bits_in_passes_of_every_size(
    golden_gpt_bundle_quantized: Path, guided: bool
) -> None:
    editor = editar_rt.load(golden_gpt_bundle_quantized, device="cpu", threads=1)
    assert editor.scheduler(1, guided).decoder.draft_chunks.alike
    assert largest_difference_by_size(editor, guided) == 0


def test_auto_decodes_plainly_where_passes_would_give_other_tokens(golden_gpt_bundle_quantized: Path) -> None:
    """Over a float cache, attention rounds a chunk otherwise than a step, which integer activations multiply."""
    editor = editar_rt.load(golden_gpt_bundle_quantized, device="cpu", threads=1)
    drafts = editor.scheduler(1, True).pass_sizes("auto")
    assert bool(drafts) == (editor.bundle.manifest.kv_cache == "int8")


@pytest.mark.parametrize("count", [2, 3, 4, 5, 13])
def test_quantized_weights_give_the_same_bits_in_a_chunk_and_in_steps(
    golden_gpt_bundle_quantized: Path, count: int
) -> None:
    """So an image with fixed tokens, which go in a chunk, has the same tokens with and without speculation."""
    backend = editar_rt.load(golden_gpt_bundle_quantized, device="cpu", threads=1).backend
    rng = np.random.default_rng(0)
    before, tokens = (rng.integers(0, 256, (1, length), np.int32) for length in (16, count))
    found = []
    for lengths in ([count], [1] * count):
        rows = FilledRows(backend, 1, 40)
        rows.forward(before)
        parts = np.split(tokens, np.cumsum(lengths)[:-1], axis=1)
        last = [rows.forward(part).copy() for part in parts][-1]
        found.append(np.stack([last, rows.forward(tokens[:, :1])]))
    assert np.array_equal(*found)


@pytest.mark.parametrize("guided", [True, False])
def test_engines_promise_no_bits_but_those_of_one_size(golden_gpt_bundle_delta: Path, guided: bool) -> None:
    editor = editar_rt.load(golden_gpt_bundle_delta, device="emulated", threads=1)
    assert not editor.scheduler(1, guided).decoder.draft_chunks.alike
    assert largest_difference_by_size(editor, guided) < 1e-5
