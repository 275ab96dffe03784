"""Users' files: names that are streams, checks of outputs, and atomic writing."""

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

KEPT = 40  # characters of a file's name kept in the name of its partial file, which must not get too long
MAX_LINKS = 40  # links in a chain, as in operating systems
_DESCRIPTORS = re.compile(r"/dev/fd|/proc/\d+(/task/\d+)?/fd")  # folders whose entries are open files


@contextmanager
def placing(final: Path, error: type[EditarError]) -> Iterator[Path]:
    """A temporary path to write to. If the block succeeds, its content moves to `final`; otherwise it is removed.

    A file is replaced by renaming and keeps its mode; for a link, its target is replaced. A device, a FIFO or an open
    descriptor is not replaced: the complete content is written into it.

    Raises:
        error: the file cannot be written.
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
        if mode is not None:  # no one may read the partial file who may not read the file
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield partial
        if mode is not None:
            with contextlib.suppress(OSError):  # some file systems have no modes
                partial.chmod(mode)
        partial.replace(target)
    finally:
        with contextlib.suppress(OSError):  # it would hide the first error
            partial.unlink(missing_ok=True)


@contextmanager
def _streaming(target: Path) -> Iterator[Path]:
    """Encoders seek, which pipes cannot: they write a temporary file, whose bytes are then copied in order."""
    with tempfile.TemporaryDirectory(prefix="editar-") as folder:
        partial = Path(folder) / "partial"
        yield partial
        # Write to the descriptor itself: opening its name again would begin at the start of the file.
        own = _is_descriptor(target) and target.name.isdecimal()
        with open(partial, "rb") as content, open(int(target.name) if own else target, "wb", closefd=not own) as stream:
            shutil.copyfileobj(content, stream)


def _followed(path: Path) -> Path:
    """Follow the links of a name, up to the name of an open descriptor.

    Raises:
        OSError: the links form a circle.
    """
    for _ in range(MAX_LINKS):
        if _is_descriptor(path) or not path.is_symlink():
            return path
        path = path.parent / path.readlink()
    path.stat()  # raises the system's own error
    return path


def _is_descriptor(path: Path) -> bool:
    return _DESCRIPTORS.fullmatch(os.path.realpath(path.parent)) is not None


def is_stream(path: Path) -> bool:
    """Whether a name is a device, a FIFO or an open descriptor; these are read and written in place."""
    try:
        return _is_stream(_followed(path))
    except (OSError, ValueError):
        return False


def _is_stream(target: Path) -> bool:
    return _is_descriptor(target) or (target.exists() and not target.is_file() and not target.is_dir())


def check_writable(path: Path, error: type[EditarError] = PictureError) -> None:
    """Check, before the work, that an output can be written.

    Raises:
        error: it cannot be written, with the reason.
    """
    if "\0" in str(path):
        raise error(f"cannot write {str(path)!r}: its name contains a null character; give another name")
    try:
        target = _followed(path)
        is_there, in_place = target.exists(), _is_stream(target)
        names_a_folder, has_folder = target.is_dir(), target.parent.is_dir()
    except OSError as e:  # a name that is too long, links in a circle, or a folder without permission
        raise error(f"cannot write {path}: {e.strerror}; give another name") from None
    if not has_folder:
        raise error(f"cannot write {path}: there is no folder {target.parent}")
    if names_a_folder:
        raise error(f"cannot write {path}: it is a folder")
    may = in_place or os.access(target.parent, os.W_OK | os.X_OK)
    if not may or (is_there and not os.access(target, os.W_OK)):
        raise error(f"cannot write {path}: permission denied")


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes; never of a FIFO, for which a reader might wait.

    Raises:
        OSError: it cannot be read, or is not a regular file.
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
    """Reject, before the work, outputs that cannot be written, that are also inputs, or that are the same file.

    Files are compared, not names: two paths, links or hard links may lead to the same file. Outputs that are not files,
    such as /dev/null, may occur several times.

    Args:
        outputs, inputs: None is skipped.
        error: the class of the error if an output cannot be written.

    Raises:
        error: an output cannot be written, with the reason.
        OptionError: the same file occurs twice.
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
            raise OptionError(f"{path} would overwrite the input {read[identity]}; give another name")
        if written.setdefault(identity, path) is not path:
            raise OptionError(f"two of the outputs would be written to {path}; give them different names")


def _identity(path: Path) -> object:
    """Equal for names of the same file; None if it is not a file or cannot be examined."""
    try:
        if path.exists():
            status = path.stat()
            return (status.st_dev, status.st_ino) if path.is_file() else None
        return os.path.realpath(path)
    except (OSError, ValueError):
        return None


def is_folder(path: Path) -> bool:
    """Whether the folder exists; also False for invalid names, for which Python 3.11 raises."""
    return _is(path.is_dir)


def is_file(path: Path) -> bool:
    """Whether the file exists; also False for invalid names."""
    return _is(path.is_file)


def _is(ask: Callable[[], bool]) -> bool:
    try:
        return ask()
    except OSError:
        return False
