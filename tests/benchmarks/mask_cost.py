"""What a mask saves: time against its area, beside a full edit of the same run.

    python -m tests.benchmarks.mask_cost BUNDLE

Needs a bundle's transformer alone; weights may be random. The prefill, which a mask does not change, is not counted.
Not a test: pytest does not collect it.
"""

from __future__ import annotations

import json
import os
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

import editar_rt
from editar_rt.generation.decoding import decode
from editar_rt.generation.scheduler import Scheduler
from editar_rt.generation.sequence import Context, Inputs, Sequence
from editar_rt.images.masks import dilate

BLOCKS = 8  # places in the picture at which steps are timed when not all of them are


def square(grid: int, share: float) -> np.ndarray:
    """A square of cells in the middle, bool [grid, grid], as near as it comes to a share of them."""
    side = max(1, round(grid * share**0.5))
    begin = (grid - side) // 2
    cells = np.zeros((grid, grid), bool)
    cells[begin : begin + side, begin : begin + side] = True
    return cells


class Picture(NamedTuple):
    """A picture whose prefill has run."""

    scheduler: Scheduler
    context: Context
    inputs: Inputs
    sampling: editar_rt.Sampling


def seconds_of(picture: Picture, known: np.ndarray) -> list[tuple[int, float]]:
    """(position, seconds) of everything that the loop yields for one edit."""
    for row in picture.context:
        row.filled = min(row.filled, row.start)  # so that nothing of the last edit is used again
    sequence = Sequence(picture.context, picture.inputs, picture.sampling, 0, known, len(known))
    found, begun = [], time.perf_counter()
    for step in decode(picture.scheduler, [sequence]):
        now = time.perf_counter()
        found.append((step.position, now - begun))
        begun = now
    return found


def sampled_full(picture: Picture, tokens: np.ndarray, steps: int) -> float:
    """Seconds of a full edit from so many of its steps, in blocks spread evenly over the picture."""
    count, length = len(tokens), max(2, steps // BLOCKS + 1)
    free = np.zeros(count, bool)
    for begin in np.linspace(0, count - length, BLOCKS).astype(int):
        free[begin : begin + length] = True
    times = dict(seconds_of(picture, np.where(free, -1, tokens)))
    alone = [times[at] for at in range(1, count) if free[at] and free[at - 1]]  # the others bring a chunk with them
    return float(np.mean(alone)) * (count - 1)


def measure(
    editor: editar_rt.Editor, areas: tuple[float, ...], repeats: int, margin: int, sampled: int | None
) -> dict[str, Any]:
    """Medians over the repeats; every repeat times the full edit and all masks, and compares them with each other."""
    grid, model, rng = editor.grid, editor.model, np.random.default_rng(0)
    states = rng.standard_normal((1, model.text_tokens or 1, model.text_dim or 1)).astype(np.float32)
    tokens = rng.integers(0, model.vocab_size or 1, editor.picture_tokens, np.int32)
    sampling = editor.default_sampling
    (inputs,), scheduler = editor.inputs(states, tokens[None]), editor.scheduler(1, sampling.guided)
    picture = Picture(scheduler, scheduler.join(sampling.guided), inputs, sampling)
    scheduler.prefill(Sequence(picture.context, inputs, sampling, 0, None, len(tokens)))
    free = {area: dilate(square(grid, area), margin).ravel() for area in areas}
    seconds_of(picture, np.where(free[min(areas)], -1, tokens))  # to warm up
    full: list[float] = []
    masked: dict[float, list[float]] = {area: [] for area in areas}
    for repeat in range(repeats):
        if sampled is None:
            full.append(sum(s for _, s in seconds_of(picture, np.full_like(tokens, -1))))
        else:
            full.append(sampled_full(picture, tokens, sampled))
        click.echo(f"{repeat + 1}/{repeats}: all tokens {full[-1]:.2f} s", err=True)
        for area, cells in free.items():
            masked[area].append(sum(s for _, s in seconds_of(picture, np.where(cells, -1, tokens))))
            click.echo(f"{repeat + 1}/{repeats}: {area:.0%} {masked[area][-1]:.2f} s", err=True)
    return {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()} {platform.system()}",
        "backend": editor.backend.name,
        "precision": editor.bundle.manifest.precision,
        "picture_tokens": editor.picture_tokens,
        "rows": 2 if sampling.guided else 1,
        "mask_margin": margin,
        "repeats": repeats,
        "full": {"seconds": float(np.median(full)), "extrapolated_from_steps": sampled},
        "masks": [
            {
                "masked": float(square(grid, area).mean()),
                "drawn": float(free[area].mean()),
                "seconds": float(np.median(masked[area])),
                "of_full": float(np.median(np.divide(masked[area], full))),
            }
            for area in areas
        ],
    }


def plot(report: dict[str, Any], path: Path) -> None:
    """The curve as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    masks = report["masks"]
    axes.plot([m["masked"] for m in masks], [m["of_full"] for m in masks], "o-", label="measured, by the mask's area")
    axes.plot([m["drawn"] for m in masks], [m["of_full"] for m in masks], "s--", label="by the tokens drawn")
    axes.plot([0, 1], [0, 1], ":", color="grey", label="time = area")
    axes.set(xlabel="share of the cells", ylabel="share of a full edit's decode time", xlim=(0, 1), ylim=(0, None))
    axes.set_title(f"{report['picture_tokens']} tokens, {report['precision']}, {report['backend']}", fontsize=10)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The JSON to write.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw the curve here, a PNG.")
@click.option("--area", "areas", type=float, multiple=True, default=(0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0))
@click.option("--margin", type=click.IntRange(0), default=1, show_default=True, help="Cells drawn around the mask.")
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True)
@click.option("--sampled", type=click.IntRange(1), help="Time only so many steps of the full edit, and extrapolate.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores when not given.")
def main(
    bundle: Path,
    output: Path,
    picture: Path | None,
    areas: tuple[float, ...],
    margin: int,
    repeats: int,
    sampled: int | None,
    threads: int | None,
) -> None:
    """Time edits of BUNDLE under masks of several areas, and without one."""
    report = measure(editar_rt.load(bundle, "cpu", threads), areas, repeats, margin, sampled)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if picture is not None:
        plot(report, picture)
    click.echo("| mask | drawn | seconds | of a full edit |\n|---|---|---|---|")
    for m in report["masks"]:
        click.echo(f"| {m['masked']:.1%} | {m['drawn']:.1%} | {m['seconds']:.2f} | {m['of_full']:.2f} |")


if __name__ == "__main__":
    main()
