"""The engine's thread without HTTP: places, queue, cancelling, deadlines, previews, faults."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import editar_rt
from editar_rt.backends.base import Output
from editar_rt.editor import Editor
from editar_rt.errors import BackendError, OptionError
from editar_rt.images.fit import Fitted
from editar_rt.images.pixels import open_picture
from editar_rt.request import Request
from editar_rt.results import Result
from editar_rt.server import engine as engine_module
from editar_rt.server.engine import Engine, Work
from editar_rt.server.errors import ApiError
from editar_rt.server.limits import Limits
from editar_rt.server.previews import Budget, due
from tests.runtime.demo import BALL, BUNDLE, GRID, PICTURE, WORDS
from tests.server.running import until

SECONDS = 120  # until something that happens in less than one; other tests may run


class Ear:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.results: dict[int, Result] = {}
        self.warned: list[str] = []
        self.partial: list[tuple[int, int]] = []  # (variant, row)
        self.error: ApiError | None = None
        self.failures = 0
        self.count = 1
        self.done = threading.Event()

    def preview(self, variant: int, picture: Any, index: int, row: int) -> None:
        self.partial.append((variant, row))

    def result(self, variant: int, result: Result, warned: list[str]) -> None:
        self.results[variant] = result
        self.warned += warned
        if len(self.results) == self.count:
            self.done.set()

    def failed(self, error: ApiError) -> None:
        self.error = error
        self.failures += 1
        self.done.set()

    def wait(self) -> Ear:
        assert self.done.wait(SECONDS), "nothing was heard"
        return self


@pytest.fixture(scope="module")
def editor() -> Editor:
    return editar_rt.load(BUNDLE, device="cpu", threads=1)


Started = Callable[..., Engine]


@pytest.fixture
def started(editor: Editor) -> Iterator[Started]:
    """Starts engines, and closes them."""
    engines: list[Engine] = []

    def start(**limits: Any) -> Engine:
        engines.append(engine := Engine(editor, Limits(**{"pictures": 3, "queue": 4, **limits})))
        engine.start()
        assert engine.warm.wait(SECONDS)
        return engine

    yield start
    for engine in engines:
        assert engine.close(SECONDS)


class Gate:
    """Lets an engine make one step for each permit."""

    def __init__(self, engine: Engine) -> None:
        self._permits, self._step, self.steps = threading.Semaphore(0), engine._batch.step, 0
        engine._batch.step = self  # type: ignore[method-assign, assignment]

    def __call__(self) -> Any:
        assert self._permits.acquire(timeout=SECONDS)
        self.steps += 1
        return self._step()

    def let(self, steps: int) -> None:
        """Let it make steps, and wait until they are made."""
        end = self.steps + steps
        self._permits.release(steps)
        until(lambda: self.steps >= end)

    def open(self) -> None:
        self._permits.release(100_000)


def fitted(engine: Engine) -> Fitted:
    return Fitted.of(open_picture(PICTURE), engine.editor.image_size)


def ask(engine: Engine, name: str = "a", n: int = 1, partial_images: int = 0, **options: Any) -> Ear:
    ear = Ear()
    ear.count = n
    request = Request(instruction=WORDS, **{"seed": 1, **options})
    seed = options.get("seed", 1)
    engine.submit(Work(name, fitted(engine), request, range(seed, seed + n), ear, partial_images=partial_images))
    return ear


def rows_in_use(engine: Engine) -> int:
    return len(engine._batch.scheduler._contexts)


SETTINGS: list[dict[str, Any]] = [
    {"cfg_scale": 1.0},
    {"cfg_scale": "linear:1,5"},
    {"mask": BALL},
    {"temperature": 1.5, "top_k": 5},
    {"greedy": True},
    {"cfg_interval": (5, 40)},
    {"speculate": 4},
    {"speculate": "auto", "noise": "gumbel"},
]


def test_each_picture_has_the_tokens_that_it_has_alone_whatever_else_runs(started: Started, editor: Editor) -> None:
    engine, rng = started(pictures=3, queue=100), np.random.default_rng(0)
    asked = [(n, SETTINGS[n % len(SETTINGS)]) for n in range(18)]
    ears = []
    for n, options in asked:
        ears.append(ask(engine, str(n), seed=n, **options))
        if rng.random() < 0.3:
            engine.cancel(str(n))
    for (n, options), ear in zip(asked, ears, strict=True):
        if ear.wait().error is None:
            expected = editor.edit(PICTURE, WORDS, seed=n, **options)
            assert np.array_equal(ear.results[0].tokens, expected.tokens)
            assert np.array_equal(np.asarray(ear.results[0].image), np.asarray(expected.image))
    assert sum(ear.error is None for ear in ears) >= 6
    until(lambda: rows_in_use(engine) == 0)


def test_variants_of_one_request_are_those_of_python(started: Started, editor: Editor) -> None:
    ear = ask(started(), n=4).wait()
    for variant, expected in enumerate(editor.variants(PICTURE, WORDS, 4, seed=1)):
        assert np.array_equal(ear.results[variant].tokens, expected.tokens)


@pytest.mark.parametrize("steps", [1, 2, 10, 40])
def test_a_cancelled_picture_leaves_before_the_next_step(started: Started, editor: Editor, steps: int) -> None:
    engine = started()
    gate = Gate(engine)
    gone, stays = ask(engine, "gone"), ask(engine, "stays", seed=2)
    gate.let(steps)
    assert engine.cancel("gone")
    gate.let(2)  # one may have begun
    error = gone.wait().error
    assert error is not None and (error.status, error.code) == (499, "cancelled")
    assert rows_in_use(engine) == 1
    gate.open()
    assert np.array_equal(stays.wait().results[0].tokens, editor.edit(PICTURE, WORDS, seed=2).tokens)


def test_a_picture_that_waits_is_cancelled_without_a_step(started: Started) -> None:
    engine = started(pictures=1)
    gate = Gate(engine)
    first, second = ask(engine, "first"), ask(engine, "second")
    gate.let(1)
    engine.cancel("second")
    gate.let(2)
    assert second.wait().error is not None and not first.done.is_set()
    gate.open()
    assert first.wait().error is None


def test_nobody_cancels_what_is_not_there(started: Started) -> None:
    assert not started().cancel("none")


def test_a_full_queue_is_refused_with_a_time(started: Started) -> None:
    engine = started(pictures=1, queue=2)
    gate = Gate(engine)
    ears = [ask(engine, str(n)) for n in range(3)]
    with pytest.raises(ApiError) as caught:
        ask(engine, "4")
    assert (caught.value.status, caught.value.code) == (429, "queue_full")
    assert 1 <= int(caught.value.headers["retry-after"]) <= 120
    gate.open()
    assert all(ear.wait().error is None for ear in ears)


def test_an_id_in_use_is_refused(started: Started) -> None:
    engine = started()
    gate = Gate(engine)
    ear = ask(engine, "same")
    with pytest.raises(ApiError) as caught:
        ask(engine, "same")
    assert (caught.value.status, caught.value.code) == (409, "request_id_in_use")
    gate.open()
    assert ear.wait().error is None
    assert ask(engine, "same").wait().error is None


def test_a_picture_that_waits_too_long_is_told_so(started: Started) -> None:
    engine = started(pictures=1, queue_timeout=0.2)
    gate = Gate(engine)
    first, second = ask(engine, "first"), ask(engine, "second")
    time.sleep(0.3)
    gate.let(1)
    error = second.wait().error
    assert error is not None and (error.status, error.code) == (503, "queue_timeout")
    gate.open()
    assert first.wait().error is None


def test_a_request_that_takes_too_long_is_ended(started: Started) -> None:
    engine = started(timeout=0.2)
    gate = Gate(engine)
    ear = ask(engine)
    time.sleep(0.3)
    gate.let(1)
    error = ear.wait().error
    assert error is not None and (error.status, error.code) == (504, "deadline_exceeded")
    assert rows_in_use(engine) == 0


def test_work_that_is_let_go_is_cancelled(started: Started) -> None:
    engine, ear = started(), Ear()
    gate = Gate(engine)
    work = Work("a", fitted(engine), Request(instruction=WORDS), [1], ear)
    engine.submit(work)
    gate.let(1)
    assert engine.busy
    engine.let_go(work)
    gate.open()
    assert ear.wait().error is not None and not engine.busy


# Partial pictures.


@pytest.mark.parametrize(
    ("rows", "partial_images", "shown_after"),
    [
        (8, 0, []),
        (8, 1, [4]),
        (8, 3, [2, 4, 6]),
        (8, 7, [1, 2, 3, 4, 5, 6, 7]),
        (8, 8, [1, 2, 3, 4, 5, 6, 7]),
        (32, 1, [16]),
    ],
)
def test_partial_pictures_are_spread_over_the_rows(rows: int, partial_images: int, shown_after: list[int]) -> None:
    counts = [due(row, rows, partial_images) for row in range(rows + 1)]
    assert [row for row in range(1, rows + 1) if counts[row] > counts[row - 1]] == shown_after


def test_the_budget_is_a_share_of_the_steps() -> None:
    now = [0.0]
    budget = Budget(0.1, clock=lambda: now[0])
    budget.expect(1.0)
    shown = 0
    for _ in range(1000):  # steps of 0.1 s
        budget.earn(0.1)
        if budget.allows():
            with budget.spending() as spent:
                now[0] += 1.0
            shown += 1
            assert spent == [1.0]
    assert shown == 10


def test_all_partial_pictures_come_without_a_limit(started: Started) -> None:
    ear = ask(started(preview_share=1.0), n=2, partial_images=GRID).wait()
    assert len(ear.partial) == 2 * (GRID - 1)
    assert {variant for variant, _ in ear.partial} == {0, 1}
    assert ear.partial == sorted(ear.partial, key=lambda each: each[1])


def test_without_a_budget_there_are_none_and_the_result_comes(started: Started) -> None:
    ear = ask(started(preview_share=0.0), partial_images=GRID).wait()
    assert ear.partial == [] and ear.error is None


# Faults.


def test_a_request_that_the_engine_refuses_is_the_clients_fault(started: Started) -> None:
    engine = started()
    wrong = ask(engine, "wrong", cfg_scale="values:1,2").wait()
    assert wrong.error is not None and wrong.error.status == 400 and "values" in wrong.error.message
    assert ask(engine, "right").wait().error is None


def test_one_picture_that_fails_does_not_disturb_others(
    started: Started, editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = started()
    gate = Gate(engine)
    wrong, right = ask(engine, "wrong", seed=13), ask(engine, "right")
    finish = engine_module.Edit.finish

    def failing(self: Any) -> Any:
        if self.seeds == [13]:
            raise BackendError("the device /dev/secret is lost")
        return finish(self)

    monkeypatch.setattr(engine_module.Edit, "finish", failing)
    gate.open()
    error = wrong.wait().error
    assert error is not None and (error.status, error.code) == (500, "edit_failed")
    assert "secret" not in error.message
    assert np.array_equal(right.wait().results[0].tokens, editor.edit(PICTURE, WORDS, seed=1).tokens)
    assert ask(engine, "next").wait().error is None and engine.ready


@pytest.mark.parametrize("what", ["finish", "preview"])
def test_variants_that_fail_in_one_step_fail_once_and_disturb_nobody(
    started: Started, editor: Editor, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    engine = started(preview_share=1.0)
    gate = Gate(engine)
    # The second variant joins a step later, so that both end together if it takes a pass fewer.
    passes = [editor.edit(PICTURE, WORDS, seed=seed, speculate=8).passes for seed in range(20)]
    seed = next(seed for seed in range(2, 19) if passes[seed] == passes[seed + 1] + 1)
    own = {"seed": seed, "speculate": 8, "partial_images": GRID if what == "preview" else 0}
    wrong, right = ask(engine, "wrong", n=2, **own), ask(engine, "right")
    act = getattr(engine_module.Edit, what)

    def failing(self: Any) -> Any:
        if self.seeds[0] in (seed, seed + 1):
            raise BackendError("the device is lost")
        return act(self)

    monkeypatch.setattr(engine_module.Edit, what, failing)
    gate.open()
    error = wrong.wait().error
    assert error is not None and error.code == "edit_failed"
    assert np.array_equal(right.wait().results[0].tokens, editor.edit(PICTURE, WORDS, seed=1).tokens)
    assert ask(engine, "next").wait().error is None and engine.ready
    assert wrong.failures == 1


def test_an_engine_that_fails_again_after_a_failure_is_dead(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = started()

    def lost(*_: Any) -> Any:
        raise BackendError("the device is lost")

    monkeypatch.setattr(engine.editor.backend, "run", lost)
    ear = ask(engine).wait()
    assert ear.error is not None and ear.error.status == 500
    until(lambda: engine.error is not None)
    assert not engine.alive and not engine.ready


def test_a_step_that_raises_ends_everything(started: Started) -> None:
    engine = started(pictures=1)
    died: list[BaseException] = []
    engine.on_death = died.append
    gate = Gate(engine)
    running, waiting = ask(engine, "running"), ask(engine, "waiting")
    gate.let(3)

    def lost() -> Any:
        raise RuntimeError("out of memory")

    gate._step = lost
    gate.open()
    for ear in (running, waiting):
        error = ear.wait().error
        assert error is not None and (error.status, error.code) == (503, "engine_failed")
    until(lambda: died)
    assert not engine.alive and not engine.ready
    with pytest.raises(ApiError, match="engine failed"):
        ask(engine, "late")


def test_an_engine_that_hangs_is_noticed(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = started()
    gate = Gate(engine)
    ear = ask(engine)
    assert engine.alive
    monkeypatch.setattr(engine_module, "HEARTBEAT_SECONDS", -1e9)
    assert not engine.alive and not engine.ready
    gate.open()
    ear.wait()


# A machine on which a picture's pixels depend on the others.


@pytest.fixture
def crowded(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than two rows have other logits than each has alone."""
    make = editor.backend.make_decoder

    def made(rows: int, capacity: int) -> Any:
        decoder: Any = make(rows, capacity)
        run = decoder.run

        def run_otherwise(batch: Any, draw: Any = None) -> Output:
            logits = run(batch).logits()
            if len(batch.rows) > 2:
                logits = logits[..., ::-1]
            return Output(lambda: logits, None if draw is None else draw.on_host(logits))

        decoder.run = run_otherwise
        return decoder

    monkeypatch.setattr(editor.backend, "make_decoder", made)


