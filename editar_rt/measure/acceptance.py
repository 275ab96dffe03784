"""How many tokens a pass takes when drafted tokens are verified: for a bundle's weights and given pictures.

A pass is one chunk of S positions of a picture. It takes 1 to S tokens: those that were drafted right, and the one
after them. How many depends on weights and pictures, so it has to be measured: each picture is made in single steps,
then in chunks of every size, with every noise. The tokens of each way are compared with those of single steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from editar_rt.edit import Source
from editar_rt.editor import Editor
from editar_rt.errors import PictureError
from editar_rt.files import placing
from editar_rt.generation.noise import NOISES
from editar_rt.generation.sampling import Sampling
from editar_rt.generation.scheduler import Scheduler
from editar_rt.generation.sequence import Inputs, Sequence
from editar_rt.generation.strategy import Jacobi
from editar_rt.images.pixels import Picture
from editar_rt.machine import description
from editar_rt.measure.profile import check_chart
from editar_rt.text.prompts import build_prompt
from editar_rt.version import __version__

SIZES = (2, 4, 8, 16, 32)
STEP = 1  # the size of single steps


class Case(NamedTuple):
    """A picture to make."""

    image: Picture
    instruction: str
    task: str = "edit"
    group: str = ""
    """Cases of one group are also reported together."""


class Made(NamedTuple):
    """A picture's tokens, made in one way."""

    group: str
    noise: str
    size: int
    """S, or `STEP`."""
    passes: int
    """Runs of the decoder after the prefill."""
    drawn: int
    """Tokens that they took; the picture's first token follows from the prefill."""
    seconds: float
    """Of the passes, all in all."""
    equal: bool
    """Whether the tokens are those of single steps."""


def measure(
    editor: Editor,
    cases: Several[Case],
    sampling: Sampling,
    sizes: Several[int] = SIZES,
    noises: Several[str] = NOISES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Made]:
    """Make the pictures of all cases in every way; the n-th case has the sampling's seed plus n.

    The ways take turns at each picture, so that what else the machine does touches all of them alike.

    Args:
        on_progress: gets the numbers of pictures made and in all.
        clock: returns seconds.

    Raises:
        OptionError: the decoder has no chunks of a size.
        PictureError: a picture cannot be read.
    """
    scheduler = editor.scheduler(1, sampling.guided)
    ways: tuple[int | None, ...] = (None, *sizes)
    for size in ways:  # reject a wrong size before the work
        scheduler.speculation(size, Jacobi(np.zeros(editor.picture_tokens, np.int32)))
    context, count = scheduler.join(sampling.guided), editor.picture_tokens
    done, total = 0, len(cases) * len(noises) * len(ways)

    def sequence_of(inputs: Inputs, picture: NDArray[np.int32], own: Sampling, size: int | None) -> Sequence:
        speculation = scheduler.speculation(size, Jacobi(picture))
        return Sequence(context, inputs, own, own.seed, None, count, speculation)

    for number, case in enumerate(cases):
        picture = Source(editor, case.image).tokens
        states = editor.encode_text([build_prompt(case.task, case.instruction)])
        (inputs,) = editor.inputs(states, picture[None])
        if number == 0:  # the first run of every shape takes longer
            for size in ways:
                warming = sequence_of(inputs, picture, sampling, size)
                scheduler.prefill(warming)
                for _ in range(3):
                    scheduler.step([warming])
        for noise in noises:
            own = replace(sampling, noise=noise, seed=(sampling.seed + number) % 2**64)
            steps: np.ndarray | None = None
            for size in ways:
                sequence = sequence_of(inputs, picture, own, size)
                seconds = seconds_of_passes(scheduler, sequence, clock)
                steps = sequence.tokens if steps is None else steps
                equal = np.array_equal(steps, sequence.tokens)
                yield Made(case.group, noise, size or STEP, sequence.passes, len(steps) - 1, seconds, equal)
                done += 1
                on_progress(done, total)


