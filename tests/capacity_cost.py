"""A decode step's time at several capacities of the cache, filled alike: python -m tests.capacity_cost BUNDLE

In the spelling ort a step should take what is filled, not what there is room for; in the spelling standard the cache
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
from editar_rt.backends.base import Cache
from editar_rt.machine import description

ROWS = 2


def seconds_a_step(cache: Cache, filled: int, tokens: np.ndarray, width: int) -> float:
    """The median over tokens [S] that are fed one by one behind so many positions."""
    cache.lengths[:] = filled
    none, first, seconds = np.zeros((1, 1, width), np.float32), np.zeros(1, np.int32), []
    for token in tokens:
        begun = time.perf_counter()
        cache.forward(np.full((ROWS, 1), token, np.int32), none, first)
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
    filled, steps, width = count + (model.text_tokens or 0), min(steps, count - 1), model.dim or 0
    known = rng.integers(0, model.vocab_size or 1, (1, filled), np.int32)
    caches = {n * (filled + count - 1): editor.backend.make_cache(ROWS, n * (filled + count - 1)) for n in times}
    for cache in caches.values():
        for row in range(ROWS):
            cache.forward(known, np.zeros((1, 1, width), np.float32), np.asarray([filled - 1], np.int32), row)
        seconds_a_step(cache, filled, known[0, :2], width)  # to warm up
    found: dict[int, list[float]] = {capacity: [] for capacity in caches}
    for repeat in range(repeats):
        for capacity in list(caches) if repeat % 2 == 0 else reversed(caches):
            found[capacity].append(seconds_a_step(caches[capacity], filled, known[0, :steps], width))
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
