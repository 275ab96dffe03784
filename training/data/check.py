"""What a data set holds: records by data set and task, the broken ones by name, and a contact sheet to look at."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from editar_rt.observe.sheets import Cell
from training.data.layouts import RowDataset
from training.data.records import BadRecord, BadRecords, DataError
from training.data.shards import opening, shard_files
from training.data.sources import Plan

CELLS_A_SOURCE = 6


@dataclass
class Holding:
    """One data set, as far as it was looked at."""

    records: int
    share: float
    read: int = 0
    bad: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)  # of the targets, `512×512`
    characters: int = 0  # of all texts read

    def to_dict(self) -> dict[str, Any]:
        good = self.read - self.bad
        return {
            "records": self.records,
            "share": self.share,
            "read": self.read,
            "bad": self.bad,
            "tasks": dict(self.tasks),
            "sizes": dict(self.sizes.most_common(5)),
            "mean_text_characters": round(self.characters / good, 1) if good else None,
        }


def check_plan(
    plan: Plan, limit: int | None, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[dict[str, Holding], BadRecords, list[Cell]]:
    """Read records of every data set, evenly spread.

    Args:
        limit: records of each data set; all when None.

    Returns:
        what each holds, by name; which records are bad; and cells `condition | target` for a contact sheet.

    Raises:
        DataError: a data set without a single good record among those read.
    """
    datasets = plan.open()
    whole = sum(source.share for source in plan.sources)
    chosen = [_spread(len(dataset), limit) for dataset in datasets]
    holdings: dict[str, Holding] = {}
    bad, cells, done = BadRecords(), [], 0
    for dataset, source, indices in zip(datasets, plan.sources, chosen, strict=True):
        name = dataset.name
        holding = holdings[name] = Holding(len(dataset), source.share / whole)
        shown = set(_spread(len(indices), CELLS_A_SOURCE))
        for place, index in enumerate(indices):
            cell = _look(dataset, index, holding, bad)
            if cell is not None and place in shown:
                cells.append(cell)
            done += 1
            on_progress(done, sum(len(c) for c in chosen))
        if holding.bad == holding.read:
            raise DataError(f"{name} has no good record among the {holding.read} read; the first: {bad.messages[0]}")
    return holdings, bad, cells


def _look(dataset: RowDataset, index: int, holding: Holding, bad: BadRecords) -> Cell | None:
    holding.read += 1
    try:
        sample = dataset[index]
    except BadRecord as error:
        holding.bad += 1
        bad.add(dataset.name, error)
        return None
    holding.tasks[sample.task] += 1
    holding.sizes["{1}×{0}".format(*sample.target.shape)] += 1
    holding.characters += len(sample.text)
    pictures = [Image.fromarray(sample.condition), Image.fromarray(sample.target)]
    return Cell(pictures, f"{dataset.name} {index}, {sample.task}: {sample.text}")


def _spread(count: int, limit: int | None) -> list[int]:
    """At most `limit` indices of 0 … count - 1, the first and the last among them."""
    if limit is None or limit >= count:
        return list(range(count))
    return sorted({round(i) for i in np.linspace(0, count - 1, limit)})


def check_shards(folder: Path) -> dict[str, Any]:
    """What token shards hold, over all `shard-*.npz` of a folder.

    Raises:
        DataError: none there, or some that do not fit together.
    """
    paths = shard_files(folder)
    if not paths:
        raise DataError(f"{folder} holds no shard-*.npz")
    tasks: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    grids: set[tuple[int, int]] = set()
    arrays: Counter[str] = Counter()
    bad: list[str] = []
    groups, largest = 0, 0
    for path in paths:
        with opening(path), np.load(path, allow_pickle=False) as shard:
            arrays.update(shard.files)
            bad += shard["bad"].tolist() if "bad" in shard.files else []
            if not len(condition := shard["condition"]):
                continue
            target = shard["target"]
            grids.add((condition.shape[1], target.shape[2]))
            groups += len(condition)
            largest = max(largest, int(condition.max()), int(target.max()))
            tasks.update(shard["task"].ravel().tolist())
            sources.update(shard["source"].tolist() if "source" in shard.files else ["world"] * len(condition))
    if len(grids) > 1:
        raise DataError(f"{folder} holds shards of different grids: {', '.join(map(str, sorted(grids)))}")
    return {
        "shards": len(paths),
        "groups": groups,
        "tokens_a_picture": next(iter(grids))[0] if grids else None,
        "largest_token": largest,
        "tasks": dict(tasks),
        "sources": dict(sources),
        "arrays": dict(sorted(arrays.items())),
        "bad": len(bad),
        "bad_records": list(itertools.islice(bad, 20)),
    }