def seconds_of_passes(scheduler: Scheduler, sequence: Sequence, clock: Callable[[], float]) -> float:
    """Finish a sequence. Returns the time of its passes, without the prefill and the first token that follows it."""
    scheduler.prefill(sequence)
    scheduler.step([sequence])
    begun = clock()
    while not sequence.finished:
        scheduler.step([sequence])
    return clock() - begun


def report(editor: Editor, made: Several[Made], sampling: Sampling) -> dict[str, Any]:
    """A JSON document: tokens a pass by noise and size, over all pictures and by group."""
    groups = sorted({each.group for each in made} - {""})
    document: dict[str, Any] = {
        "version": __version__,
        "machine": description(),
        "backend": editor.backend.name,
        "bundle": editor.bundle.fingerprint,
        "precision": editor.bundle.manifest.precision,
        "kv_cache": editor.bundle.manifest.kv_cache,
        "picture_tokens": editor.picture_tokens,
        "sampling": {name: value for name, value in sampling.settings().items() if name not in ("seed", "noise")},
        "acceptance": _by_noise(made),
    }
    if len(groups) > 1:
        document["by_group"] = {group: _by_noise([m for m in made if m.group == group]) for group in groups}
    return document


def _by_noise(made: Several[Made]) -> dict[str, dict[int, dict[str, Any]]]:
    """Noise → size → what the pictures took."""
    ways: dict[tuple[str, int], list[Made]] = {}
    for each in made:
        ways.setdefault((each.noise, each.size), []).append(each)
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for (noise, size), those in ways.items():
        steps = ways[noise, STEP]
        passes = np.asarray([each.passes for each in those], float)
        faster = [step.seconds / each.seconds for step, each in zip(steps, those) if each.seconds > 0]
        found.setdefault(noise, {})[size] = {
            "pictures": len(those),
            "passes": float(passes.mean()),
            "passes_deviation": float(passes.std(ddof=1)) if len(those) > 1 else None,
            "tokens_per_pass": sum(each.drawn for each in those) / max(float(passes.sum()), 1.0),
            "least_tokens_per_pass": min(each.drawn / max(each.passes, 1) for each in those),
            "most_tokens_per_pass": max(each.drawn / max(each.passes, 1) for each in those),
            "times_as_fast": float(np.median(faster)) if faster else None,
            "equal_pictures": sum(each.equal for each in those),
        }
    return found


def printed(document: dict[str, Any]) -> str:
    """The report as a table."""
    lines = ["noise     S   passes   tokens/pass (least to most)   times as fast   same tokens as single steps"]
    for noise, sizes in document["acceptance"].items():
        for size, found in sizes.items():
            spread = f"({found['least_tokens_per_pass']:.2f} to {found['most_tokens_per_pass']:.2f})"
            lines.append(
                f"{noise:7} {size:3} {found['passes']:8.1f}   {found['tokens_per_pass']:5.2f} {spread:22}"
                f"{found['times_as_fast']:12.2f}   {found['equal_pictures']:15} of {found['pictures']}"
            )
    return "\n".join(lines)


def draw_plot(document: dict[str, Any], path: Path) -> None:
    """Write a plot of tokens a pass by size, and of times as fast, a line per noise; atomically."""
    check_chart(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    tokens, speed = figure.subplots(1, 2)
    for noise, by_size in document["acceptance"].items():
        sizes = [int(size) for size in by_size]

        def column(name: str, by_size: dict[Any, Any] = by_size) -> list[float]:
            return [found[name] for found in by_size.values()]

        tokens.plot(sizes, column("tokens_per_pass"), marker="o", label=noise)
        spread = [column(f"{which}_tokens_per_pass") for which in ("least", "most")]
        tokens.fill_between(sizes, *spread, alpha=0.15)
        speed.plot(sizes, column("times_as_fast"), marker="o", label=noise)
    speed.axhline(1, color="black", linewidth=1, linestyle=":")
    for axes, title in (
        (tokens, "tokens a pass (shaded: range of pictures)"),
        (speed, "times as fast as single steps"),
    ):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("positions of a pass, S")
        axes.set_ylim(bottom=0)
        axes.set_title(title)
        axes.legend(frameon=False)
    with placing(path, PictureError) as partial:
        figure.savefig(partial, dpi=150, format=path.suffix[1:])
