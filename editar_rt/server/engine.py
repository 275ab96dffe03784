"""The one thread that uses the editor: it admits pictures, steps them together, and hands on what they become.

Other threads submit work and cancel it; everything about the decoder happens here. A listener hears of its pictures in
this thread, and must only pass on what it hears.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from editar_rt.batch import Batch, Member
from editar_rt.edit import Edit, Source
from editar_rt.editor import Editor
from editar_rt.errors import BackendError, EditarError, OptionError
from editar_rt.generation.sequence import Inputs
from editar_rt.images.fit import Fitted
from editar_rt.measure.selftest import batch_checks
from editar_rt.request import Request
from editar_rt.results import Result
from editar_rt.server import errors
from editar_rt.server.errors import ApiError
from editar_rt.server.limits import HEARTBEAT_SECONDS, Limits
from editar_rt.server.metrics import Metrics
from editar_rt.server.previews import Budget, due
from editar_rt.server.warned import collecting

log = logging.getLogger("editar_rt.server")

IDLE_SECONDS = 1.0  # between heartbeats without work
POLL_SECONDS = 0.05  # of a thread that waits for the engine
WARM_TOKENS = 3
CHECKED_ROWS = 16  # the most that are compared with a row alone, which takes memory and time


class Listener(Protocol):
    """Hears of the pictures of one request, in the engine's thread."""

    def preview(self, variant: int, picture: Image.Image, index: int, row: int) -> None:
        """A partial picture, after `row` rows."""

    def result(self, variant: int, result: Result, warned: list[str]) -> None:
        """A finished picture."""

    def failed(self, error: ApiError) -> None:
        """Nothing more will come."""


class Work:
    """One request: a picture to edit, once for each seed.

    Args:
        name: its id, by which it may be cancelled.
        picture: to edit.
        request: what to do; its own picture is not read.
        kept: tokens [M] of an earlier result, which stay.
        partial_images: the largest number of partial pictures of each variant.
    """

    def __init__(
        self,
        name: str,
        picture: Fitted,
        request: Request,
        seeds: Iterable[int],
        listener: Listener,
        kept: NDArray[np.int32] | None = None,
        partial_images: int = 0,
    ) -> None:
        self.name, self.picture, self.request, self.listener = name, picture, request, listener
        self.seeds, self.kept, self.partial_images = list(seeds), kept, partial_images
        self.arrived = time.monotonic()
        self.left = len(self.seeds)
        """Variants that are not finished."""
        self.stopped: str | None = None
        """Why it is cancelled; written by any thread, once."""
        self.source: Source | None = None
        self.inputs: Inputs | None = None
        self.text_seconds = 0.0
        self.warned: list[str] = []

    def stop(self, why: str) -> None:
        """Cancel: its pictures leave before the next step."""
        self.stopped = self.stopped or why


class Picture:
    """One variant of a work."""

    def __init__(self, work: Work, variant: int) -> None:
        self.work, self.variant = work, variant
        self.edit: Edit | None = None
        self.member: Member | None = None
        self.shown = 0
        """Partial pictures that were shown or passed over."""
        self.shown_at = 0.0
        self.has_row = False
        self.begun = 0.0


