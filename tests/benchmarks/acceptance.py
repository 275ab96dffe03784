"""Passes a picture by task, chunk and noise, on held-out scenes of the demo's world.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.acceptance engines/demo --pictures 100 > acceptance.json

`editar acceptance` for pictures that are drawn here instead of read; the groups are the kinds of edits and conditions.
Times are CPU seconds of the process, on one thread. Not a test: pytest does not collect it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import click
from PIL import Image

import editar_rt
from editar_rt.generation.noise import NOISES
from editar_rt.measure.acceptance import SIZES, Case, draw_plot, measure, report
from training.data.edits import EDIT_KINDS, TRANSLATION_TASKS, held_out

KINDS = (*EDIT_KINDS, *TRANSLATION_TASKS)


def scenes(kinds: tuple[str, ...], count: int, side: int) -> list[Case]:
    """The first held-out scenes of every kind, which training never saw."""
    return [
        Case(Image.fromarray(example.condition(side)), example.text, example.task, kind)
        for kind in kinds
        for example in held_out(kind, count)
    ]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--pictures", type=click.IntRange(1), default=100, show_default=True, help="Scenes of a kind.")
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, default=KINDS)
@click.option("--size", "sizes", type=int, multiple=True, default=SIZES, show_default=True)
@click.option("--noise", "noises", type=click.Choice(NOISES), multiple=True, default=NOISES, show_default=True)
@click.option("--temperature", type=float, help="Instead of the bundle's.")
@click.option("--greedy", is_flag=True)
@click.option("--plot", type=click.Path(path_type=Path), help="As of editar acceptance.")
def main(
    bundle: Path,
    pictures: int,
    kinds: tuple[str, ...],
    sizes: tuple[int, ...],
    noises: tuple[str, ...],
    temperature: float | None,
    greedy: bool,
    plot: Path | None,
) -> None:
    """Print a JSON document: tokens a pass by noise and size, for all scenes and by kind."""
    editor = editar_rt.load(bundle, "cpu", 1)
    sampling = dataclasses.replace(editor.default_sampling, greedy=greedy)
    if temperature is not None:
        sampling = dataclasses.replace(sampling, temperature=temperature)
    cases = scenes(kinds, pictures, editor.image_size)
    made = list(measure(editor, cases, sampling, sizes, noises, clock=time.process_time))
    document = report(editor, made, sampling)
    if plot is not None:
        draw_plot(document, plot)
    click.echo(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
