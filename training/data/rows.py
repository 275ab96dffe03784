"""Rows of a data set on disk, whatever it is stored in: JSON lines beside pictures, Arrow, Parquet, or tar shards.

A row is a plain mapping from column to value; a picture is bytes, or the name of a file in the data set's folder. What
the columns mean is said elsewhere (`training.data.layouts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from training.data.records import BadRecord, DataError, path_inside, read_object, read_picture

Row = Mapping[str, Any]
SAMPLES_FILE = "samples.jsonl"
ANNOTATIONS = "annotations"
MAX_LINE = 2**20  # bytes of one JSON line


class Rows(Protocol):
    """Random access to rows."""

    folder: Path | None
    """Where the files lie that rows name; None where rows hold their pictures themselves."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row:
        """Raises: BadRecord."""
        ...

    def label(self, index: int) -> str:
        """What messages call a row."""
        ...


class JsonRows:
    """Lines of JSON whose pictures lie beside them as files.

    Two layouts: our own, `samples.jsonl` with paths relative to its folder; and SEED-Data-Edit's, `annotations/*.jsonl`
    with paths relative to `images/`, or to the folder itself where there is no `images/`.
    """

    def __init__(self, folder: Path, annotations: str = ANNOTATIONS) -> None:
        own = folder / SAMPLES_FILE
        files = [own] if own.is_file() else sorted((folder / annotations).glob("*.jsonl"))
        if not files:
            raise DataError(f"{folder} has neither {SAMPLES_FILE} nor {annotations}/*.jsonl")
        images = folder / "images"
        self.folder: Path | None = folder if own.is_file() or not images.is_dir() else images
        self._places: list[tuple[Path, int, int]] = []  # file, line number, where the line begins
        for path in files:
            with open(path, "rb") as lines:
                number = start = 0
                while line := lines.readline(MAX_LINE + 1):
                    number += 1
                    if line.strip():
                        self._places.append((path, number, start))
                    start += len(line)
                    while line and not line.endswith(b"\n"):  # the rest of a line too long to be held
                        line = lines.readline(MAX_LINE + 1)
                        start += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def label(self, index: int) -> str:
        path, number, _ = self._places[index]
        return f"{path}, line {number}"

    def __getitem__(self, index: int) -> Row:
        path, _, start = self._places[index]
        with open(path, "rb") as lines:
            lines.seek(start)
            line = lines.readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            raise BadRecord(f"{self.label(index)} has more than {MAX_LINE} bytes")
        return read_object(line, self.label(index))


def open_rows(path: Path, split: str | None = None, annotations: str = ANNOTATIONS, in_order: bool = False) -> Rows:
    """The rows that lie at `path`, in whichever way they are stored.

    Args:
        path: a folder with `samples.jsonl` or `annotations/*.jsonl`; a folder that Hugging Face `datasets` has saved; a
            folder of (or one) `.parquet`, `.arrow` or `.tar` files.
        split: of a data set that has several.
        annotations: folder of SEED-Data-Edit's lines.
        in_order: whether rows are read in about their order, so that Parquet can be streamed.

    Raises:
        DataError: nothing of that kind, or nothing in it.
    """
    from training.data.tables import ArrowRows, holds_table, streamed
    from training.data.tars import TarRows

    if not path.exists():
        raise DataError(f"there is no data set {path}")
    rows: Rows
    if path.is_dir() and ((path / SAMPLES_FILE).is_file() or (path / annotations).is_dir()):
        rows = JsonRows(path, annotations)
    elif holds_table(path):
        rows = (streamed(path, split) if in_order else None) or ArrowRows(path, split)
    elif shards := [path] if path.suffix == ".tar" else sorted(path.glob("*.tar")):
        rows = TarRows(shards)
    else:
        packed = [p.name for p in path.glob("*.tar.*")] if path.is_dir() else []
        hint = f"; unpack {packed[0]} first, packed shards have no random access" if packed else ""
        raise DataError(
            f"{path} holds no data set: neither {SAMPLES_FILE}, {annotations}/*.jsonl, a saved Hugging Face data set, "
            f".parquet, .arrow nor .tar files{hint}"
        )
    if not len(rows):
        raise DataError(f"the data set {path} is empty")
    return rows


def picture_of(rows: Rows, row: Row, column: str, name: str) -> NDArray[np.uint8]:
    """The picture in the column of one of `rows`, uint8 [H, W, 3].

    Raises:
        BadRecord: no such column, no picture in it, or one that cannot be read.
    """
    cell = row.get(column)
    if isinstance(cell, Mapping):  # as `datasets` stores an undecoded picture
        cell = cell.get("bytes")
    if isinstance(cell, bytes):
        return read_picture(cell, f"{name}, {column}")
    if isinstance(cell, str) and rows.folder is not None:
        return read_picture(path_inside(rows.folder, cell), f"{name}, {cell}")
    raise BadRecord(f"{name} has no picture in the column {column!r}; its columns: {', '.join(sorted(row))}")


def text_of(row: Row, column: str, name: str) -> str:
    """The words in a row's column.

    Raises:
        BadRecord: no such column, or no words in it.
    """
    cell = row.get(column)
    if isinstance(cell, bytes):
        cell = cell.decode("utf-8", errors="replace")
    if not isinstance(cell, str):
        raise BadRecord(f"{name} has no text in the column {column!r}; its columns: {', '.join(sorted(row))}")
    return cell.strip()
