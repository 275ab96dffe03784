"""Rows of WebDataset shards: tar files whose members share a name up to its first dot.

`000017.condition.png`, `000017.target.jpg`, `000017.json` make one row with the columns `condition` and `target`, and
what the JSON object holds; `000017.txt` is the column `text`. The library of that name reads shards as a stream; here
any record must be at hand, in any order, so members are looked up by where they lie. Nothing is ever written to disk,
and what would have to be unpickled (`.pyd`, `.pkl`, `.pth`, …) is refused, not read.
"""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from editar_rt.images.folders import is_clutter, picture_endings
from training.data.records import MAX_PICTURE_BYTES, PICTURE_FORMATS, BadRecord, DataError, read_object

TEXTS = {"json": 2**20, "txt": 2**16}  # bytes at most
PICKLES = ("pyd", "pkl", "pickle", "pth", "pt", "npy", "npz")
MAX_MEMBERS = 1_000_000  # of one shard


class TarRows:
    """Rows of uncompressed `.tar` shards, in the order they lie there."""

    def __init__(self, shards: list[Path]) -> None:
        self.folder: Path | None = None
        self._rows: list[tuple[Path, str, dict[str, tuple[int, int]]]] = []  # shard, key, {ending: (offset, size)}
        for shard in shards:
            rows: dict[str, dict[str, tuple[int, int]]] = {}
            try:
                with tarfile.open(shard, "r:") as tar:
                    for number, member in enumerate(tar):
                        if number >= MAX_MEMBERS:
                            raise DataError(f"{shard} has more than {MAX_MEMBERS} members")
                        path = PurePosixPath(member.name)
                        # Neither links nor devices; and macOS packs a `._NAME` beside every NAME.
                        if member.isfile() and not any(map(is_clutter, path.parts)):
                            stem, _, ending = path.name.partition(".")
                            rows.setdefault(str(path.parent / stem), {})[ending.lower()] = (
                                member.offset_data,
                                member.size,
                            )
            except tarfile.TarError as error:
                raise DataError(f"{shard} is not a whole, uncompressed tar file: {error}") from None
            self._rows += [(shard, key, members) for key, members in rows.items()]

    def __len__(self) -> int:
        return len(self._rows)

    def label(self, index: int) -> str:
        shard, key, _ = self._rows[index]
        return f"{shard}, {key}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, _, members = self._rows[index]
        row: dict[str, Any] = {}
        with open(shard, "rb") as file:
            for ending, (offset, size) in members.items():
                last = ending.rpartition(".")[2]
                if last in PICKLES:
                    raise BadRecord(f"{self.label(index)}.{ending} is refused: reading it could run code of strangers")
                if (largest := TEXTS.get(last, MAX_PICTURE_BYTES)) < size:
                    raise BadRecord(f"{self.label(index)}.{ending} has {size} bytes; at most {largest} are read")
                file.seek(offset)
                content = file.read(size)
                if len(content) < size:
                    raise BadRecord(f"{self.label(index)}.{ending} is cut off")
                if last == "json":
                    row |= read_object(content, f"{self.label(index)}.json")
                else:
                    row[_column(ending)] = content
        return row


def _column(ending: str) -> str:
    """The column of a member: `condition` of `condition.png`, `image` of a lone `jpg`, `text` of `txt`."""
    name, _, last = ending.rpartition(".")
    if last == "txt":
        return name or "text"
    return name or "image" if f".{last}" in picture_endings(PICTURE_FORMATS) else ending
