"""One run at a time in a folder: a lock of the operating system, which goes with the process that holds it."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from pathlib import Path

from training.errors import TrainingError

NAME = "run.lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # of file systems that have none


class FolderLock:
    """Held from `take` to `release`, or to the end of the process however it ends; the file stays and means nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: int | None = None

    def take(self) -> None:
        """Raises: TrainingError: another run holds it."""
        file = os.open(self.folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise TrainingError(
                f"{self.folder} is being trained in by {holder}; wait until it has ended, stop it, or choose another "
                "folder"
            ) from None
        except OSError as error:
            os.close(file)
            if error.errno not in NO_LOCKS:
                raise
            return
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {platform.node()}".encode(), 0)
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
