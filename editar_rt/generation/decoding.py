"""The decoding loop: steps sequences until their pictures are complete, and reports every token in order.

`decode` is a generator that yields after every sampled token and every run of known ones. Progress, previews,
cancelling, traces, benchmarks and tests consume it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from editar_rt.errors import Cancelled
from editar_rt.generation.scheduler import Drawn, Scheduler
from editar_rt.generation.sequence import Sequence

Floats = NDArray[np.float32]


@dataclass(eq=False)
class Step:
    """Target tokens of a picture's variants: one sampled position, or a run of known ones."""

    position: int
    """Position of the first, 0 to N - 1."""
    tokens: NDArray[np.int32]
    """[B, S]; S is 1 if they were sampled."""
    source: Callable[[], Floats] | None = None
    """Reads the logits; None for a run of known tokens."""

    @property
    def drawn(self) -> bool:
        """Whether the tokens were sampled."""
        return self.source is not None

    @property
    def logits(self) -> Floats | None:
        """The guided logits [B, V] that were sampled from; None for a run. Valid until the next step."""
        return None if self.source is None else self.source()

    @property
    def stop(self) -> int:
        """The position after the last."""
        return self.position + len(self.tokens[0])


Progress = Callable[[int, int], None]  # (tokens done, tokens in all)
Watcher = Callable[[Step, NDArray[np.int32]], None]  # (the step, tokens [B, N] so far)


class Cancel(Protocol):
    """A signal to stop: a `threading.Event`, or anything like it."""

    def is_set(self) -> bool:
        """Whether to stop; polled after every step."""


class Group:
    """Sequences that sample the same positions and are reported together: the variants of one picture."""

    def __init__(self, sequences: Iterable[Sequence]) -> None:
        self.sequences = list(sequences)
        self._tokens = [sequence.tokens for sequence in self.sequences]
        self._count = len(self._tokens[0])
        self.done = 0
        """Number of target positions that were reported."""
        self._drawn: dict[int, list[Drawn]] = {id(sequence): [] for sequence in self.sequences}  # not yet reported

    @property
    def finished(self) -> bool:
        """Whether every position was reported."""
        return self.done == self._count

    def lagging(self) -> list[Sequence]:
        """The sequences to step next. The others wait, so that all of the group stay at the same position."""
        if len(self.sequences) == 1:
            return self.sequences
        least = min(sequence.position for sequence in self.sequences)
        return [sequence for sequence in self.sequences if sequence.position == least]

    def report(self, drawn: Iterable[Drawn]) -> Iterator[Step]:
        """The steps that are complete after these tokens were sampled."""
        tokens, count = self._tokens, self._count
        # Collect the tokens of the next position; other groups' tokens are ignored.
        for each in drawn:
            if (own_drawn := self._drawn.get(id(each.sequence))) is not None:
                own_drawn.append(each)
        # While every sequence has a token: report the known tokens before it, then the sampled one.
        queues = list(self._drawn.values())
        while all(queues):
            together = [queue.pop(0) for queue in queues]
            position = together[0].position
            if position > self.done:
                yield Step(self.done, np.stack([own[self.done : position] for own in tokens]))
            self.done = position + 1
            values = np.asarray([[each.token] for each in together], np.int32)
            yield Step(position, values, _logits_of(together))
        # Keep the logits of tokens that wait for other variants, whose tokens come from later runs.
        for waiting in {id(each.source): each.source for queue in queues for each in queue}.values():
            waiting.keep()
        # Nothing is left to sample: report the known tokens at the end.
        if self.done < count and all(sequence.finished for sequence in self.sequences):
            rest = Step(self.done, np.stack([own[self.done :] for own in tokens]))
            self.done = rest.stop
            yield rest


def _logits_of(drawn: list[Drawn]) -> Callable[[], Floats]:
    return lambda: np.stack([each.logits() for each in drawn])


def decode(scheduler: Scheduler, sequences: Iterable[Sequence]) -> Iterator[Step]:
    """Sample every unknown token of the sequences of one picture's variants.

    Known tokens take no step of their own: a run of them is fed as one chunk, together with the token sampled before
    it. Tokens after the last free position are not fed at all.
    """
    group = Group(sequences)
    yield from group.report([])  # in case everything is known
    while not group.finished:
        yield from group.report(scheduler.step(group.lagging()))


@dataclass(eq=False)
class Job:
    """A picture's variants and their watchers."""

    group: Group
    tokens: NDArray[np.int32]
    """[B, N], filled step by step; positions that are not reached keep their values."""
    watchers: Iterable[Watcher] = ()
    cancel: Cancel | None = None
    done: int = 0
    """Number of target positions that are done."""
    stopped: bool = False

    @classmethod
    def of(
        cls,
        sequences: Iterable[Sequence],
        tokens: NDArray[np.int32],
        watchers: Iterable[Watcher] = (),
        cancel: Cancel | None = None,
    ) -> Job:
        return cls(Group(sequences), tokens, watchers, cancel)

    def begin(self) -> None:
        """Report tokens that are known from the start, unless the job was cancelled before."""
        self.stopped = self.cancel is not None and self.cancel.is_set()
        if not self.stopped:
            self.take([])

    def take(self, drawn: Iterable[Drawn]) -> None:
        """Store and report the tokens sampled by one step. Stop if a watcher raises `Cancelled` or `cancel` is set."""
        try:
            for step in self.group.report(drawn):
                self.tokens[:, step.position : step.stop] = step.tokens
                self.done = step.stop
                for watch in self.watchers:
                    watch(step, self.tokens)
                if self.cancel is not None and self.cancel.is_set():
                    self.stopped = True
                    return
        except Cancelled:
            self.stopped = True

    @property
    def active(self) -> bool:
        """Whether there are tokens left to sample."""
        return not self.stopped and not self.group.finished


def step_jobs(scheduler: Scheduler, active: Iterable[Job]) -> None:
    """One step of active jobs together; every job takes its own tokens from it."""
    active = list(active)
    drawn = scheduler.step([sequence for job in active for sequence in job.group.lagging()])
    for job in active:
        job.take(drawn)


def run_jobs(scheduler: Scheduler, jobs: Iterable[Job]) -> None:
    """Run jobs until each is finished or stopped; all active ones step together."""
    jobs = list(jobs)
    for job in jobs:
        job.begin()
    while active := [job for job in jobs if job.active]:
        step_jobs(scheduler, active)


def progress_watcher(on_progress: Progress | None) -> list[Watcher]:
    """A watcher that calls a progress callback; an empty list without a callback."""
    if on_progress is None:
        return []
    return [lambda step, tokens: on_progress(step.stop, tokens.shape[1])]