class Engine:
    """The queue and its thread.

    Args:
        on_death: called in the engine's thread when it has failed; the process should end then.
        check: compare at the start what the decoder computes for a row alone and among others.
    """

    def __init__(
        self,
        editor: Editor,
        limits: Limits,
        metrics: Metrics | None = None,
        on_death: Callable[[BaseException], None] | None = None,
        check: bool = True,
    ) -> None:
        self.editor, self.limits, self.metrics = editor, limits, metrics or Metrics()
        self.on_death = on_death
        self.places = limits.pictures
        """Pictures that are edited at once: one where a row's answers depend on the others."""
        self._check = check
        self._changed = threading.Condition()
        self._arrived: deque[Work] = deque()
        self._works: dict[str, Work] = {}  # waiting and running, by id
        self._held: set[Work] = set()  # whose answers are not sent
        self._waiting: deque[Picture] = deque()
        self._running: list[Picture] = []
        self._count = 0  # pictures that wait or run
        self._closing = False
        self._beat, self._longest = time.monotonic(), 0.0
        self._mean_seconds = 1.0
        self._budget = Budget(limits.preview_share)
        self._thread = threading.Thread(target=self._run, name="editar engine", daemon=True)
        self.warm = threading.Event()
        self.stopping = False
        """Whether new work is refused."""
        self.error: BaseException | None = None
        """What the engine died of."""

    # From any thread.

    def start(self) -> None:
        """Start the thread, unless it was started."""
        if self._thread.ident is None:
            self._thread.start()

    def wait_until_warm(self) -> None:
        """
        Raises:
            BaseException: what the engine died of.
        """
        while not self.warm.wait(POLL_SECONDS):
            if self.error is not None:
                raise self.error

    @property
    def ready(self) -> bool:
        """Whether a request would be taken now, but for a full queue."""
        return self.warm.is_set() and not self.stopping and self.error is None and self.alive

    @property
    def alive(self) -> bool:
        """Whether the thread has shown a sign of life."""
        silent = time.monotonic() - self._beat
        starting = not self.warm.is_set()  # opening the parts of a large bundle takes minutes
        return self.error is None and (starting or silent < HEARTBEAT_SECONDS + self._longest)

    @property
    def busy(self) -> bool:
        """Whether there is work that was not let go."""
        return bool(self._held)

    def check_room(self, pictures: int) -> None:
        """
        Raises:
            ApiError: the queue is full, or no work is taken.
        """
        if self.error is not None:
            raise errors.engine_dead()
        if self.stopping:
            raise errors.shutting_down()
        if not self.warm.is_set():
            raise errors.starting()
        if self._count + pictures > self.limits.pictures + self.limits.queue:
            self.metrics.rejected("queue_full")
            wait = self._count * self._mean_seconds / self.places
            raise errors.queue_full(min(max(math.ceil(wait), 1), 120))

    def check(self, request: Request) -> None:
        """
        Raises:
            ApiError: the decoder cannot run it.
        """
        try:
            self._batch.scheduler.pass_sizes(request.speculate)
        except OptionError as error:
            raise errors.bad(str(error), "speculate") from None

    def submit(self, work: Work) -> None:
        """Queue a work.

        Raises:
            ApiError: as `check_room`, or a work with its id runs.
        """
        with self._changed:
            self.check_room(len(work.seeds))
            if work.name in self._works:
                raise ApiError(
                    409,
                    f"a request with the id {work.name} is running; give each its own x-request-id",
                    "request_id_in_use",
                )
            self._works[work.name] = work
            self._held.add(work)
            self._count += len(work.seeds)
            self._arrived.append(work)
            self._changed.notify()

    def cancel(self, name: str, why: str = "api") -> bool:
        """Cancel a work by its id. Returns whether there is one."""
        with self._changed:
            work = self._works.get(name)
            if work is not None:
                work.stop(why)
                self._changed.notify()
        return work is not None

    def let_go(self, work: Work) -> None:
        """Whoever submitted a work is through with it: what is left of it is cancelled."""
        with self._changed:
            self._held.discard(work)
            if work.left:
                work.stop("client")
                self._changed.notify()

    def stop(self) -> None:
        """Take no new work."""
        self.stopping = True

    def abort(self) -> None:
        """Stop everything that waits or runs."""
        with self._changed:
            for work in self._works.values():
                work.stop("shutdown")
            self._changed.notify()

    def close(self, seconds: float = 5.0) -> bool:
        """End the thread. Returns whether it has ended in time."""
        self.stop()
        self._closing = True
        self.abort()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    # The engine's thread.

    def _run(self) -> None:
        try:
            if self._check:
                self._check_rows()
            self._batch = Batch(self.editor.scheduler(self.limits.pictures, True))
            self._warm_up()
            self.warm.set()
            while not self._closing:
                self._wait()
                self._drop_stopped()
                self._admit()
                self._step()
                self._note_loads()
            self._wait()
            self._drop_stopped()
        except BaseException as error:
            self._die(error)

    def _wait(self) -> None:
        """Sleep until there is something to do, and take what has arrived."""
        with self._changed:
            self._beat = time.monotonic()
            if not (self._arrived or self._waiting or self._running or self._closing):
                self._changed.wait(IDLE_SECONDS)
            while self._arrived:
                work = self._arrived.popleft()
                self._waiting += [Picture(work, variant) for variant in range(len(work.seeds))]

    def _drop_stopped(self) -> None:
        """Let the pictures of cancelled and late works leave."""
        now, limits = time.monotonic(), self.limits
        late = [p.work for p in self._waiting if now - p.work.arrived > limits.queue_timeout]
        for work in {id(work): work for work in late}.values():
            if not work.stopped and work.source is None:
                self._fail(work, errors.queue_timeout(limits.queue_timeout), "deadline")
        works = {id(p.work): p.work for p in (*self._waiting, *self._running)}.values()
        for work in list(works):
            if not work.stopped and now - work.arrived > limits.timeout:
                self._fail(work, errors.too_late(limits.timeout), "deadline")
            elif work.stopped:
                error = errors.shutting_down() if work.stopped == "shutdown" else errors.cancelled()
                self._fail(work, error, work.stopped)

    def _fail(self, work: Work, error: ApiError, why: str | None = None) -> None:
        """End a work: its pictures leave, and its listener hears why."""
        if why is not None:
            self.metrics.cancelled(why)
        own = [picture for picture in self._running if picture.work is work]
        for picture in reversed(own):
            self._running.remove(picture)
            if picture.member in self._batch.members:  # those that have ended have left
                self._batch.leave(picture.member)
        self._waiting = deque(picture for picture in self._waiting if picture.work is not work)
        self._forget(work, work.left)
        work.listener.failed(error)

    def _forget(self, work: Work, pictures: int) -> None:
        with self._changed:
            work.left -= pictures
            self._count -= pictures
            if work.left == 0:
                self._works.pop(work.name, None)

    def _note_loads(self) -> None:
        rows = sum(len(list(p.member.context)) for p in self._running if p.member is not None)
        self.metrics.loads(len(self._waiting), len(self._running), rows, 2 * self.limits.pictures)

    def _admit(self) -> None:
        """Begin the next picture, if there is a place. One between two steps: the others wait for its encoder."""
        if not self._waiting or len(self._running) >= self.places:
            return
        picture = self._waiting.popleft()
        work = picture.work
        picture.begun = time.monotonic()
        self.metrics.queue_seconds.observe(picture.begun - work.arrived)
        self._running.append(picture)
        with collecting(work.warned):
            self._try(self._begin, picture)

    def _try(self, act: Callable[[Picture], None], picture: Picture) -> None:
        """Do something for a picture, if its work has not failed yet. If it fails, only its work does."""
        if picture not in self._running:
            return
        try:
            act(picture)
        except Exception as error:
            self._explain(picture.work, error)

    def _begin(self, picture: Picture) -> None:
        work, model = picture.work, self.editor
        request, sampling = work.request, work.request.sampling_over(model.default_sampling)
        if work.source is None:
            work.source = Source(model, work.picture)
        edit = picture.edit = Edit(model, work.source, request, sampling, [work.seeds[picture.variant]], work.kept)
        if edit.nothing_to_draw:
            self._finish(picture)
            return
        if work.inputs is None:
            states = edit.states(lambda prompt: model.encode_prompts([prompt]))
            (work.inputs,) = model.inputs(states, work.source.tokens[None])
        picture.member = self._batch.join(edit, work.inputs)

    def _step(self) -> None:
        """One step of all; finished pictures leave, and partial ones are shown."""
        if not self._batch.members:
            return
        started = time.perf_counter()
        ended = {id(member) for member in self._batch.step()}
        seconds = time.perf_counter() - started
        self._beat, self._longest = time.monotonic(), max(self._longest, seconds)
        self._budget.earn(seconds)
        self.metrics.step(seconds, len(self._running))
        for picture in self._running:
            if not picture.has_row and picture.member is not None and picture.member.job.done >= self.editor.grid:
                picture.has_row = True
                self.metrics.first_row_seconds.observe(time.monotonic() - picture.work.arrived)
        for picture in [each for each in self._running if id(each.member) in ended]:
            self._try(self._finish, picture)
        self._show()

    def _show(self) -> None:
        """Decode partial pictures as far as the budget goes; who has waited longest comes first."""
        model = self.editor
        asked = [p for p in self._running if p.work.partial_images and p.member is not None and not p.work.stopped]
        for picture in sorted(asked, key=lambda each: each.shown_at):
            assert picture.member is not None
            row = picture.member.job.done // model.grid
            index = due(row, model.grid, picture.work.partial_images)
            if index > picture.shown and self._budget.allows():
                self._try(partial(self._preview, index=index, row=row), picture)

    def _preview(self, picture: Picture, index: int, row: int) -> None:
        assert picture.edit is not None
        with self._budget.spending() as spent:
            image = picture.edit.preview()
        self.metrics.previews.inc(spent[0])
        picture.shown, picture.shown_at = index, time.monotonic()
        picture.work.listener.preview(picture.variant, image, index - 1, row)

    def _finish(self, picture: Picture) -> None:
        work, edit, member = picture.work, picture.edit, picture.member
        assert edit is not None
        if member is not None:
            first = member.first or time.perf_counter()
            edit.timings["prefill"] = first - member.joined
            edit.timings["decode"] = time.perf_counter() - first
            self.metrics.tokens(int((edit.known < 0).sum()), int((edit.known >= 0).sum()))
            self.metrics.prefill_seconds.observe(edit.timings["prefill"])
        with collecting(work.warned):
            (result,) = edit.finish().results
        self._running.remove(picture)
        seconds = time.monotonic() - picture.begun
        self._mean_seconds += 0.2 * (seconds - self._mean_seconds)
        self._forget(work, 1)
        work.listener.result(picture.variant, result, work.warned)

    def _explain(self, work: Work, error: Exception) -> None:
        """One picture has failed. If the engine may have, look whether it still works."""
        if not isinstance(error, EditarError) or isinstance(error, BackendError):
            log.error("edit %s failed", work.name, exc_info=error)
        self._fail(work, errors.from_error(error))
        if not isinstance(error, EditarError) or isinstance(error, BackendError):
            self._warm_up()

    def _check_rows(self) -> None:
        """Edit one picture at a time if the decoder computes a row among others differently than alone."""
        most = min(2 * self.limits.pictures, CHECKED_ROWS)
        if most <= 2:  # a picture's own two rows, which are together everywhere
            return
        failed = [check for check in batch_checks(self.editor, sorted({2, 3, most})) if not check.holds]
        if failed:
            self.places = 1
            log.warning(
                "on this machine a picture's pixels would depend on the others in its batch (%s differs by %.1e), so "
                "pictures are edited one at a time; another version of ONNX Runtime or another --device may cure it",
                failed[0].output,
                failed[0].error,
            )

    def _warm_up(self) -> None:
        """Run every part once: opened parts are fast, and a broken one is noticed."""
        model = self.editor
        grey = Image.new("RGB", (model.image_size, model.image_size), (128, 128, 128))
        request = Request(instruction="warm up")
        sampling = request.sampling_over(model.default_sampling)
        source = Source(model, grey)
        edit = Edit(model, source, request, sampling, [0])
        (inputs,) = model.inputs(edit.states(lambda prompt: model.encode_prompts([prompt])), source.tokens[None])
        # It may run beside others, when one of them has failed: on a decoder of its own.
        batch = self._batch if not self._running else Batch(model.scheduler(1, sampling.guided))
        member = batch.join(edit, inputs, prefill=True)
        while member.job.active and member.job.done < WARM_TOKENS:
            batch.step()
        if member in batch.members:
            batch.leave(member)
        for _ in range(2):  # the first one opens the VQ decoder
            edit.preview()
        self._budget.expect(source.pixel_seconds)

    def _die(self, error: BaseException) -> None:
        """Answer all that wait or run; the process ends."""
        if self.warm.is_set() or not isinstance(error, EditarError):  # the latter ends the start with its sentence
            log.critical("the engine failed", exc_info=error)
        with self._changed:
            self.error = error
            works, self._works = list(self._works.values()), {}
            self._count = 0
        for work in works:
            work.listener.failed(errors.engine_dead())
        if self.on_death is not None:
            self.on_death(error)
