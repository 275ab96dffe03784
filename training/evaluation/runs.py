"""A whole evaluation: make what is missing, measure what is missing, and put the results beside the paper's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from PIL import Image

import editar_rt
from editar_rt.observe.sheets import Cell
from training.data.records import BadRecords, DataError
from training.evaluation import pie_bench
from training.evaluation.networks import Networks
from training.evaluation.results import CELLS, Progress, ResultFolder, Task, fitted, generate, seeds_from, spread
from training.provenance import fingerprint


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an evaluation found."""

    report: dict[str, Any]
    table: str  # Markdown
    bad: BadRecords


def describe(editor: editar_rt.Editor, sampling: editar_rt.Sampling) -> dict[str, Any]:
    """What all pictures depend on; each has a sampling seed of its own besides."""
    drawn = dataclasses.asdict(sampling)
    del drawn["seed"]
    return {"bundle": editor.bundle.fingerprint, "picture_size": editor.image_size, "sampling": drawn}


def evaluate_pie_bench(
    benchmark: Path,
    editor: editar_rt.Editor,
    output: Path,
    networks: Networks,
    sampling: editar_rt.Sampling | None = None,
    limit: int | None = None,
    batch: int = 1,
    seeds: int = 1,
    on_progress: Progress = lambda done, total: None,
) -> Outcome:
    """PIE-Bench with a bundle, into the folder `output`.

    A result is compared with the source at the source's own size: where the bundle makes pictures of another, the
    result is resized (Lanczos).

    Args:
        limit: this many entries, evenly spread over the benchmark; all when None.
        seeds: pictures of every entry, each by a sampling seed of its own; the sampling's is the first.

    Raises:
        DataError: no benchmark, no entry that can be used, or a folder with other results.
    """
    sampling = editar_rt.Sampling.checked(sampling, editor.default_sampling)
    drawn = seeds_from(sampling, seeds)
    bench, bad = pie_bench.PieBench(benchmark), BadRecords()
    keys = bench.keys()
    keys = [keys[i] for i in spread(len(keys), limit)]
    described = {"benchmark": fingerprint(benchmark / pie_bench.MAPPING_FILE), **describe(editor, sampling)}
    results = ResultFolder(output, described, networks.fingerprints)
    wanted = pie_bench.measures_of(networks)
    chosen: dict[str, list[dict[str, Any]]] = {}
    cells: list[Cell] = []
    for start in range(0, len(keys), batch):
        items = {item.key: item for item in bench.items(keys[start : start + batch], bad)}
        tasks = [Task(item.key, item.picture, item.instruction, seed=seed) for seed in drawn for item in items.values()]
        for task in generate(results, editor, tasks, sampling, batch):
            item = items[task.record]
            made = fitted(results.picture(task.key), len(item.picture))
            absent = [name for name in wanted if name not in results.values.get(task.key, {})]
            if absent:
                measures = pie_bench.measure(item, made, networks, absent)
                results.record(task.key, {"editing_type": item.editing_type, **measures})
            measured = {**results.values[task.key], "editing_type": item.editing_type}
            chosen.setdefault(task.record, []).append(measured)
            if len(cells) < CELLS and task.seed == sampling.seed:
                shown = (item.picture, item.picture * ~item.mask[..., None], made)
                kind = pie_bench.EDITING_TYPES[item.editing_type]
                cells.append(Cell([Image.fromarray(p) for p in shown], f"{kind}: {item.instruction}"))
        on_progress(min(start + batch, len(keys)), len(keys))
    if not chosen:
        raise DataError(f"{benchmark} has no entry that can be used; the first: {bad.messages[0]}")
    summary, missing = pie_bench.summarize(chosen), networks.missing()
    report = {
        "benchmark": "PIE-Bench",
        "path": benchmark.name,
        **described,
        "seeds": drawn,
        **summary,
        "paper": {name: m.paper for name, m in pie_bench.MEASURES.items() if m.paper is not None},
        "missing": missing,
        "bad_records": bad.messages,
    }
    table = pie_bench.table(summary, drawn, missing)
    results.write_report(report, table, cells)
    return Outcome(report, table, bad)
