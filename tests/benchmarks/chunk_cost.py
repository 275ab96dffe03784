"""What a chunk of S positions in a guided picture's two rows costs, against a step: in one run, and row by row.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.chunk_cost BUNDLE --threads 1

Needs a bundle's transformer alone; weights may be random. Sizes and both ways take turns over one cache that is filled
like the middle of a picture, so that what else the machine does touches them alike. CPU time of the process. Not a
test: pytest does not collect it.
"""

from __future__ import annotations

import json
import time
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np

import editar_rt
from editar_rt.backends.base import Batch, Decoder
from editar_rt.machine import description

ROWS = 2


def filled(editor: editar_rt.Editor, positions: int) -> Decoder:
    """A cache whose rows hold this many random positions; the second row shares the picture with the first."""
    cache = editor.backend.make_decoder(ROWS, editor.prefix_length + editor.picture_tokens - 1)
    tokens = np.random.default_rng(0).integers(0, editor.model.vocab_size or 1, (1, positions), np.int32)
    for row, begin in ((0, 0), (1, editor.picture_tokens)):
        if begin:
            cache.copy(0, 1, 0, begin, frozen=True)
        numbers = np.asarray([row, begin, positions - begin], np.int32)
        cache.run(Batch(numbers[:1], numbers[1:2], numbers[2:], tokens[:, begin:], None, 1))
    return cache


def seconds(cache: Decoder, past: int, tokens: np.ndarray, together: bool) -> tuple[float, float]:
    """CPU and wall seconds of a chunk [2, S]."""
    spans = [slice(0, ROWS)] if together else [slice(row, row + 1) for row in range(ROWS)]
    size, rows = tokens.shape[1], np.arange(ROWS, dtype=np.int32)
    begun, cpu = time.perf_counter(), time.process_time()
    for span in spans:
        own = rows[span]
        batch = Batch(own, np.full_like(own, past), np.full_like(own, size), tokens[span], None, size)
        cache.run(batch).logits()
    return time.process_time() - cpu, time.perf_counter() - begun


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--size", "sizes", type=click.IntRange(1), multiple=True, default=(1, 2, 4, 8, 16, 32), show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(bundle: Path, sizes: tuple[int, ...], repeats: int, threads: int) -> None:
    """Print ms by size and way, and their ratios to a step in the same repeat: median, least, largest."""
    editor = editar_rt.load(bundle, "cpu", threads)
    past = editor.prefix_length + min(editor.picture_tokens // 2, editor.picture_tokens - 1 - max(sizes))
    vocab = editor.model.vocab_size or 1
    cache, rng = filled(editor, past), np.random.default_rng(1)
    ways = [("one run", True), ("row by row", False)]
    subjects = [
        (size, name, way) for size in (1, *(s for s in sizes if s > 1)) for name, way in ways if size > 1 or way
    ]
    found: dict[tuple[int, str], list[tuple[float, float]]] = {(size, name): [] for size, name, _ in subjects}
    for repeat in range(repeats + 1):  # the first warms up
        for size, name, way in subjects if repeat % 2 else reversed(subjects):
            took = seconds(cache, past, rng.integers(0, vocab, (ROWS, size), np.int32), way)
            if repeat:
                found[size, name].append(took)
    step = np.asarray(found[1, "one run"])
    by_way: dict[str, Any] = {}
    for (size, name), times in found.items():
        ratios = np.asarray(times) / step
        by_way.setdefault(name, {})[size] = {
            "cpu_ms": 1e3 * float(np.median([cpu for cpu, _ in times])),
            "cpu_of_step": [float(f(ratios[:, 0])) for f in (np.median, np.min, np.max)],
            "wall_of_step": float(np.median(ratios[:, 1])),
        }
    document = {
        "date": date.today().isoformat(),
        "machine": description(),
        "backend": editor.backend.name,
        "bundle": bundle.name,
        "filled": past,
        "threads": threads,
        "repeats": repeats,
        "runs": {size: cache.runs(ROWS, size) for size in sizes},
        "by_way": by_way,
    }
    click.echo(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
