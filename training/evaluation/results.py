"""A folder of results, added to picture by picture, so that a stopped evaluation goes on where it was.

settings.json   what the results depend on; another bundle, sampling or network is refused
pictures/       what the bundle made
results.jsonl   measures, one line a picture and a pass; a later pass may add measures to those of an earlier one
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
from editar_rt.sheets import Cell, contact_sheet, save_png
from training.data.records import DataError, read_picture

CELLS = 24  # of the contact sheet

Values = dict[str, Any]
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Task:
    """One picture to be made."""

    key: str  # a plain file name
    picture: Path | NDArray[np.uint8]
    text: str
    task: str = "edit"


class ResultFolder:
    """Pictures and measures of one evaluation.

    Args:
        settings: what everything here depends on.
        networks: fingerprints of measuring networks by name; more may come with a later pass, none may change.

    Raises:
        DataError: the folder holds results of other settings.
    """

    def __init__(self, folder: Path, settings: Values, networks: dict[str, str]) -> None:
        self.folder = folder
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        path = folder / "settings.json"
        given = json.loads(json.dumps({**settings, "networks": networks}))
        if path.exists():
            earlier = json.loads(path.read_text())
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
            for line in whole.splitlines():
                entry = json.loads(line)
                values.setdefault(entry.pop("key"), {}).update(entry)
        return values

    def record(self, key: str, values: Values) -> None:
        """Add measures of a picture."""
        with open(self.folder / "results.jsonl", "a") as lines:
            lines.write(json.dumps({"key": key, **values}) + "\n")
        self.values.setdefault(key, {}).update(values)

    def path(self, key: str) -> Path:
        return self.folder / "pictures" / f"{key}.png"

    def picture(self, key: str) -> NDArray[np.uint8]:
        """A picture that was made, uint8 [S, S, 3]."""
        return read_picture(self.path(key), str(self.path(key)))

    def write_report(self, report: Values, table: str, cells: list[Cell]) -> None:
        """The report, its table, and a contact sheet of the first results, not chosen."""
        save_png(contact_sheet(cells), self.folder / "sheet.png")
        _write(self.folder / "report.json", json.dumps(report, indent=1) + "\n")
        _write(self.folder / "report.md", table + "\n")


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
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

    Pictures of one task are made `batch` at a time; each has the tokens that it has alone.
    """
    by_task: dict[str, list[Task]] = {}
    for task in tasks:
        by_task.setdefault(task.task, []).append(task)
    done = 0
    for name, members in by_task.items():
        for start in range(0, len(members), batch):
            part = members[start : start + batch]
            absent = [t for t in part if not results.path(t.key).exists()]
            if absent:
                made = editor.edit_batch([t.picture for t in absent], [t.text for t in absent], name, sampling)
                for task, result in zip(absent, made, strict=True):
                    save_png(result.image, results.path(task.key))
            yield from part
            done += len(part)
            on_progress(done, len(tasks))


def fitted(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A square picture at another size (Lanczos); itself where it has that size."""
    if len(picture) == side:
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))
