"""One example of any data set, and what makes a record a bad one.

Data sets come from strangers and are large: some of their records are broken. A broken one is a `BadRecord`, which
names it; whoever reads many counts such records, tells of them and goes on (`training.data.mixture`).
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import threading
from collections.abc import Callable, Hashable
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from editar_rt.errors import EditarError
from editar_rt.images.pixels import open_picture
from editar_rt.text.prompts import TASKS
from training.errors import first_line

PICTURE_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "JPEG2000", "BMP", "GIF", "PPM", "TGA", "TIFF")
"""What photographs and rendered pictures come in: Pillow's other readers are old, and seldom tried on bad files."""
MAX_PICTURE_BYTES = 64 * 2**20
MAX_TEXT = 4000  # characters; the text encoder reads about 500
ASPECT_TOLERANCE = 0.02  # of a record's two pictures: more, and their middle squares no longer show the same place


class DataError(EditarError):
    """A data set that is missing, empty, or not what it is said to be."""


class BadRecord(DataError):
    """One record that cannot be used; the message names it."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One example: the condition picture, the words, and the picture they ask for."""

    condition: NDArray[np.uint8]  # [H, W, 3]
    target: NDArray[np.uint8]  # [H, W, 3], of the same shape of picture as the condition, if not of the same size
    text: str  # the instruction or the description, without the task's prompt
    task: str  # one of `editar_rt.text.prompts.TASKS`
    source: str  # name of the data set


class Dataset(Protocol):
    """A data set that answers for any of its records, in any order, always the same."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Record `index` (0 to len - 1).

        Raises:
            BadRecord: this record cannot be used; others may.
        """
        ...


@dataclasses.dataclass
class BadRecords:
    """Counts broken records by data set, keeps what the first few said, and tells it.

    Attributes:
        tell: is told each of the first few, and once that there are more.
    """

    shown: int = 20
    tell: Callable[[str], None] = lambda line: None
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    messages: list[str] = dataclasses.field(default_factory=list)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False, compare=False)
    _met: set[Hashable] = dataclasses.field(default_factory=set, repr=False, compare=False)

    def add(self, source: str, error: BadRecord, record: Hashable = None) -> None:
        """Count a record; several threads may do so at once.

        Args:
            record: what names it, so that one that comes again, as every epoch's do, counts once; None counts always.
        """
        with self._lock:
            if record is not None:
                if record in self._met:
                    return
                self._met.add(record)
            self._add(source, error)

    def _add(self, source: str, error: BadRecord) -> None:
        self.counts[source] = self.counts.get(source, 0) + 1
        if len(self.messages) < self.shown:
            self.messages.append(str(error))
            self.tell(f"bad: {error}")
        elif self.total == self.shown + 1:
            self.tell(f"bad: and more than these {self.shown}, which are counted and not named")

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def read_picture(content: bytes | Path, name: str) -> NDArray[np.uint8]:
    """A picture as uint8 [H, W, 3], transparency on white; its size is bounded before anything is decoded.

    Args:
        content: the file's bytes, or its path.
        name: what messages call it.

    Raises:
        BadRecord: missing, too large, damaged, or in none of `PICTURE_FORMATS`.
    """
    try:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if size > MAX_PICTURE_BYTES:
            raise BadRecord(f"{name} has {size} bytes; a picture may have {MAX_PICTURE_BYTES}")
        stream = io.BytesIO(content if isinstance(content, bytes) else content.read_bytes())
        with Image.open(stream, formats=_formats()) as image:
            return np.array(open_picture(image))
    except BadRecord:
        raise
    except FileNotFoundError:
        raise BadRecord(f"{name} is missing") from None
    except UnidentifiedImageError:
        raise BadRecord(f"{name} cannot be read: it is none of {', '.join(PICTURE_FORMATS)}") from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise BadRecord(f"{name} cannot be read: {first_line(error)}") from None


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `PICTURE_FORMATS` that Pillow opens by themselves; an MPO is opened as the JPEG that it begins with."""
    Image.init()
    return tuple(name for name in PICTURE_FORMATS if name in Image.OPEN)


def read_object(content: bytes, name: str) -> dict[str, Any]:
    """A record's JSON object.

    Args:
        name: what messages call it.

    Raises:
        BadRecord: something else, or text that is in no encoding (half of a surrogate pair), which no file takes.
    """
    try:
        row = json.loads(content)
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRecord(f"{name} holds half of a surrogate pair, which is no character") from None
    except (ValueError, RecursionError):
        raise BadRecord(f"{name} is not JSON") from None
    if not isinstance(row, dict):
        raise BadRecord(f"{name} is not a JSON object")
    return row


def path_inside(folder: Path, name: str) -> Path:
    """The path of a file that a record names, in the data set's folder.

    Raises:
        BadRecord: the name is no relative path, no disk has it, or it leads out of the folder (through a link, too).
    """
    plain = PurePosixPath(name)
    if not name or plain.is_absolute() or ".." in plain.parts or "\\" in name or "\0" in name:
        raise BadRecord(f"{name!a} is no path inside the data set's folder")
    path = folder / plain
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # from Python 3.13 on it is `read_picture` that meets such links
        raise BadRecord(f"{name!r} leads round in a circle of links, or is a name that no disk has") from None
    if not inside:
        raise BadRecord(f"{name!r} leads out of the data set's folder")
    return path


def check(condition: NDArray[np.uint8], target: NDArray[np.uint8], text: str, task: str, name: str) -> None:
    """Refuse what cannot be trained on.

    Raises:
        BadRecord: no text, an unknown task, or two pictures that do not lie over each other.
    """
    if task not in TASKS:
        raise BadRecord(f"{name} has the task {task!r}; allowed: {', '.join(TASKS)}")
    if not text.strip():
        raise BadRecord(f"{name} has no text")
    if len(text) > MAX_TEXT:
        raise BadRecord(f"{name} has a text of {len(text)} characters; at most {MAX_TEXT} are read")
    (h, w), (target_h, target_w) = condition.shape[:2], target.shape[:2]
    if abs((w / h) / (target_w / target_h) - 1) > ASPECT_TOLERANCE:
        raise BadRecord(f"{name} has pictures of {w}×{h} and {target_w}×{target_h}, which do not lie over each other")
