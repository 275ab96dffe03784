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
from editar_rt.backends.ort.prepacked import OFF
from editar_rt.backends.ort.prepacked import VARIABLE as CACHE
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.manifest import MANIFEST_NAME
from editar_rt.editor import Editor
from editar_rt.generation.sampling import Sampling
from editar_rt.images.writing import DEFAULT_QUALITY
from editar_rt.text.prompts import TASKS

F = TypeVar("F", bound=Callable[..., Any])


def numbers(count: int) -> Callable[[Any, click.Parameter, str | None], tuple[int, ...] | None]:
    """A callback that reads so many whole numbers with commas between them."""

    def read(context: Any, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
        if value is None:
            return None
        try:
            found = tuple(int(part) for part in value.split(","))
        except ValueError:
            found = ()
        if len(found) != count:
            raise click.BadParameter(f"must be {count} whole numbers with commas between them, got {value!r:.60}")
        return found

    return read


def _interval(context: Any, parameter: click.Parameter, value: str | None) -> int | tuple[int, ...] | None:
    if value is None or "," in value:
        return numbers(2)(context, parameter, value)
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(
            f"must be a whole number, or two with a comma between them, got {value!r:.60}"
        ) from None


def sampling_options(command: F) -> F:
    """One option a field of `Sampling`; what is not given stays as the bundle has it."""
    options = (
        click.option("--seed", type=int, help="Random seed, 0 or more."),
        click.option(
            "--cfg-scale",
            help="Guidance scale, or a schedule such as linear:1,5 or cosine:5,1; 1 and below go without.",
        ),
        click.option(
            "--cfg-interval",
            callback=_interval,
            help="Last step with guidance, -1 for all; or START,STOP, the tokens with guidance.",
        ),
        click.option("--temperature", type=float, help="Above 0."),
        click.option("--top-k", type=int, help="Keep the k likeliest tokens; 0: all."),
        click.option("--top-p", type=float, help="Keep the likeliest tokens up to this probability; 1: all."),
        click.option("--greedy", is_flag=True, default=None, help="Always take the likeliest token."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def device_options(command: F) -> F:
    # The environment variable is the setting's one home; the option is short for it.
    command = click.option(
        "--no-cache",
        is_flag=True,
        expose_value=False,
        callback=_refuse_cache,
        help=f"Do not keep rearranged weights on disk; as {CACHE}={OFF}.",
    )(command)
    command = click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores when not given.")(command)
    return click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)(command)


def _refuse_cache(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given:
        os.environ[CACHE] = OFF


quality_option = click.option(
    "--quality",
    type=click.IntRange(1, 100),
    help=f"Of a .jpg, .webp or .avif; {DEFAULT_QUALITY} when not given.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document as the last line.")
task_option = click.option("--task", type=click.Choice(TASKS), default="edit", show_default=True)
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))


def chosen_sampling(defaults: Sampling, options: dict[str, Any]) -> Sampling:
    return dataclasses.replace(defaults, **{k: v for k, v in options.items() if v is not None})


def check_sampling(options: dict[str, Any]) -> None:
    """Refuse bad values before the bundle is opened."""
    chosen_sampling(Sampling(), options)


def bundle_files(bundle: Bundle) -> list[Path]:
    """The files that a bundle consists of, which no output may be written over."""
    return [bundle.folder / name for name in (MANIFEST_NAME, *bundle.manifest.files)]


def start(bundle: Bundle, device: str, threads: int | None) -> Editor:
    """An editor of a bundle that was opened for its settings and checks before."""
    return Editor(bundle, make_backend(bundle, device, Settings(threads)))


@contextlib.contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with units a second on a terminal; nothing in a pipe."""
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
            # The first unit holds the prefill or the warm-up: the rate counts from its end.
            rate = f"{(done - 1) / (now - first[0]):.1f} {unit}/s" if done > 1 else ""
            bar.update(task, completed=done, total=total, rate=rate)

        yield update
