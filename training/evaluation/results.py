"""A folder of results, added to picture by picture, so that a stopped evaluation goes on where it was.

settings.json   what the results depend on; another bundle, sampling or network is refused
pictures/       what the bundle made
results.jsonl   measures, one line a picture and a pass; a later pass may add measures, or pictures by other seeds
report.json, report.md
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import editar_rt
from editar_rt.images.writing import save_picture
from editar_rt.observe.sheets import Cell, contact_sheet
from training.data.records import BadRecord, DataError, read_picture

CELLS = 24  # of the contact sheet

Values = dict[str, Any]
Progress = Callable[[int, int], None]


def seeds_from(sampling: editar_rt.Sampling, seeds: int) -> list[int]:
    """That many sampling seeds, from the sampling's own on."""
    return [sampling.seed + i for i in range(seeds)]


@dataclasses.dataclass(frozen=True)
class Task:
    """One picture to be made."""

    record: str  # whose picture it is: a plain file name
    picture: Path | NDArray[np.uint8]
    text: str
    task: str = "edit"
    seed: int = 0  # of the sampling

    @property
    def key(self) -> str:
        """Name of the picture: a plain file name."""
        return f"{self.record}-seed{self.seed}"


class ResultFolder:
    """Pictures and measures of one evaluation.

    Args:
        settings: what everything here depends on.
        networks: fingerprints of measuring networks by name; more may come with a later pass, none may change.

    Raises:
        DataError: the folder holds results of other settings, or a file that was not written here.
    """

    def __init__(self, folder: Path, settings: Values, networks: dict[str, str]) -> None:
        self.folder = folder
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        path = folder / "settings.json"
        given = json.loads(json.dumps({**settings, "networks": networks}))
        if path.exists():
            earlier = _settings(path)
            known = earlier.pop("networks")
            differ = [k for k in {**earlier, **settings} if earlier.get(k) != given.get(k)]
            differ += [f"the network {k}" for k in known if k in networks and known[k] != networks[k]]
            if differ:
                raise DataError(
                    f"{folder} holds results with other settings ({', '.join(differ)}); choose another folder"
                )
            given["networks"] = {**known, **networks}
        _write(path, json.dumps(given, indent=1) + "\n")
        self.values = self._read()

    def _read(self) -> dict[str, Values]:
        """Measures by key; half a last line, as a stopped run leaves it, is cut off."""
        path = self.folder / "results.jsonl"
        values: dict[str, Values] = {}
        if path.exists():
            whole, _, torn = path.read_bytes().rpartition(b"\n")
            if torn:
                os.truncate(path, len(whole) + 1 if whole else 0)
            for number, line in enumerate(whole.splitlines(), 1):
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    entry = None
                if not _is_entry(entry):
                    raise DataError(
                        f"{path} holds no measures in line {number}; remove that line, and what it should say is "
                        "measured again"
                    )
                values.setdefault(entry.pop("key"), {}).update(entry)
        return values

    def record(self, key: str, values: Values) -> None:
        """Add measures of a picture."""
        with open(self.folder / "results.jsonl", "a", encoding="utf-8") as lines:
            lines.write(json.dumps({"key": key, **values}) + "\n")
        self.values.setdefault(key, {}).update(values)

    def path(self, key: str) -> Path:
        return self.folder / "pictures" / f"{key}.png"

    def picture(self, key: str) -> NDArray[np.uint8]:
        """A picture that was made, uint8 [S, S, 3]."""
        return read_picture(self.path(key), str(self.path(key)))

    def has(self, key: str) -> bool:
        """Whether a picture was made and can be read; an empty or damaged file counts as none."""
        try:
            self.picture(key)
        except BadRecord:
            return False
        return True

    def write_report(self, report: Values, table: str, cells: list[Cell]) -> None:
        """The report, its table, and a contact sheet of the first results, not chosen."""
        save_picture(contact_sheet(cells), self.folder / "sheet.png")
        _write(self.folder / "report.json", json.dumps(report, indent=1) + "\n")
        _write(self.folder / "report.md", table + "\n")


def _settings(path: Path) -> Values:
    """What an earlier pass noted.

    Raises:
        DataError: a file that no pass has written.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("networks"), dict):
        raise DataError(f"{path} does not say what the results depend on, so none can be added; choose another folder")
    return found


def _is_entry(entry: Any) -> bool:
    """Whether a line of `results.jsonl` is of a picture: its key, numbers or None, and an `overlap` by class."""
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
        return False
    overlap = entry.get("overlap", {})
    return (
        isinstance(overlap, dict)
        and all(isinstance(c, list) and [type(n) for n in c] == [int, int] for c in overlap.values())
        and all(v is None or type(v) in (int, float) for k, v in entry.items() if k not in ("key", "overlap"))
    )


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def generate(
    results: ResultFolder,
    editor: editar_rt.Editor,
    tasks: Sequence[Task],
    sampling: editar_rt.Sampling,
    batch: int = 1,
    on_progress: Progress = lambda done, total: None,
) -> Iterator[Task]:
    """Let the bundle make the pictures that are not there yet; yields every task once its picture is there.

    They are made `batch` at a time; each has the tokens that it has alone, so one that cannot be read is made again as
    it was.

    Args:
        sampling: but for the seed, which each task has of its own.
    """
    tasks, done = list(tasks), 0
    for start in range(0, len(tasks), batch):
        part = tasks[start : start + batch]
        absent = [task for task in part if not results.has(task.key)]
        if absent:
            requests = [
                editar_rt.Request(
                    task.picture, task.text, task=task.task, sampling=dataclasses.replace(sampling, seed=task.seed)
                )
                for task in absent
            ]
            for task, result in zip(absent, editor.edit_batch(requests), strict=True):
                save_picture(result.image, results.path(task.key))
        yield from part
        done += len(part)
        on_progress(done, len(tasks))


def fitted(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A square picture at another size (Lanczos); itself where it has that size."""
    if len(picture) == side:
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def spread(count: int, limit: int | None) -> list[int]:
    """At most `limit` indices of 0 … count - 1, evenly spread; all when None."""
    if limit is None or limit >= count:
        return list(range(count))
    return [i * count // limit for i in range(limit)]
