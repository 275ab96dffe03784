"""The speed of speculation at a given acceptance, whole loop: for weights that are random.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.forced_acceptance BUNDLE --tokens-per-pass 8:3.96

Needs a bundle's transformer alone. Each size runs with two drafters: Jacobi, at the weights' own acceptance, and one
that knows the tokens of single steps and is wrong so often that a pass takes the given number of tokens. Single steps
and chunks take turns over the same positions in the middle of a picture. CPU seconds of the process. Not a test: pytest
does not collect it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np

import editar_rt
from editar_rt.generation.noise import NOISES
from editar_rt.generation.sequence import Sequence
from editar_rt.generation.strategy import Drafter, Jacobi
from editar_rt.machine import description
from editar_rt.measure.acceptance import seconds_of_passes

DEMOS = ("2:1.55", "4:2.47", "8:3.96", "16:6.07")


class Forced:
    """Drafts the right token with a given probability, anew in every pass, and another one otherwise."""

    def __init__(self, right: np.ndarray, chance: float, seed: int) -> None:
        self._right, self._chance, self._rng = right, chance, np.random.default_rng(seed)

    def draft(self, start: int, stop: int) -> np.ndarray:
        right = self._right[start:stop]
        return np.where(self._rng.random(len(right)) < self._chance, right, (right == 0).astype(np.int32))

    def saw(self, position: int, drawn: np.ndarray) -> None:
        pass


def chance_for(size: int, tokens: float) -> float:
    """The chance of a draft to be right with which a pass of `size` positions takes this many tokens on average."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**k for k in range(size)) < tokens else (low, middle)
    return low


def pairs(context: Any, parameter: click.Parameter, values: tuple[str, ...]) -> dict[int, float]:
    try:
        return {int(size): float(tokens) for size, tokens in (value.split(":") for value in values)}
    except ValueError:
        raise click.BadParameter("must be SIZE:TOKENS, for example 8:3.96") from None


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--tokens-per-pass", "wanted", multiple=True, default=DEMOS, show_default=True, callback=pairs)
@click.option("--tokens", type=click.IntRange(2), default=48, show_default=True, help="To sample in every way.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--noise", type=click.Choice(NOISES), default="gumbel", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(bundle: Path, wanted: dict[int, float], tokens: int, repeats: int, noise: str, threads: int) -> None:
    """Print a JSON document: by size and drafter, tokens a pass and times as fast as single steps."""
    editor = editar_rt.load(bundle, "cpu", threads)
    model, count, rng = editor.model, editor.picture_tokens, np.random.default_rng(0)
    sampling = dataclasses.replace(editor.default_sampling, noise=noise)
    states = rng.standard_normal((1, model.text_tokens or 1, model.text_dim or 1)).astype(np.float32)
    picture, known = rng.integers(0, model.vocab_size or 1, (2, count), np.int32)
    begin = (count - tokens) // 2
    known[begin : begin + tokens] = -1
    (inputs,) = editor.inputs(states, picture[None])
    scheduler = editor.scheduler(1, sampling.guided)
    context = scheduler.join(sampling.guided)

    def run(seed: int, size: int | None, drafter: Drafter) -> tuple[Sequence, float]:
        speculation = scheduler.speculation(size, drafter)
        sequence = Sequence(context, inputs, sampling, seed, known, count, speculation)
        return sequence, seconds_of_passes(scheduler, sequence, time.process_time)

    found: dict[tuple[int, str], list[tuple[float, float, bool]]] = {}
    steps_ms = []
    run(0, None, Jacobi(picture))  # warms up
    for seed in range(repeats):
        plain, seconds = run(seed, None, Jacobi(picture))
        steps_ms.append(1e3 * seconds / plain.passes)
        for size, rate in wanted.items():
            forced = Forced(plain.tokens, chance_for(size, rate), seed)
            for name, drafter in (("own", Jacobi(picture)), ("forced", forced)):
                sequence, took = run(seed, size, drafter)
                equal = np.array_equal(sequence.tokens, plain.tokens)
                found.setdefault((size, name), []).append((plain.passes / sequence.passes, seconds / took, equal))
    document = {
        "date": date.today().isoformat(),
        "machine": description(),
        "backend": editor.backend.name,
        "bundle": bundle.name,
        "noise": noise,
        "threads": threads,
        "tokens": tokens,
        "step_ms": float(np.median(steps_ms)),
        "by_size": [
            {
                "size": size,
                "drafter": name,
                "tokens_per_pass": float(np.mean([each[0] for each in runs])),
                "times_as_fast": [float(f([each[1] for each in runs])) for f in (np.median, np.min, np.max)],
                "equal": sum(each[2] for each in runs),
                "runs": len(runs),
            }
            for (size, name), runs in found.items()
        ],
    }
    click.echo(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
