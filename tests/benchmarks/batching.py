"""Tokens a CPU second for several pictures that step together, against one: interleaved, medians.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.batching engines/demo --pictures 1 --pictures 8

The pictures share picture and text, so that the prefill is copied; their steps share nothing but the weights.
"""

from __future__ import annotations

import json
import time
from datetime import date
from pathlib import Path

import click
import numpy as np

import editar_rt
from editar_rt.generation.scheduler import Scheduler
from editar_rt.generation.sequence import Sequence
from editar_rt.machine import description


def ready(editor: editar_rt.Editor, pictures: int, steps: int) -> tuple[Scheduler, list[Sequence]]:
    """Guided pictures in the middle of their tokens, with `steps` left to draw."""
    model, count, rng = editor.model, editor.picture_tokens, np.random.default_rng(0)
    states = rng.standard_normal((1, model.text_tokens or 1, model.text_dim or 1)).astype(np.float32)
    tokens = rng.integers(0, model.vocab_size or 1, (2, count), np.int32)
    known, begin = tokens[1].copy(), (count - steps) // 2
    known[begin : begin + steps + 1] = -1
    (inputs,) = editor.inputs(states, tokens[:1])
    sampling = editar_rt.Sampling()
    scheduler = editor.scheduler(pictures, True)
    made = [Sequence(scheduler.join(True), inputs, sampling, seed, known, count) for seed in range(pictures)]
    while any(sequence.position == begin for sequence in made):  # prefill, the known tokens and the first drawn one
        scheduler.step([sequence for sequence in made if sequence.position == begin])
    return scheduler, made


def cpu_seconds_of_steps(scheduler: Scheduler, sequences: list[Sequence], steps: int) -> float:
    begun = time.process_time()
    for _ in range(steps):
        scheduler.step(sequences)
    return time.process_time() - begun


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--pictures", type=click.IntRange(1), multiple=True, default=(1, 2, 4, 8), show_default=True)
@click.option("--steps", type=click.IntRange(2), default=40, show_default=True, help="Steps a picture.")
@click.option("--blocks", type=click.IntRange(1), default=8, show_default=True, help="Blocks that steps are timed in.")
def main(bundle: Path, pictures: tuple[int, ...], steps: int, blocks: int) -> None:
    """Print tokens a CPU second by the number of pictures, and each number's ratio to the first, block by block."""
    editor = editar_rt.load(bundle, "cpu", 1)
    subjects = {n: ready(editor, n, steps) for n in pictures}
    length = steps // blocks
    rates: dict[int, list[float]] = {n: [] for n in pictures}
    for block in range(blocks):
        for n in pictures if block % 2 == 0 else reversed(pictures):
            rates[n].append(n * length / cpu_seconds_of_steps(*subjects[n], length))
    first = np.asarray(rates[pictures[0]])
    document = {
        "date": date.today().isoformat(),
        "machine": description(),
        "backend": editor.backend.name,
        "bundle": bundle.name,
        "precision": editor.bundle.manifest.precision,
        "kv_cache": editor.bundle.manifest.kv_cache,
        "tokens_per_cpu_second": {n: float(np.median(rate)) for n, rate in rates.items()},
        "ratio": {
            n: {
                "median": float(np.median(rate / first)),
                "min": float((rate / first).min()),
                "max": float((rate / first).max()),
            }
            for n, rate in rates.items()
        },
    }
    click.echo(json.dumps(document))


if __name__ == "__main__":
    main()
