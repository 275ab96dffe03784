"""Options and checks that several commands share."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from editar_rt.backends import DEVICES, Settings, make_backend
from editar_rt.backends.kept_folder import OFF
from editar_rt.backends.kept_folder import VARIABLE as CACHE
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.manifest import MANIFEST_NAME
from editar_rt.editor import Editor
from editar_rt.generation.noise import NOISES
from editar_rt.generation.sampling import Sampling
from editar_rt.images.writing import DEFAULT_QUALITY
from editar_rt.text.prompts import TASKS

F = TypeVar("F", bound=Callable[..., Any])
BUNDLES = "the bundle's"
PATH = click.Path(path_type=Path)


def numbers(count: int) -> Callable[[Any, click.Parameter, str | None], tuple[int, ...] | None]:
    """A callback that parses `count` integers separated by commas."""

    def read(context: Any, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
        if value is None:
            return None
        try:
            parsed = tuple(int(part) for part in value.split(","))
        except ValueError:
            parsed = ()
        if len(parsed) != count:
            raise click.BadParameter(f"must be {count} integers separated by commas, got {value!r:.60}")
        return parsed

    return read


def _interval(context: Any, parameter: click.Parameter, value: str | None) -> int | tuple[int, ...] | None:
    if value is None or "," in value:
        return numbers(2)(context, parameter, value)
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"must be an integer, or two separated by a comma, got {value!r:.60}") from None


def sampling_options(command: F) -> F:
    """One option per field of `Sampling`; without it, the bundle's default applies."""
    options = (
        click.option("--seed", type=int, show_default=BUNDLES, help="Random seed, 0 or more."),
        click.option(
            "--cfg-scale",
            show_default=BUNDLES,
            help="Guidance scale, or a schedule such as linear:1,5 or cosine:5,1; guidance is off at 1 and below.",
        ),
        click.option(
            "--cfg-interval",
            callback=_interval,
            show_default=BUNDLES,
            help="Last decode step with guidance (-1: all steps), or START,STOP to guide tokens START to STOP-1.",
        ),
        click.option("--temperature", type=float, show_default=BUNDLES, help="Sampling temperature, above 0."),
        click.option(
            "--top-k", type=int, show_default=BUNDLES, help="Sample from the K most likely tokens; 0 turns this off."
        ),
        click.option(
            "--top-p",
            type=float,
            show_default=BUNDLES,
            help="Sample from the most likely tokens that sum to this probability; 1 turns this off.",
        ),
        click.option("--greedy", is_flag=True, default=None, help="Always take the most likely token."),
        click.option(
            "--noise",
            type=click.Choice(NOISES),
            show_default=BUNDLES,
            help="How a seed draws tokens. Both kinds give the same distribution; gumbel suits --speculate.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _speculate(context: Any, parameter: click.Parameter, value: str | None) -> int | str | None:
    if value is None or value == "auto":
        return value
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"must be auto or an even number of positions, got {value!r:.60}") from None


speculate_option = click.option(
    "--speculate",
    callback=_speculate,
    metavar="auto|S",
    help="Draft and verify S positions (an even number) in one pass of the decoder; auto chooses S while it runs.",
)


def device_options(command: F) -> F:
    # The option is short for the environment variable, which is the only place that stores the setting.
    command = click.option(
        "--no-cache",
        is_flag=True,
        expose_value=False,
        callback=_refuse_cache,
        help=f"Do not store prepacked weights on disk; same as {CACHE}={OFF}.",
    )(command)
    command = click.option(
        "--threads", type=click.IntRange(1), show_default="the cores that this process may use", help="CPU threads."
    )(command)
    return click.option(
        "--device",
        type=click.Choice(DEVICES),
        default="auto",
        show_default=True,
        help="Device to run on; emulated runs TensorRT's bundles on the CPU.",
    )(command)


def _refuse_cache(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given:
        os.environ[CACHE] = OFF


quality_option = click.option(
    "--quality",
    type=click.IntRange(1, 100),
    help=f"Quality of a .jpg, .webp or .avif (default {DEFAULT_QUALITY}).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document as the last line.")
task_option = click.option(
    "--task", type=click.Choice(TASKS), default="edit", show_default=True, help="Task to perform."
)
bundle_argument = click.argument("bundle", type=PATH)


def chosen_sampling(defaults: Sampling, options: dict[str, Any]) -> Sampling:
    return dataclasses.replace(defaults, **{k: v for k, v in options.items() if v is not None})


def check_sampling(options: dict[str, Any]) -> None:
    """Reject bad values before the bundle is opened."""
    chosen_sampling(Sampling(), options)


def bundle_files(bundle: Bundle) -> list[Path]:
    """The files of a bundle, which no output may overwrite."""
    return [bundle.folder / name for name in (MANIFEST_NAME, *bundle.manifest.files)]


def start(bundle: Bundle, device: str, threads: int | None) -> Editor:
    """An editor of a bundle that is already open."""
    return Editor(bundle, make_backend(bundle, device, Settings(threads)))


@contextlib.contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with its rate on a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[unit]}  {task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, unit=unit, rate="")
        first: list[float] = []

        def update(done: int, total: int) -> None:
            now = time.perf_counter()
            first.append(now) if not first else None
            # The first unit includes the prefill or the warm-up, so the rate is counted from its end.
            rate = f"{(done - 1) / (now - first[0]):.1f} {unit}/s" if done > 1 else ""
            bar.update(task, completed=done, total=total, rate=rate)

        yield update


def part_of(on_progress: Callable[[int, int], None], part: int, parts: int) -> Callable[[int, int], None]:
    """The progress of one of several equal parts, reported as progress of the whole."""
    return lambda done, total: on_progress(part * total + done, parts * total)
