"""Rows of Arrow and Parquet files, through the Hugging Face `datasets` library.

Pictures stay the bytes they are stored as: nothing is decoded before its size is known. Arrow files are mapped, not
loaded. Parquet has no random access: whoever reads records in their order streams it, a row group at a time; for any
other order the library rewrites it as Arrow once, in its own cache (`HF_DATASETS_CACHE`).
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from training.data.records import BadRecord, DataError
from training.errors import first_line

SPLITS_FILE, STATE_FILE = "dataset_dict.json", "state.json"  # as `Dataset.save_to_disk` writes them
KEPT = 2  # row groups: threads that read ahead are in the next one already
MOST_BYTES = 2**33  # of a row group, unpacked


def _is_saved(path: Path) -> bool:
    """Whether `Dataset.save_to_disk` wrote a folder."""
    return any((path / name).is_file() for name in (SPLITS_FILE, STATE_FILE))


def holds_table(path: Path) -> bool:
    """Whether there is something at `path` for `ArrowRows`."""
    if path.is_file():
        return path.suffix in (".parquet", ".arrow")
    return _is_saved(path) or bool(_files(path))


def _files(folder: Path) -> list[Path]:
    """Parquet or Arrow files in a folder, or in its `data/` as repositories have them."""
    for place in (folder, folder / "data"):
        for ending in ("parquet", "arrow"):
            if found := sorted(place.glob(f"*.{ending}")):
                return found
    return []


class ArrowRows:
    """Rows of a folder saved by `datasets`, or of `.parquet` or `.arrow` files.

    Args:
        split: `train` where it is not given and there is one.
    """

    def __init__(self, path: Path, split: str | None = None) -> None:
        try:
            import datasets
        except ImportError:
            raise DataError(
                f"{path} needs the library `datasets`: pip install -c constraints.txt -e '.[data]'"
            ) from None
        self.folder: Path | None = None
        self.path = path
        if path.is_dir() and (path / SPLITS_FILE).is_file():
            splits = sorted(p.parent.name for p in path.glob(f"*/{STATE_FILE}"))
            path = path / choose_split(path, splits, split)
        try:
            table = _saved(datasets, path) if (path / STATE_FILE).is_file() else _loose(datasets, path, split)
        except DataError:
            raise
        except Exception as error:  # pyarrow and datasets have their own kinds for damaged files
            raise DataError(f"{path} is not a whole data set: {first_line(error)}") from None
        # Nothing is decoded here: neither pictures nor sounds, films or documents in columns that nobody asks for.
        decoded = {name: kind for name, kind in table.features.items() if getattr(kind, "decode", False)}
        for name, kind in decoded.items():
            table = table.cast_column(name, dataclasses.replace(kind, decode=False))
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def label(self, index: int) -> str:
        return f"{self.path}, row {index}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self._table[index]
        return row


class ParquetRows:
    """Rows of `.parquet` files that are read in about their order; nothing is written.

    Any row may be asked for, by several threads; each one outside of the `KEPT` row groups last read costs the reading
    of its whole group.
    """

    def __init__(self, path: Path, files: list[Path]) -> None:
        from pyarrow import parquet

        self.folder: Path | None = None
        self.path = path
        self._groups: list[tuple[Path, int]] = []  # file, number in it
        sizes = []
        for file in files:
            try:
                with parquet.ParquetFile(file) as opened:
                    groups = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
            except Exception as error:  # pyarrow has its own kinds for damaged files
                raise DataError(f"{file} is not a whole data set: {first_line(error)}") from None
            largest = max((group.total_byte_size for group in groups), default=0)
            if largest > MOST_BYTES:
                raise DataError(f"{file} has a row group of {largest} bytes; at most {MOST_BYTES} are read at once")
            self._groups += [(file, number) for number in range(len(groups))]
            sizes += [group.num_rows for group in groups]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def label(self, index: int) -> str:
        return f"{self.path}, row {index}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        group = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[group - 1]) if group else 0
        row: dict[str, Any] = self._table(group).slice(index - first, 1).to_pylist()[0]
        return row

    def _table(self, group: int) -> Any:
        with self._lock:  # the threads that read want the same group
            if group not in self._kept:
                self._kept[group] = self._read(*self._groups[group])
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return self._kept[group]

    def _read(self, file: Path, number: int) -> Any:
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(file) as opened:
                return opened.read_row_group(number)
        except Exception as error:
            raise BadRecord(f"{file}, row group {number}, cannot be read: {first_line(error)}") from None


def streamed(path: Path, split: str | None) -> ParquetRows | None:
    """The Parquet files at `path` to be read in their order; None where there are none."""
    if path.is_dir() and _is_saved(path):
        return None
    files = _of_split(path, split)
    return ParquetRows(path, files) if files and files[0].suffix == ".parquet" else None


def choose_split(path: Path, splits: list[str], wanted: str | None) -> str:
    """The split to read: the one wanted, else `train`, else the only one.

    Raises:
        DataError: there is no such split, or several and none was chosen.
    """
    default = "train" if "train" in splits else splits[0] if len(splits) == 1 else None
    chosen = wanted or default
    if chosen not in splits:
        found = ", ".join(splits) or "none"
        raise DataError(f"{path} has no split {wanted!r}; it has: {found}" if wanted else f"choose a split: {found}")
    return chosen


def _saved(datasets: Any, folder: Path) -> Any:
    """A folder written by `Dataset.save_to_disk`."""
    state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    names = [entry["filename"] for entry in (state.get("_data_files") or []) + (state.get("_indices_files") or [])]
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise DataError(f"{folder}/{STATE_FILE} names files outside of its folder: {outside[0]!r}")
    return datasets.Dataset.load_from_disk(str(folder), keep_in_memory=False)


def _loose(datasets: Any, path: Path, split: str | None) -> Any:
    """Files as a repository or a download cache has them, `SPLIT-00000-of-00012.parquet`."""
    files = _of_split(path, split)
    if files[0].suffix == ".parquet":
        return datasets.Dataset.from_parquet([str(p) for p in files])
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(p)) for p in files])


def _of_split(path: Path, split: str | None) -> list[Path]:
    files = [path] if path.is_file() else _files(path)
    splits = sorted({_split_of(p) for p in files} - {""})
    if splits:
        chosen = choose_split(path, splits, split)
        files = [p for p in files if _split_of(p) == chosen]
    return files


def _split_of(path: Path) -> str:
    """`train` of `train-00000-of-00012.parquet`; nothing for other names."""
    head, _, rest = path.stem.partition("-")
    return head if "-of-" in rest else ""
