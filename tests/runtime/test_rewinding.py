"""Cancelling, rewinding, re-rolling and variants, on the demo bundle, token for token."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

import editar_rt
from editar_rt.backends.base import Batch
from editar_rt.errors import Cancelled, OptionError
from tests.runtime.demo import BALL, COUNT, GRID, PICTURE, WORDS
from tests.runtime.watching import forwarded_positions

Sampling = editar_rt.Sampling


def stopping_at(tokens: int) -> tuple[threading.Event, editar_rt.results.Progress]:
    """An event, and a progress callback that sets it when so many tokens are done."""
    event = threading.Event()
    return event, lambda done, total: event.set() if done >= tokens else None


# Cancelling.


def test_cancelling_in_a_callback_stops_at_that_step_and_returns_what_there_is(demo_editor: editar_rt.Editor) -> None:
    session = demo_editor.session(PICTURE)
    whole = session.edit(WORDS)
    cancel, on_progress = stopping_at(20)
    part = session.edit(WORDS, on_progress=on_progress, cancel=cancel)
    assert whole.finished and not part.finished
    assert np.array_equal(part.tokens[:20], whole.tokens[:20])
    assert np.array_equal(part.tokens[20:], session.condition_tokens[0, 20:])


def test_raising_cancelled_in_a_callback_does_the_same(demo_editor: editar_rt.Editor) -> None:
    def stop(done: int, total: int) -> None:
        if done == 20:
            raise Cancelled("enough")

    cancel, on_progress = stopping_at(20)
    expected = demo_editor.edit(PICTURE, WORDS, on_progress=on_progress, cancel=cancel)
    found = demo_editor.edit(PICTURE, WORDS, on_progress=stop)
    assert not found.finished and np.array_equal(found.tokens, expected.tokens)


def test_cancelling_from_another_thread_stops_within_one_step(demo_editor: editar_rt.Editor) -> None:
    cancel, begun, seen = threading.Event(), threading.Event(), []
    stopped_after: list[int] = []

    def stop() -> None:
        begun.wait()
        cancel.set()
        stopped_after.append(len(seen))

    def on_progress(done: int, total: int) -> None:
        seen.append(done)
        if done == 5:
            begun.set()
            cancel.wait()  # the step that was running when the other thread stopped it

    thread = threading.Thread(target=stop)
    thread.start()
    result = demo_editor.edit(PICTURE, WORDS, on_progress=on_progress, cancel=cancel)
    thread.join()
    assert not result.finished and seen == [1, 2, 3, 4, 5] and stopped_after == [5]


def test_what_is_cancelled_before_it_begins_runs_nothing(
    demo_editor: editar_rt.Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel = threading.Event()
    cancel.set()
    session = demo_editor.session(PICTURE)
    monkeypatch.setattr(demo_editor.backend, "make_decoder", None)
    result = session.edit(WORDS, cancel=cancel)
    assert not result.finished and np.array_equal(result.tokens, session.condition_tokens[0])


def test_after_cancelling_the_session_edits_as_if_nothing_had_been(demo_editor: editar_rt.Editor) -> None:
    session = demo_editor.session(PICTURE)
    cancel, on_progress = stopping_at(13)
    session.edit(WORDS, on_progress=on_progress, cancel=cancel)
    for words in ("remove the cube", WORDS):
        assert np.array_equal(session.edit(words).tokens, demo_editor.edit(PICTURE, words).tokens)


@pytest.mark.parametrize("where", ["picture", "text", "step"])
def test_an_edit_that_is_interrupted_anywhere_leaves_the_session_usable(
    demo_editor: editar_rt.Editor, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    session = demo_editor.session(PICTURE)
    kind = type(demo_editor.backend.make_decoder(1, 1))
    run, calls = kind.run, []

    def interrupted(self: object, batch: Batch, *rest: object) -> object:
        calls.append(batch)
        if len(calls) == {"picture": 1, "text": 2, "step": 9}[where]:
            raise KeyboardInterrupt
        return run(self, batch, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(kind, "run", interrupted)
        session.edit(WORDS)
    assert np.array_equal(session.edit(WORDS).tokens, demo_editor.edit(PICTURE, WORDS).tokens)


def test_what_was_cancelled_goes_on_to_the_same_tokens(demo_editor: editar_rt.Editor) -> None:
    session = demo_editor.session(PICTURE)
    cancel, on_progress = stopping_at(20)
    session.edit(WORDS, sampling=Sampling(seed=6), on_progress=on_progress, cancel=cancel)
    resumed = session.resume()
    assert resumed.finished
    assert np.array_equal(resumed.tokens, demo_editor.edit(PICTURE, WORDS, sampling=Sampling(seed=6)).tokens)


def test_cancelling_what_goes_on_loses_nothing_of_what_there_was(demo_editor: editar_rt.Editor) -> None:
    session = demo_editor.session(PICTURE)
    cancel, on_progress = stopping_at(20)
    part = session.edit(WORDS, on_progress=on_progress, cancel=cancel)
    again = session.resume(cancel=cancel)  # still set
    assert not again.finished and np.array_equal(again.tokens, part.tokens)
    assert np.array_equal(session.resume().tokens, demo_editor.edit(PICTURE, WORDS).tokens)


def test_a_cancelled_edit_keeps_no_cache(
    demo_editor: editar_rt.Editor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make, caches = demo_editor.backend.make_decoder, []

    def made(rows: int, capacity: int) -> object:
        cache = make(rows, capacity)
        caches.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(demo_editor.backend, "make_decoder", made)
    cancel, on_progress = stopping_at(20)
    options = {"cancel": cancel, "on_preview": lambda *_: None, "trace": tmp_path / "t.npz"}
    result = demo_editor.edit(PICTURE, WORDS, on_progress=on_progress, **options)
    gc.collect()
    assert not result.finished and len(caches) == 1 and caches[0]() is None


def test_a_cache_is_freed_with_its_session(demo_editor: editar_rt.Editor) -> None:
    session = demo_editor.session(PICTURE)
    before = session.edit(WORDS)
    session.close()
    assert session._scheduler is None
    assert np.array_equal(session.edit(WORDS).tokens, before.tokens)


# Rewinding.


def test_rows_above_stay_and_those_below_are_drawn_with_the_new_seed(demo_editor: editar_rt.Editor) -> None:
    session = demo_editor.session(PICTURE)
    before = session.edit(WORDS, sampling=Sampling(seed=1))
    after = session.resume(3, seed=2)
    assert np.array_equal(after.tokens[: 3 * GRID], before.tokens[: 3 * GRID])
    assert not np.array_equal(after.tokens[3 * GRID :], before.tokens[3 * GRID :])
    assert after.seed == 2 and after.parameters["seed"] == "2"


def test_a_reroll_with_the_same_seed_changes_nothing(demo_editor: editar_rt.Editor) -> None:
    session = demo_editor.session(PICTURE)
    before = session.edit(WORDS, sampling=Sampling(seed=1))
    for row in (0, 5, GRID):
        assert np.array_equal(session.resume(row).tokens, before.tokens)


def test_a_reroll_runs_neither_the_text_nor_the_rows_above_again(
    demo_editor: editar_rt.Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = demo_editor.session(PICTURE)
    session.edit(WORDS)
    seen = forwarded_positions(session, monkeypatch)
    session.resume(6, seed=9)
    assert seen == [(2, 1)] * (2 * GRID)  # one of them is the token before, fed again for its logits


@pytest.mark.parametrize("sampling", [Sampling(seed=4), Sampling(seed=4, cfg_scale=1.0)], ids=str)
def test_a_reroll_with_another_instruction_is_that_instruction_behind_the_kept_rows(
    demo_editor: editar_rt.Editor, sampling: editar_rt.Sampling
) -> None:
    session = demo_editor.session(PICTURE)
    before = session.edit(WORDS, sampling=sampling)
    after = session.resume(4, instruction="remove the ball")
    known = np.where(np.arange(COUNT) < 4 * GRID, before.tokens, -1)[None]
    states = demo_editor.encode_text(["remove the ball"])
    expected = demo_editor.generate(states, session.condition_tokens, sampling, known_tokens=known)
    assert np.array_equal(after.tokens, expected[0])
    assert np.array_equal(after.tokens[: 4 * GRID], before.tokens[: 4 * GRID])


def test_a_reroll_keeps_the_mask(demo_editor: editar_rt.Editor) -> None:
    session = demo_editor.session(PICTURE)
    before = session.edit(WORDS, sampling=editar_rt.Sampling(temperature=2.0), mask=BALL)
    after = session.resume(3, seed=5)
    changed = before.tokens != after.tokens
    assert changed.any() and not changed[: 3 * GRID].any()
    assert np.array_equal(np.asarray(after.image)[BALL[1] + BALL[3] :], np.asarray(session.source)[BALL[1] + BALL[3] :])


def test_variants_may_branch_from_one_of_several(demo_editor: editar_rt.Editor) -> None:
    session = demo_editor.session(PICTURE)
    variants = session.variants(WORDS, 3)
    assert [v.seed for v in variants] == [0, 1, 2]
    branched = session.resume_variants(2, 2, variant=1, seed=10)
    for offset, result in enumerate(branched):
        assert np.array_equal(result.tokens[: 2 * GRID], variants[1].tokens[: 2 * GRID])
        assert result.seed == 10 + offset
    assert not np.array_equal(branched[0].tokens, branched[1].tokens)


def test_an_editor_makes_variants_too(demo_editor: editar_rt.Editor) -> None:
    variants = demo_editor.variants(PICTURE, WORDS, 2, sampling=Sampling(seed=3))
    for offset, variant in enumerate(variants):
        alone = demo_editor.edit(PICTURE, WORDS, sampling=Sampling(seed=3 + offset))
        assert np.array_equal(variant.tokens, alone.tokens)


def test_bad_rewinding_is_refused_in_one_sentence(demo_editor: editar_rt.Editor) -> None:
    session = demo_editor.session(PICTURE)
    with pytest.raises(OptionError, match="nothing to continue"):
        session.resume(0)
    session.edit(WORDS)
    with pytest.raises(
        OptionError, match="row must be 0 to 8, the number of lines that the last edit completed, got 9"
    ):
        session.resume(9)
    with pytest.raises(OptionError, match="variant must be 0 to 0, got 1"):
        session.resume(3, variant=1)
    cancel, on_progress = stopping_at(20)
    session.edit(WORDS, on_progress=on_progress, cancel=cancel)
    with pytest.raises(OptionError, match="row must be 0 to 2"):
        session.resume(3)
    with pytest.raises(OptionError, match="n must be 1 to 64, got 0"):
        session.resume_variants(0, 2)
    with pytest.raises(OptionError, match="n must be 1 to 64, got 0"):
        demo_editor.variants(PICTURE, WORDS, 0)
