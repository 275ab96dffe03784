"""Folders of a disk cache that are either complete or absent: sealed when written, checked when used.

After a power failure, a renamed file may contain zeros; a disk may lose pages; and a process may be killed while it
writes. Therefore a folder is sealed with the hash of every file, synced, and only then renamed. Before use, the times
of its files and a sample of their pages are compared, which is cheap; if the times differ, the complete file is hashed.

`EDITAR_CACHE` names their folder (default `~/.cache/editar_rt`); `off` disables it. It contains copies only and may be
deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from editar_rt.bundle.folder import file_digest
from editar_rt.errors import EditarError
from editar_rt.files import placing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

VARIABLE, OFF = "EDITAR_CACHE", "off"
NAME = "editar_rt"  # inside the user's folder for caches
SEAL, LOCK, PARTIAL = "seal.json", "lock", ".partial-"
SAMPLED, PAGE = 64, 4096  # number of sampled pages of a file, and their size in bytes
ABANDONED_SECONDS = 3600  # without a lock, a folder not written to for this long is abandoned


def cache_folder() -> Path | None:
    """The cache folder; None if it is disabled or the user has no home folder."""
    named = os.environ.get(VARIABLE, "")
    if named == OFF:
        return None
    try:
        if named:
            return Path(named).absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / NAME
    except (RuntimeError, OSError):  # an unknown user, or a current folder that was removed
        return None


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A temporary folder to write files to. If the block succeeds, it is sealed and renamed; otherwise it is removed.

    If another process was faster, its folder stays.

    Raises:
        OSError: the folder cannot be written.
    """
    partial = folder.with_name(f"{folder.name}{PARTIAL}{os.getpid()}-{secrets.token_hex(4)}")
    partial.mkdir(mode=0o700, parents=True)
    try:
        with _locked(partial / LOCK):
            yield partial
            _seal(partial)
        if folder.exists() and not is_as_sealed(folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            partial.rename(folder)
        except OSError:
            if not is_as_sealed(folder):
                raise
        _sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_as_sealed(folder: Path) -> bool:
    """Whether a folder's files are unchanged since it was sealed."""
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        restamped = False
        for name, sealed in seal.items():
            path = folder / name
            if path.stat().st_size != sealed["bytes"] or _sample(path) != sealed["sample"]:
                return False
            if _times(path) != sealed["times"]:  # copied, or written to
                if file_digest(path).sha256 != sealed["sha256"]:
                    return False
                sealed["times"], restamped = _times(path), True
        if restamped:
            with contextlib.suppress(EditarError):  # the cache may belong to another user
                _write_seal(folder, seal)
        return bool(seal)
    except (OSError, ValueError, AttributeError, TypeError, KeyError):  # damaged JSON
        return False


def remove_abandoned(root: Path) -> None:
    """Remove the temporary folders of killed processes."""
    with contextlib.suppress(OSError):
        for partial in root.glob(f"*{PARTIAL}*"):
            if _is_abandoned(partial):
                shutil.rmtree(partial, ignore_errors=True)


def _seal(folder: Path) -> None:
    seal = {}
    for path in sorted(folder.iterdir()):
        if path.name in (LOCK, SEAL):
            continue
        _sync(path)
        digest = file_digest(path)
        seal[path.name] = {
            "bytes": digest.bytes, "sha256": digest.sha256, "sample": _sample(path), "times": _times(path),
        }  # fmt: skip
    _write_seal(folder, seal)
    _sync(folder / SEAL)
    _sync(folder)


def _write_seal(folder: Path, seal: dict[str, Any]) -> None:
    with placing(folder / SEAL, EditarError) as partial:
        partial.write_text(json.dumps(seal, indent=1), encoding="utf-8")


def _times(path: Path) -> list[int]:
    """Times that change when a file is written or replaced; the second cannot be set by programs."""
    status = path.stat()
    return [status.st_mtime_ns, status.st_ctime_ns]


def _sample(path: Path) -> str:
    """SHA-256 of pages spread over a file, including the first and the last."""
    digest, last = hashlib.sha256(), max(path.stat().st_size - PAGE, 0)
    with open(path, "rb") as file:
        for n in range(SAMPLED):
            file.seek(last * n // (SAMPLED - 1))
            digest.update(file.read(PAGE))
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, if the system supports it."""
    if os.name == "nt":
        return  # Windows cannot sync folders, and files only if open for writing
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that is released when the process ends, even if it is killed."""
    with open(path, "wb") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # not every network file system has locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _is_abandoned(partial: Path) -> bool:
    try:
        if fcntl is not None and (partial / LOCK).exists():
            with open(partial / LOCK, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        newest = max(path.stat().st_mtime for path in (partial, *partial.iterdir()))
        return time.time() - newest > ABANDONED_SECONDS
    except OSError:  # locked, or gone
        return False
