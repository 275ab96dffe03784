"""What every reader of token shards needs: damage said in one sentence, and how a folder of them was made."""

from __future__ import annotations

import contextlib
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


@contextlib.contextmanager
def opening(path: Path) -> Iterator[None]:
    """While a shard is read: what NumPy and zipfile say of one that is not whole becomes a sentence.

    Raises:
        DataError: no `.npz`, or one that is cut off or damaged.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile) as e:
        raise DataError(
            f"{path} is no whole token shard ({first_line(e)}); remove it and run the command that made it again"
        ) from None


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
