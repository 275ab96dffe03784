"""`editar acceptance`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import click

from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.samples import parse_samples
from editar_rt.cli.app import cli
from editar_rt.cli.options import (
    PATH,
    bundle_argument,
    bundle_files,
    check_sampling,
    chosen_sampling,
    device_options,
    json_option,
    progress,
    sampling_options,
    start,
    task_option,
)
from editar_rt.cli.streams import read_instructions
from editar_rt.errors import OptionError
from editar_rt.files import check_outputs, is_folder
from editar_rt.generation.noise import NOISES
from editar_rt.images.folders import list_pictures
from editar_rt.measure.acceptance import SIZES, Case, draw_plot, measure, printed, report
from editar_rt.measure.profile import check_chart


@cli.command()
@bundle_argument
@click.argument("pictures", type=PATH)
@click.argument("instructions", type=PATH)
@click.option(
    "--speculate",
    "sizes",
    type=click.IntRange(2),
    multiple=True,
    default=SIZES,
    show_default=True,
    help="Positions of a pass, an even number; may be repeated.",
)
@click.option("-n", "count", type=click.IntRange(1), show_default="all", help="Number of pictures to make, at most.")
@click.option("--plot", type=PATH, help="Write a plot of tokens a pass by size (.png or .svg).")
@task_option
@sampling_options
@device_options
@json_option
def acceptance(
    bundle: Path,
    pictures: Path,
    instructions: Path,
    sizes: tuple[int, ...],
    count: int | None,
    plot: Path | None,
    task: str,
    device: str,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure how many tokens a pass of BUNDLE takes when drafts are verified (--speculate), and what that saves.

    PICTURES is a picture or a folder, INSTRUCTIONS a text file with one instruction per line: the first line goes with
    the first picture by name, and so on; the shorter list starts again. Or it is a samples.json, which names pictures
    of the folder with tasks and instructions. Each picture is made in single steps and in chunks of every size, with
    both kinds of noise if --noise does not choose one.
    """
    check_sampling(options)
    listed = _listed(pictures, instructions, task)[:count]
    opened = Bundle.open(bundle)
    if plot is not None:
        check_chart(plot)
        check_outputs([plot], [instructions, *(each.picture for each in listed), *bundle_files(opened)])
    noises = NOISES if options["noise"] is None else (options["noise"],)
    sampling = chosen_sampling(opened.default_sampling, options)
    cases = [Case(each.picture, each.instruction, each.task, each.task) for each in listed]
    editor = start(opened, device, threads)
    with progress("measuring", "pictures") as update:
        made = list(measure(editor, cases, sampling, sorted(set(sizes)), noises, update))
    document = report(editor, made, sampling)
    if plot is not None:
        draw_plot(document, plot)
    click.echo(json.dumps(document) if as_json else printed(document))


class _Listed(NamedTuple):
    picture: Path
    task: str
    instruction: str


def _listed(pictures: Path, instructions: Path, task: str) -> list[_Listed]:
    """Pictures with their instructions.

    Raises:
        OptionError: there are none, or a listed picture is not in the folder.
        PictureError: the folder cannot be read.
        BundleError: a samples.json is not a list of samples.
    """
    lines = read_instructions(instructions)
    if instructions.suffix == ".json":
        folder = pictures if is_folder(pictures) else pictures.parent
        samples = parse_samples("\n".join(lines), instructions)
        listed = [_Listed(folder / Path(each.picture).name, each.task, each.instruction) for each in samples]
        if missing := [each.picture for each in listed if not each.picture.is_file()]:
            raise OptionError(
                f"{instructions} lists {missing[0]}, which does not exist; give the folder of its pictures"
            )
        return listed
    found = list_pictures(pictures).pictures if is_folder(pictures) else [pictures]
    if not found or not lines:
        what = f"no picture in {pictures}" if not found else f"no instruction in {instructions}"
        raise OptionError(f"there is {what}; give pictures, and a text file with one instruction per line")
    longest = max(len(found), len(lines))
    return [_Listed(found[n % len(found)], task, lines[n % len(lines)]) for n in range(longest)]
