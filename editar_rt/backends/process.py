"""Remembers the process that opened something, to detect forks."""

from __future__ import annotations

import os

from editar_rt.errors import BackendError


class Process:
    """The process that created this object."""

    def __init__(self) -> None:
        self._id = os.getpid()

    @property
    def is_left(self) -> bool:
        """Whether this code now runs in a fork of it."""
        return os.getpid() != self._id

    def check(self, what: str, way_out: str) -> None:
        """Reject the use, in a fork, of something that belongs to the parent process.

        Args:
            what: the subject of the message.
            way_out: the advice in the message.

        Raises:
            BackendError: this is a fork of the process.
        """
        if self.is_left:
            raise BackendError(
                f"{what} was opened in process {self._id}, before the fork that made process {os.getpid()}; {way_out}"
            )
