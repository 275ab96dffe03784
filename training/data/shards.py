"""What every reader of token shards needs: damage said in one sentence, and how a folder of them was made."""

from __future__ import annotations

import contextlib
import errno
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.data.records import DataError
from training.errors import first_line

SETTINGS_FILE = "extraction.json"
FEATURES_FROM = "features_from"  # the array that says what kind of model features are of; older shards have none
FEATURES_VIEW = "features_view"  # the one that says what it was shown


def shard_files(folder: Path) -> list[Path]:
    """The token shards of a folder, in their order."""
    return sorted(folder.glob("shard-*.npz"))


def holds_shards(path: Path) -> bool:
    """Whether a path is a folder with token shards."""
    return path.is_dir() and any(path.glob("shard-*.npz"))


@contextlib.contextmanager
def opening(path: Path) -> Iterator[None]:
    """While a shard is read: what NumPy, zipfile and the operating system say of it becomes a sentence.

    Raises:
        DataError: no `.npz`, one that is cut off or damaged, or one that the operating system does not let be read.
    """
    try:
        yield
    except OSError as error:
        # NumPy raises it without a number where a file is none of its own, zipfile for a place before a file's start.
        if error.errno in (None, errno.EINVAL):
            raise _damaged(path, error) from None
        raise _refused(path, error) from None
    except (ValueError, KeyError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is no whole token shard ({first_line(error)}); remove it and run the command that made it again"
    )


def _refused(path: Path, error: OSError) -> DataError:
    """A limit or a right of the operating system says nothing about the shard."""
    way = "; allow this process more open files (ulimit -n)" if error.errno in (errno.EMFILE, errno.ENFILE) else ""
    return DataError(f"{path} cannot be read: the operating system says {error.strerror}{way}")


def read_settings(folder: Path) -> dict[str, Any] | None:
    """How the shards of a folder were made and mixed; None where `data extract` did not make them.

    Raises:
        DataError: a file that does not say it.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError(f"it holds a {type(settings).__name__}")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not the JSON object that `data extract` writes ({first_line(error)}); restore it, or extract "
            "into another folder"
        ) from None
    return settings
