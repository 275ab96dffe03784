"""Files of users: what a name is, and writing one beside its place so that what is there is always whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from editar_rt.errors import EditarError, PictureError

KEPT = 40  # characters of a file's name in that of its part: what is added must not make a long one too long


@contextmanager
def placing(final: Path, error: type[EditarError]) -> Iterator[Path]:
    """A name to write to, of this call alone; renamed to `final` when the block ends well, removed when not.

    Raises:
        error: where the file cannot be written.
    """
    partial = final.with_name(f"{final.name[:KEPT]}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield partial
        partial.replace(final)
    except OSError as e:
        raise error(f"cannot write {final}: {e.strerror or e}") from None
    finally:
        with contextlib.suppress(OSError):  # it would hide what went wrong
            partial.unlink(missing_ok=True)


def check_writable(path: Path, error: type[EditarError] = PictureError) -> None:
    """Say before the work, not after it, that an output cannot be written.

    Raises:
        error: saying why.
    """
    folder = path.parent
    try:
        path.exists()
    except OSError as e:  # its name is too long, or links go round in a circle
        raise error(f"cannot write {path}: {e.strerror}; give another name") from None
    if not folder.is_dir():
        raise error(f"cannot write {path}: there is no folder {folder}")
    if path.is_dir():
        raise error(f"cannot write {path}: it is a folder")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise error(f"cannot write {path}: permission denied")


def read_regular(path: Path, most: int) -> bytes:
    """The content of a file that holds at most `most` bytes; nothing that a reader might wait for, as a FIFO.

    Raises:
        OSError: it cannot be read, or is no such file.
        ValueError: it is larger.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is not a regular file")
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most >> 20} MiB")
    return content


def is_folder(path: Path) -> bool:
    """Whether there is a folder; False too for names that no disk has, where Python 3.11 raises."""
    return _is(path.is_dir)


def is_file(path: Path) -> bool:
    """Whether there is a file; False too for names that no disk has."""
    return _is(path.is_file)


def _is(ask: Callable[[], bool]) -> bool:
    try:
        return ask()
    except OSError:
        return False
