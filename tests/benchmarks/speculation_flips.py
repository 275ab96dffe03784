"""Counts images whose tokens speculation changes through rounding, and shows that rounding is what changed them.

    python -m tests.benchmarks.speculation_flips BUNDLE -o FILE.json --scenes 225 --sampling noise=uniform \
        --sampling noise=gumbel

Every held-out scene of every kind is decoded plainly and in passes of several positions, with the same seed. Where two
images differ, the logits of the first token that differs are computed both ways, after the same tokens: their largest
difference is what rounding did, and the gap is how far the draw was from the other token (the distance of the random
number to the border between tokens, as a share of the total; with Gumbel noise the lead of the best sum, in nats).
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

import editar_rt
from editar_rt import Sampling
from editar_rt.generation.noise import gumbel, uniform, words
from editar_rt.generation.sampling import candidates
from editar_rt.images.pixels import to_pixels
from export.cli import parse_defaults
from training.data.edits import KINDS, held_out

BATCH = 25


def logits_at(model: Any, states: Any, condition: Any, sampling: Sampling, size: int | None, position: int) -> Any:
    """The guided logits [V] of one position of an image alone."""
    for step in model.steps(states, condition, sampling, speculate=size):
        if step.position == position:
            return step.logits[0].copy()
    raise AssertionError("the position was not reached")


def gap(logits: np.ndarray, sampling: Sampling, position: int) -> float:
    """How far the draw is from the nearest other token."""
    kept, weights = candidates(logits, sampling)
    if sampling.noise == "gumbel":
        sums = np.sort(np.log(weights) + gumbel(words(sampling.seed, 0, position, len(logits))[kept]))
        return float(sums[-1] - sums[-2])
    sums = np.cumsum(weights) / weights.sum()
    return float(np.abs(sums - uniform(sampling.seed, 0, position)).min())


def flips_of(
    model: editar_rt.Editor, sampling: Sampling, size: int, scenes: int, kinds: tuple[str, ...]
) -> dict[str, Any]:
    found: dict[str, Any] = {"sampling": sampling.settings(), "size": size, "images": 0, "flips": []}
    for kind in kinds:
        examples = held_out(kind, scenes)
        for begin in range(0, scenes, BATCH):
            part = examples[begin : begin + BATCH]
            pixels = to_pixels(np.stack([each.condition(model.image_size) for each in part]))
            condition = model.encode_pixels(pixels)
            states = model.encode_text([each.text for each in part], tasks=[each.task for each in part])
            own = replace(sampling, seed=1000 * KINDS.index(kind) + begin)
            plain, fast = (model.generate(states, condition, own, speculate=way) for way in (None, size))
            found["images"] += len(part)
            for n in np.flatnonzero((plain != fast).any(axis=1)).tolist():
                at = int((plain[n] != fast[n]).argmax())
                given = states[n : n + 1], condition[n : n + 1], own
                both = [logits_at(model, *given, way, at) for way in (None, size)]
                error = float(np.abs(both[0] - both[1]).max())
                flip = {"kind": kind, "image": begin + n, "position": at, "largest_difference_of_logits": error}
                found["flips"].append({**flip, "gap": gap(both[0], own, at)})
        click.echo(f"{sampling.noise} {kind}: {len(found['flips'])} of {found['images']} differ", err=True)
    return found


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--scenes", default=225, show_default=True, help="Held-out scenes of each of the nine kinds.")
@click.option("--size", default=8, show_default=True)
@click.option("--sampling", "samplings", multiple=True, help="Settings, as for --default of the exporter, by commas.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Of this kind only; may be repeated.")
@click.option("--threads", default=1, show_default=True)
def main(
    bundle: Path,
    output: Path,
    scenes: int,
    size: int,
    samplings: tuple[str, ...],
    kinds: tuple[str, ...],
    threads: int,
) -> None:
    model = editar_rt.load(bundle, threads=threads)
    document = []
    for text in samplings or ("noise=uniform", "noise=gumbel"):
        begun = time.process_time()
        sampling = replace(Sampling(), **parse_defaults(tuple(text.split(","))))  # type: ignore[arg-type]
        document.append(
            {**flips_of(model, sampling, size, scenes, kinds or KINDS), "cpu_seconds": time.process_time() - begun}
        )
        output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
