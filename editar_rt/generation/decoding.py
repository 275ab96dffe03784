"""The loop: steps sequences until their pictures are whole, and reports every token in order.

`decode` is a generator that yields after every drawn token and every run of known ones. Progress, previews, cancelling,
traces, benchmarks and tests are its consumers.
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
    """Target tokens of a picture's variants: one that was drawn, or a run of known ones."""

    position: int
    """Of the first, 0 to N - 1."""
    tokens: NDArray[np.int32]
    """[B, S]; S is 1 where they were drawn."""
    source: Callable[[], Floats] | None = None
    """Reads the logits; None for a run."""

    @property
    def drawn(self) -> bool:
        """Whether the tokens were drawn."""
        return self.source is not None

    @property
    def logits(self) -> Floats | None:
        """[B, V] with guidance, that were drawn from; None for a run. To be asked for before the next step."""
        return None if self.source is None else self.source()

    @property
    def stop(self) -> int:
        """The position after the last."""
        return self.position + len(self.tokens[0])


Progress = Callable[[int, int], None]  # (tokens done, tokens in all)
Watcher = Callable[[Step, NDArray[np.int32]], None]  # (what was done, tokens [B, N] so far)


class Cancel(Protocol):
    """A signal to stop: a `threading.Event`, or anything like it."""

    def is_set(self) -> bool:
        """Whether to stop; asked after every step."""


class Group:
    """Sequences that draw the same positions and are reported together: the variants of one picture."""

    def __init__(self, sequences: Iterable[Sequence]) -> None:
        self.sequences = list(sequences)
        self._tokens = [sequence.tokens for sequence in self.sequences]
        self._count = len(self._tokens[0])
        self.done = 0
        """Target positions that were reported."""
        self._drawn: dict[int, list[Drawn]] = {id(sequence): [] for sequence in self.sequences}  # not yet reported

    @property
    def finished(self) -> bool:
        """Whether every position was reported."""
        return self.done == self._count

    def lagging(self) -> list[Sequence]:
        """Those that are to be stepped: the others wait, so that all stay at one position."""
        if len(self.sequences) == 1:
            return self.sequences
        least = min(sequence.position for sequence in self.sequences)
        return [sequence for sequence in self.sequences if sequence.position == least]

    def report(self, drawn: Iterable[Drawn]) -> Iterator[Step]:
        """The steps that are complete now, after this was drawn."""
        tokens, count = self._tokens, self._count
        for each in drawn:
            if (own_drawn := self._drawn.get(id(each.sequence))) is not None:
                own_drawn.append(each)
        queues = list(self._drawn.values())
        while all(queues):
            together = [queue.pop(0) for queue in queues]
            position = together[0].position
            if position > self.done:
                yield Step(self.done, np.stack([own[self.done : position] for own in tokens]))
            self.done = position + 1
            values = np.asarray([[each.token] for each in together], np.int32)
            yield Step(position, values, _logits_of(together))
        for waiting in {id(each.source): each.source for queue in queues for each in queue}.values():
            waiting.keep()  # the other variants' draws come from other runs
        if self.done < count and all(sequence.finished for sequence in self.sequences):
            rest = Step(self.done, np.stack([own[self.done :] for own in tokens]))
            self.done = rest.stop
            yield rest


def _logits_of(drawn: list[Drawn]) -> Callable[[], Floats]:
    return lambda: np.stack([each.logits() for each in drawn])


def decode(scheduler: Scheduler, sequences: Iterable[Sequence]) -> Iterator[Step]:
    """Draw every token that is not known, of sequences that are the variants of one picture.

    A position that is known is not stepped over: a run of such goes through the decoder as one chunk, together with the
    token drawn before it, and what follows the last free position does not go through it at all.
    """
    group = Group(sequences)
    yield from group.report([])  # everything may be known
    while not group.finished:
        yield from group.report(scheduler.step(group.lagging()))


@dataclass(eq=False)
class Job:
    """A picture's variants, and who watches them."""

    group: Group
    tokens: NDArray[np.int32]
    """[B, N], filled step by step; what is not reached stays as it is."""
    watchers: Iterable[Watcher] = ()
    cancel: Cancel | None = None
    done: int = 0
    """Target positions that are done."""
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

    def take(self, drawn: Iterable[Drawn]) -> None:
        """Go on by what was drawn; stop where a watcher raises `Cancelled`, or `cancel` is set."""
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
        """Whether there is something left to do."""
        return not self.stopped and not self.group.finished


def run_jobs(scheduler: Scheduler, jobs: Iterable[Job]) -> None:
    """Run jobs to their ends, all that are active stepping together."""
    jobs = list(jobs)
    for job in jobs:
        job.stopped = job.cancel is not None and job.cancel.is_set()
        if not job.stopped:
            job.take([])  # everything may be known
    while active := [job for job in jobs if job.active]:
        drawn = scheduler.step([sequence for job in active for sequence in job.group.lagging()])
        for job in active:
            job.take(drawn)


def progress_watcher(on_progress: Progress | None) -> list[Watcher]:
    """A watcher of the loop that tells a callback how far it is; none without a callback."""
    if on_progress is None:
        return []
    return [lambda step, tokens: on_progress(step.stop, tokens.shape[1])]
