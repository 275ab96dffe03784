"""The process that something was opened in: after a fork it is another one."""

from __future__ import annotations

import os

from editar_rt.errors import BackendError


class Process:
    """This process, remembered."""

    def __init__(self) -> None:
        self._id = os.getpid()

    @property
    def is_left(self) -> bool:
        """Whether a fork has led out of it."""
        return os.getpid() != self._id

    def check(self, what: str, way_out: str) -> None:
        """Refuse what a fork shares with the process that it came from.

        Args:
            what: the subject of the sentence.
            way_out: what to do instead.

        Raises:
            BackendError: a fork has led out of the process.
        """
        if self.is_left:
            raise BackendError(
                f"{what} was opened in process {self._id}, before the fork that made process {os.getpid()}; {way_out}"
            )
