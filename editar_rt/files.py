"""Files of users: what a name stands for, what an output may not be, and writing one so that it is always whole."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from editar_rt.errors import EditarError, OptionError, PictureError

KEPT = 40  # characters of a file's name in that of its part: what is added must not make a long one too long
MAX_LINKS = 40  # one behind the other, as systems have it
_DESCRIPTORS = re.compile(r"/dev/fd|/proc/\d+(/task/\d+)?/fd")  # folders whose names are open files


@contextmanager
def placing(final: Path, error: type[EditarError]) -> Iterator[Path]:
    """A name to write to, of this call alone; its content is at `final` when the block ends well, and gone when not.

    A file is replaced by renaming, and keeps its mode; a link stays and its target is written. A device, a FIFO or an
    open descriptor is not replaced: the whole content is written into it.

    Raises:
        error: where the file cannot be written.
    """
    try:
        target = _followed(final)
        with _streaming(target) if _is_stream(target) else _replacing(target) as partial:
            yield partial
    except OSError as e:
        raise error(f"cannot write {final}: {e.strerror or e}") from None


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    partial = target.with_name(f"{target.name[:KEPT]}.partial-{os.getpid()}-{secrets.token_hex(4)}")
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    try:
        if mode is not None:  # nobody reads the part who may not read the file
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield partial
        if mode is not None:
            with contextlib.suppress(OSError):  # some disks keep no modes
                partial.chmod(mode)
        partial.replace(target)
    finally:
        with contextlib.suppress(OSError):  # it would hide what went wrong
            partial.unlink(missing_ok=True)


@contextmanager
def _streaming(target: Path) -> Iterator[Path]:
    """Encoders seek, which a pipe does not: they write a file elsewhere, and its bytes follow in order."""
    with tempfile.TemporaryDirectory(prefix="editar-") as folder:
        partial = Path(folder) / "partial"
        yield partial
        # A descriptor is written where it stands: opening its name again would begin at the file's start.
        own = _is_descriptor(target) and target.name.isdecimal()
        with open(partial, "rb") as content, open(int(target.name) if own else target, "wb", closefd=not own) as stream:
            shutil.copyfileobj(content, stream)


def _followed(path: Path) -> Path:
    """Where the links of a name lead, as far as the name of an open descriptor.

    Raises:
        OSError: they go round in a circle.
    """
    for _ in range(MAX_LINKS):
        if _is_descriptor(path) or not path.is_symlink():
            return path
        path = path.parent / path.readlink()
    path.stat()  # says how the system calls it
    return path


def _is_descriptor(path: Path) -> bool:
    return _DESCRIPTORS.fullmatch(os.path.realpath(path.parent)) is not None


def is_stream(path: Path) -> bool:
    """Whether a name is a device, a FIFO or an open descriptor, which are written and read in place."""
    try:
        return _is_stream(_followed(path))
    except (OSError, ValueError):
        return False


def _is_stream(target: Path) -> bool:
    return _is_descriptor(target) or (target.exists() and not target.is_file() and not target.is_dir())


def check_writable(path: Path, error: type[EditarError] = PictureError) -> None:
    """Say before the work, not after it, that an output cannot be written.

    Raises:
        error: saying why.
    """
    if "\0" in str(path):
        raise error(f"cannot write {str(path)!r}: there is a null character in its name; give another one")
    try:
        target = _followed(path)
        is_there, in_place = target.exists(), _is_stream(target)
        names_a_folder, has_folder = target.is_dir(), target.parent.is_dir()
    except OSError as e:  # a name that is too long, links in a circle, or a folder that may not be looked into
        raise error(f"cannot write {path}: {e.strerror}; give another name") from None
    if not has_folder:
        raise error(f"cannot write {path}: there is no folder {target.parent}")
    if names_a_folder:
        raise error(f"cannot write {path}: it is a folder")
    may = in_place or os.access(target.parent, os.W_OK | os.X_OK)
    if not may or (is_there and not os.access(target, os.W_OK)):
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


def check_outputs(
    outputs: Iterable[Path | None], inputs: Iterable[Path | None] = (), error: type[EditarError] = PictureError
) -> None:
    """Refuse, before the work, outputs that cannot be written, that are inputs too, or that are one file.

    Files are compared, not names: another spelling, a link, or another name on the disk is the same file. What is not
    a file, such as /dev/null, may be given as often as one likes.

    Args:
        outputs, inputs: None is left out.
        error: for what cannot be written.

    Raises:
        error: saying why.
        OptionError: for the same file twice.
    """
    read = {identity: path for path in inputs if path is not None and (identity := _identity(path))}
    written: dict[object, Path] = {}
    for path in outputs:
        if path is None:
            continue
        check_writable(path, error)
        if (identity := _identity(path)) is None:
            continue
        if identity in read:
            raise OptionError(f"{path} would be written over {read[identity]}, which is read; give another name")
        if written.setdefault(identity, path) is not path:
            raise OptionError(f"{path} would be written twice, as two of the outputs; give them different names")


def _identity(path: Path) -> object:
    """Equal for names of one file; None for what is no file, and for what cannot be looked at."""
    try:
        if path.exists():
            found = path.stat()
            return (found.st_dev, found.st_ino) if path.is_file() else None
        return os.path.realpath(path)
    except (OSError, ValueError):
        return None


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
