"""Arrays of token shards, read a row at a time from any number of files.

Where each array lies is read once, when a folder is opened, one file after the other. Rows of arrays that are stored as
they are then come from the disk when a batch asks for them, through at most `OPEN_FILES` descriptors however many
shards there are, and without any map. A compressed array has no places for its rows: it is read whole when the first of
them is asked for, and kept.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import os
import struct
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.shards import opening
from training.errors import TrainingError

OPEN_FILES = 64
LONGEST_HEADER = 10_000  # bytes; NumPy's own bound
LOCAL_HEADER = 30  # bytes of a zip member's header, which its name, an extra field and its content follow


@dataclass(frozen=True)
class Stored:
    """Where an array lies in its file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    plain: bool  # neither Python objects nor columns first
    offset: int | None  # of its first byte; None where it is compressed


@dataclass(frozen=True)
class Shard:
    """The arrays of one `.npz` by name, and a digest of their contents (from the checksums that the file holds)."""

    path: Path
    arrays: dict[str, Stored]
    digest: str


def read_shard(path: Path) -> Shard:
    """Look up the arrays of an `.npz`; the file is closed again.

    Raises:
        DataError: a file that is not whole, or that the operating system does not open.
    """
    arrays, content = {}, hashlib.sha256()
    with opening(path), open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            content.update(f"{member.filename} {member.file_size} {member.CRC}\n".encode())
            if member.compress_type == zipfile.ZIP_STORED:
                file.seek(member.header_offset + LOCAL_HEADER - 4)
                lengths = struct.unpack("<HH", file.read(4))  # of the name and of the extra field
                file.seek(sum(lengths), os.SEEK_CUR)
                shape, fortran, dtype = _read_header(file)
                offset = file.tell()
            else:
                with archive.open(member) as unpacked:
                    shape, fortran, dtype = _read_header(unpacked)
                offset = None
            plain = not (fortran or dtype.hasobject)
            arrays[member.filename.removesuffix(".npy")] = Stored(shape, dtype, plain, offset)
    return Shard(path, arrays, content.hexdigest())


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    size = file.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(size, "little")
    if length > LONGEST_HEADER:
        raise ValueError(f"an array's header has {length} bytes")
    return _parsed(version, size + file.read(length))


@functools.lru_cache(maxsize=256)  # thousands of shards have the same few headers
def _parsed(version: tuple[int, int], header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(io.BytesIO(header))
    return shape, fortran, dtype


class Descriptor:
    """An open file, closed when nobody holds this any more: a thread may still read what another one has put out."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class OpenFiles:
    """Reads anywhere in many files, of which only the `most` last used are open; several threads may read at once."""

    def __init__(self, most: int = OPEN_FILES) -> None:
        self.most = most
        self._open: OrderedDict[Path, Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """`size` bytes of a file.

        Raises:
            DataError: it ends before, or the operating system does not open it.
        """
        with opening(path):
            file, parts = self._descriptor(path), []
            while size and (part := os.pread(file.number, size, offset)):
                parts.append(part)
                offset, size = offset + len(part), size - len(part)
            if size:
                raise EOFError(f"{size} bytes are missing at its end")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _descriptor(self, path: Path) -> Descriptor:
        with self._lock:
            file = self._open.pop(path, None) or Descriptor(path)
            self._open[path] = file
            while len(self._open) > self.most:
                self._open.popitem(last=False)
            return file


class ShardArray:
    """One array of all shards of a folder, indexed by its first axis over all of them.

    Attributes:
        parts: shape and place of each shard's array.

    Raises:
        TrainingError: arrays that differ in more than how many rows they have, or that are not plain.
    """

    def __init__(self, shards: Sequence[Shard], name: str, files: OpenFiles) -> None:
        self.name, self.shards, self.files = name, list(shards), files
        self.parts = [shard.arrays[name] for shard in shards]
        for shard, part in zip(self.shards, self.parts):
            if not part.plain or not part.shape:
                raise TrainingError(f"{shard.path}: {name} is not a plain array of rows")
            if part.shape[1:] != self.row_shape:
                found, others = (" x ".join(map(str, s)) or "one" for s in (part.shape[1:], self.row_shape))
                raise TrainingError(
                    f"{shard.path}: {name} has {found} values a group, in {self.shards[0].path.name} it has {others}; "
                    "make all shards of a folder with the same models and sizes"
                )
        self.ends = np.cumsum([part.shape[0] for part in self.parts])
        self._unpacked: dict[int, NDArray[Any]] = {}

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.parts[0].shape[1:]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def place(self, index: int) -> tuple[int, int]:
        """(part, row of it)."""
        part = int(np.searchsorted(self.ends, index, side="right"))
        return part, int(index - (self.ends[part - 1] if part else 0))

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """These rows, [len(indices), *row_shape], in memory of their own."""
        found = np.empty((len(indices), *self.row_shape), self.parts[0].dtype)
        for at, index in enumerate(indices):
            part, row = self.place(int(index))
            found[at] = self._row(part, row)
        return found

    def each(self) -> Iterator[NDArray[Any]]:
        """The whole arrays of one shard after the other; none is kept."""
        for number, shard in enumerate(self.shards):
            kept = self._unpacked.get(number)
            yield read_array(shard, self.name, self.files) if kept is None else kept

    def _row(self, number: int, row: int) -> NDArray[Any]:
        part, shard = self.parts[number], self.shards[number]
        if part.offset is None:
            if number not in self._unpacked:
                self._unpacked[number] = read_array(shard, self.name, self.files)
            return np.asarray(self._unpacked[number][row])
        size = part.dtype.itemsize * math.prod(self.row_shape)
        content = self.files.read(shard.path, part.offset + row * size, size)
        return np.frombuffer(content, part.dtype).reshape(self.row_shape)


def read_array(shard: Shard, name: str, files: OpenFiles) -> NDArray[Any]:
    """One array of a shard, whole.

    Raises:
        DataError: as `OpenFiles.read`.
    """
    stored = shard.arrays[name]
    if stored.offset is None:
        with opening(shard.path), np.load(shard.path, allow_pickle=False) as arrays:
            return np.asarray(arrays[name])
    content = files.read(shard.path, stored.offset, stored.dtype.itemsize * math.prod(stored.shape))
    return np.frombuffer(content, stored.dtype).reshape(stored.shape)