@pytest.mark.parametrize("check", [True, False])
def test_where_rows_depend_on_each_other_pictures_are_edited_one_at_a_time(
    check: bool, crowded: None, editor: Editor, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(editor, Limits(pictures=3, queue=4), check=check)
    engine.start()
    ears = [ask(engine, "two", n=2), ask(engine, "one", seed=3)] if engine.warm.wait(SECONDS) else []
    found = [each.tokens for ear in ears for _, each in sorted(ear.wait().results.items())]
    assert engine.close(SECONDS)
    alone = [editor.edit(PICTURE, WORDS, seed=seed).tokens for seed in (1, 2, 3)]
    assert np.array_equal(found, alone) == check
    assert engine.places == (1 if check else 3)
    assert ("so pictures are edited one at a time" in caplog.text) == check


def test_who_edits_one_picture_at_a_time_compares_nothing(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "batch_checks", None)
    assert started(pictures=1).places == 1
    monkeypatch.undo()
    assert started(pictures=3).places == 3


# Its end.


def test_an_engine_that_stops_ends_what_runs_and_takes_nothing(started: Started) -> None:
    engine = started()
    gate = Gate(engine)
    ear = ask(engine)
    gate.let(2)
    engine.stop()
    assert not engine.ready and engine.alive
    with pytest.raises(ApiError) as caught:
        ask(engine, "late")
    assert (caught.value.status, caught.value.code) == (503, "shutting_down")
    gate.open()
    assert ear.wait().error is None


def test_what_outlasts_the_grace_is_told_so(started: Started) -> None:
    engine = started(pictures=1)
    gate = Gate(engine)
    ears = [ask(engine, "running"), ask(engine, "waiting")]
    gate.let(2)
    engine.abort()
    gate.open()
    for ear in ears:
        error = ear.wait().error
        assert error is not None and error.code == "shutting_down"


def test_an_engine_that_was_closed_leaves_nobody_waiting(editor: Editor) -> None:
    engine = Engine(editor, Limits(pictures=1))
    engine.start()
    assert engine.warm.wait(SECONDS)
    ears = [ask(engine, str(n)) for n in range(3)]
    assert engine.close(SECONDS)
    assert all(ear.wait().error is not None or ear.results for ear in ears)


def test_an_empty_mask_is_named_in_the_warnings(started: Started) -> None:
    """The program that serves shows warnings by this."""
    import warnings

    from editar_rt.server.warned import show_or_collect

    engine = started()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show_or_collect(warnings.showwarning)
        ear = ask(engine, mask=np.zeros((128, 128), bool)).wait()
    assert ear.error is None and any("mask" in each for each in ear.warned)
    with pytest.raises(OptionError):
        Request(PICTURE, WORDS, top_p=2.0)
