"""A decode step's time at several capacities of the cache, filled alike.

    python -m tests.benchmarks.capacity_cost BUNDLE

In the dialect ort a step should take what is filled, not what there is room for; in the dialect standard the cache
grows with what is filled instead. Needs a bundle's transformer alone; weights may be random. Capacities take turns, so
that what else the machine does touches them alike. Not a test: pytest does not collect it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import numpy as np

import editar_rt
from editar_rt.backends.base import Batch, Decoder
from editar_rt.machine import description

ROWS = 2


def seconds_a_step(decoder: Decoder, filled: int, tokens: np.ndarray) -> float:
    """The median over tokens [S] that are fed one by one after this many positions."""
    rows, counts, seconds = np.arange(ROWS, dtype=np.int32), np.ones(ROWS, np.int32), []
    for position, token in enumerate(tokens, start=filled):
        batch = Batch(rows, counts * np.int32(position), counts, np.full((ROWS, 1), token, np.int32), None, 1)
        begun = time.perf_counter()
        decoder.run(batch)
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--device", default="cpu", show_default=True)
@click.option("--times", type=int, multiple=True, default=(1, 2, 4), show_default=True, help="Of a picture's capacity.")
@click.option("--steps", type=click.IntRange(1), default=32, show_default=True, help="Decode steps a repeat.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
def main(bundle: Path, device: str, times: tuple[int, ...], steps: int, repeats: int) -> None:
    """Print ms a step by capacity, and each one's share of the first, paired: median, least and largest."""
    editor = editar_rt.load(bundle, device)
    model, rng, count = editor.model, np.random.default_rng(0), editor.picture_tokens
    filled, steps = count + (model.text_tokens or 0), min(steps, count - 1)
    known = rng.integers(0, model.vocab_size or 1, (1, filled), np.int32)
    caches = {n * (filled + count - 1): editor.backend.make_decoder(ROWS, n * (filled + count - 1)) for n in times}
    for cache in caches.values():
        for row in range(ROWS):
            numbers = np.asarray([row, 0, filled], np.int32)
            cache.run(Batch(numbers[:1], numbers[1:2], numbers[2:], known, None, 1))
        seconds_a_step(cache, filled, known[0, :2])  # to warm up
    found: dict[int, list[float]] = {capacity: [] for capacity in caches}
    for repeat in range(repeats):
        for capacity in list(caches) if repeat % 2 == 0 else reversed(caches):
            found[capacity].append(seconds_a_step(caches[capacity], filled, known[0, :steps]))
    base = np.asarray(next(iter(found.values())))
    document = {
        "machine": description(),
        "backend": editor.backend.name,
        "bundle": bundle.name,
        "filled": filled,
        "steps": steps,
        "repeats": repeats,
        "by_capacity": {
            capacity: {
                "ms": 1e3 * float(np.median(seconds)),
                "of_first": [float(f(np.asarray(seconds) / base)) for f in (np.median, np.min, np.max)],
            }
            for capacity, seconds in found.items()
        },
    }
    click.echo(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
