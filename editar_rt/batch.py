"""Edits that share one decoder: they join and leave between steps, and each has the tokens that it has alone.

`Editor.edit_batch` lets all join and steps until the last has left; a server admits edits as they come.
"""

from __future__ import annotations

import time

from editar_rt.edit import Edit
from editar_rt.generation.decoding import Job, step_jobs
from editar_rt.generation.scheduler import Scheduler
from editar_rt.generation.sequence import Context, Inputs


class Member:
    """An edit in a batch."""

    def __init__(self, edit: Edit, context: Context, job: Job) -> None:
        self.edit, self.context, self.job = edit, context, job
        self.joined = time.perf_counter()
        self.first: float | None = None
        """When its first token was sampled."""


class Batch:
    """The edits that step together over the rows of a scheduler. Each has one variant."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.members: list[Member] = []

    def join(self, edit: Edit, inputs: Inputs, prefill: bool = False) -> Member:
        """Add an edit.

        Args:
            prefill: feed its picture and text now, and not in pieces between the steps of others.

        Raises:
            OptionError: no row is free, or a guidance schedule has another length.
            BackendError.
        """
        context = self.scheduler.join(edit.sampling.guided)
        try:
            sequences = edit.sequences(self.scheduler, [context], inputs)
            if prefill:
                self.scheduler.prefill(sequences[0])
            member = Member(edit, context, edit.job(sequences))
        except BaseException:
            self.scheduler.leave(context)
            raise
        member.job.begin()
        self.members.append(member)
        return member

    def step(self) -> list[Member]:
        """One step of all members together. Those that have ended leave, and are returned.

        Raises:
            BackendError: the engine failed, or its logits are not finite.
        """
        active = [member for member in self.members if member.job.active]
        if active:
            step_jobs(self.scheduler, [member.job for member in active])
        now = time.perf_counter()
        for member in active:
            if member.first is None and member.job.done:
                member.first = now
        ended = [member for member in self.members if not member.job.active]
        for member in reversed(ended):  # the last ones leave no gap that another must be moved into
            self.leave(member)
        return ended

    def leave(self, member: Member) -> None:
        """Free a member's rows; no other member's tokens change."""
        self.members.remove(member)
        self.scheduler.leave(member.context)
