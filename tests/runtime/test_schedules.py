"""Pictures that join, leave and are cancelled at random between steps: each has the tokens that it has alone.

A few pictures a backend by default; `EDITAR_TEST_PICTURES=1000 python -m pytest tests/runtime/test_schedules.py` for
many. The versions that are wrong on purpose must be caught.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import editar_rt
from editar_rt import Sampling
from editar_rt.backends.ort import decoder as ort_decoder
from editar_rt.backends.ort.rows import RowBuffers
from editar_rt.editor import Editor
from editar_rt.generation.scheduler import Scheduler
from editar_rt.generation.sequence import Context, Inputs, Sequence
from editar_rt.generation.strategy import Jacobi, Speculate
from tests.runtime.demo import BUNDLE
from tests.runtime.filled_rows import FilledRows

PICTURES = int(os.environ.get("EDITAR_TEST_PICTURES", "24"))
ROOM = 5  # pictures at once


@dataclass
class Asked:
    """One picture of a schedule."""

    arrives: int
    inputs: Inputs
    sampling: Sampling
    known: np.ndarray | None
    leaves: int | None  # after this many steps, cancelled
    speculate: Speculate | None


PLAIN: tuple[Speculate | None, ...] = (None,)
MIXED: tuple[Speculate | None, ...] = (None, 4, "auto", 8, 2)


def schedule(editor: Editor, pictures: int, seed: int, ways: tuple[Speculate | None, ...] = PLAIN) -> list[Asked]:
    """Random pictures, of which some share their condition, some their text too, with settings of every kind."""
    rng, model, count = np.random.default_rng(seed), editor.model, editor.picture_tokens
    conditions = rng.integers(0, model.vocab_size or 1, (4, count)).astype(np.int32)
    texts = rng.standard_normal((3, model.text_tokens or 1, model.text_dim or 1)).astype(np.float32)
    asked, arrives = [], 0
    for n in range(pictures):
        arrives += int(rng.integers(0, 6))
        sampling = Sampling(
            cfg_scale=[1.0, 2.0, 3.0, 7.5, "linear:1,5"][rng.integers(5)],
            cfg_interval=[-1, -1, 5, (3, 9), (6, 16)][rng.integers(5)],
            temperature=[0.3, 1.0, 1.5][rng.integers(3)],
            top_k=[1000, 0, 50, 5][rng.integers(4)],
            top_p=[1.0, 0.9][rng.integers(2)],
            greedy=bool(rng.random() < 0.1),
            seed=n,
            noise=["uniform", "gumbel"][n % 2],
        )
        known = None
        if rng.random() < 0.4:
            drawn = rng.random(count) < 0.5
            known = np.where(drawn, -1, rng.integers(0, model.vocab_size or 1, count)).astype(np.int32)
        (inputs,) = editor.inputs(texts[rng.integers(3)][None], conditions[rng.integers(4)][None])
        leaves = int(rng.integers(1, 12)) if rng.random() < 0.2 else None
        asked.append(Asked(arrives, inputs, sampling, known, leaves, ways[n % len(ways)]))
    return asked


def sequence_for(scheduler: Scheduler, each: Asked) -> Sequence:
    context, count = scheduler.join(each.sampling.guided), scheduler.count
    speculation = scheduler.speculation(each.speculate, Jacobi(each.inputs.picture.tokens))
    return Sequence(context, each.inputs, each.sampling, each.sampling.seed, each.known, count, speculation)


def alone(editor: Editor, each: Asked) -> np.ndarray:
    scheduler = editor.scheduler(1, each.sampling.guided)
    sequence = sequence_for(scheduler, each)
    while not sequence.finished:
        scheduler.step([sequence])
    return sequence.tokens


def together(editor: Editor, asked: list[Asked]) -> dict[int, np.ndarray]:
    """Tokens of every picture, so far as it came, by its place in the schedule."""
    scheduler, waiting, clock = editor.scheduler(ROOM, True), list(enumerate(asked)), 0
    running: dict[int, tuple[Sequence, int]] = {}
    found: dict[int, np.ndarray] = {}
    while waiting or running:
        while waiting and waiting[0][1].arrives <= clock and len(running) < ROOM:
            place, each = waiting.pop(0)
            running[place] = sequence_for(scheduler, each), 0
        scheduler.step([sequence for sequence, _ in running.values()])
        for place, (sequence, steps) in list(running.items()):
            leaves = asked[place].leaves
            running[place] = sequence, steps + 1
            if sequence.finished or (leaves is not None and steps >= leaves):
                found[place] = sequence.tokens
                scheduler.leave(sequence.context)
                del running[place]
        clock += 1
    return found


def differences(
    editor: Editor, pictures: int = PICTURES, seed: int = 0, ways: tuple[Speculate | None, ...] = PLAIN
) -> int:
    """Pictures of a schedule that do not have the tokens that they have alone."""
    asked = schedule(editor, pictures, seed, ways)
    found, differ = together(editor, asked), 0
    assert len(found) == pictures
    for place, tokens in found.items():
        drawn = tokens >= 0  # all, but of those that were cancelled
        differ += not np.array_equal(tokens[drawn], alone(editor, asked[place])[drawn])
    return differ


BACKENDS = {
    "ort": ("golden_gpt_bundle", "cpu"),
    "standard": ("golden_gpt_bundle_standard", "cpu"),
    "delta": ("golden_gpt_bundle_delta", "emulated"),
    "native": ("golden_gpt_bundle_native", "emulated"),
    "delta, sampling head": ("golden_gpt_bundle_delta_head", "emulated"),
}


@pytest.mark.parametrize("name", BACKENDS)
def test_every_picture_has_the_tokens_that_it_has_alone(name: str, request: pytest.FixtureRequest) -> None:
    fixture, device = BACKENDS[name]
    assert differences(editar_rt.load(request.getfixturevalue(fixture), device=device, threads=1)) == 0


@pytest.mark.parametrize("name", BACKENDS)
def test_pictures_that_speculate_and_plain_ones_share_a_decoder(name: str, request: pytest.FixtureRequest) -> None:
    """Each has the tokens that it has alone with the same way; those of float32 on ONNX Runtime are also plain ones."""
    fixture, device = BACKENDS[name]
    editor = editar_rt.load(request.getfixturevalue(fixture), device=device, threads=1)
    assert differences(editor, ways=MIXED) == 0
    if name == "ort":
        for each in schedule(editor, 10, 1, (4, 8, "auto", 2)):
            assert np.array_equal(alone(editor, each), alone(editor, replace(each, speculate=None)))


def test_rows_that_share_pages_change_no_other(demo_editor: Editor) -> None:
    """The demo's pictures fill whole pages of memory; the golden ones do not."""
    assert differences(demo_editor, max(10, PICTURES // 10)) == 0


def test_quantized_weights_change_no_token_with_the_batch(golden_gpt_bundle_quantized: Path) -> None:
    editor = editar_rt.load(golden_gpt_bundle_quantized, device="cpu", threads=1)
    assert differences(editor) == 0
    assert differences(editor, ways=MIXED) == 0


# Versions that are wrong: the test above must notice each.


def unpaired(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """An odd number of rows goes through the products as it is."""
    make = editor.backend.make_decoder

    def made(rows: int, capacity: int) -> Any:
        decoder: Any = make(rows, capacity)
        decoder._pairs = False
        return decoder

    monkeypatch.setattr(editor.backend, "make_decoder", made)


def another_uncond_row(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first picture is guided by the row without text of the last."""
    of = Scheduler._layout_of

    def laid_out(self: Scheduler, ready: list[Sequence]) -> Any:
        layout = of(self, ready)
        return layout._replace(uncond=np.roll(layout.uncond, 1))

    monkeypatch.setattr(Scheduler, "_layout_of", laid_out)


def wrong_row_moved(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that takes another place brings only the row with the text."""
    move = Scheduler._move

    def moved(self: Scheduler, context: Context, place: int) -> None:
        copy = self.decoder.copy
        slots = [row.slot for row in context]
        only = slots[0]
        monkeypatch.setattr(self.decoder, "copy", lambda source, *rest, **more: source == only and copy(source, *rest))
        move(self, context, place)
        monkeypatch.setattr(self.decoder, "copy", copy)

    monkeypatch.setattr(Scheduler, "_move", moved)


def shared_pages_written(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is used again is written through to those that share its pages."""
    monkeypatch.setattr(RowBuffers, "prepare_write", lambda self, row, position: None)


def positions_of_the_first(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows step at the position of the first."""
    run = ort_decoder.BoundRun.run
    monkeypatch.setattr(
        ort_decoder.BoundRun, "run", lambda self, session, tokens, past: run(self, session, tokens, past * 0 + past[0])
    )


@pytest.mark.parametrize(
    ("wrong", "bundle"),
    [
        (another_uncond_row, "golden"),
        (wrong_row_moved, "golden"),
        (positions_of_the_first, "golden"),
        (shared_pages_written, "demo"),
    ],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_a_wrong_version_is_noticed(
    wrong: Callable[[Editor, pytest.MonkeyPatch], None],
    bundle: str,
    golden_gpt_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, pictures = (golden_gpt_bundle, 24) if bundle == "golden" else (BUNDLE, 10)
    editor = editar_rt.load(folder, device="cpu", threads=1)
    asked = schedule(editor, pictures, seed=0)
    expected = [alone(editor, each) for each in asked]
    wrong(editor, monkeypatch)
    found = together(editor, asked)
    assert any((tokens != expected[place])[tokens >= 0].any() for place, tokens in found.items())


def test_steps_of_an_odd_number_of_quantized_rows_are_noticed(
    golden_gpt_bundle_quantized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of a row alone and beside another one: the same with the cure, and others without."""
    editor = editar_rt.load(golden_gpt_bundle_quantized, device="cpu", threads=1)

    def logits(rows: int) -> np.ndarray:
        cache = FilledRows(editor.backend, rows, 20)
        return np.stack([cache.forward(np.full((rows, 1), token, np.int32))[0] for token in range(6)])

    alone = logits(1)
    assert all(np.array_equal(alone, logits(rows)) for rows in (2, 3, 4))
    unpaired(editor, monkeypatch)
    assert not np.array_equal(alone, logits(1))
