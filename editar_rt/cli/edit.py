"""`editar edit` and `editar text`."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from PIL import Image

from editar_rt.backends import host_device
from editar_rt.bundle.folder import Bundle
from editar_rt.cli.app import cli
from editar_rt.cli.jobs import (
    FolderWork,
    Job,
    edit_folder,
    edit_picture,
    make_folder,
    prepare_folder,
    targets_of,
)
from editar_rt.cli.options import (
    PATH,
    bundle_argument,
    bundle_files,
    device_options,
    json_option,
    numbers,
    progress,
    quality_option,
    sampling_options,
    speculate_option,
    start,
    task_option,
)
from editar_rt.cli.spread import spread_folder
from editar_rt.cli.streams import STREAM, Given, picture_digest, read_given, read_instructions
from editar_rt.cluster import require_ray
from editar_rt.errors import OptionError, TextStatesError
from editar_rt.files import check_outputs, is_file, is_folder
from editar_rt.generation.decoding import Progress
from editar_rt.images.fit import FITS, fit_square
from editar_rt.images.folders import list_pictures
from editar_rt.images.writing import save_picture
from editar_rt.observe.preview import check_animation, half_blocks
from editar_rt.observe.trace import check_name
from editar_rt.request import Preview, Request
from editar_rt.text.prompts import build_prompt
from editar_rt.text.states import load_states, save_states


def editing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `editar edit` only. Those named like fields of `Request` are passed to the request by name."""
    options = (
        click.option(
            "--then",
            multiple=True,
            metavar="TEXT",
            help="Further instruction, applied to the last result; may be repeated.",
        ),
        click.option("--instructions", type=PATH, help="Text file of instructions to apply in turn, one per line."),
        click.option(
            "--mask",
            type=PATH,
            help="Picture with the aspect ratio of IMAGE; only where it is white, IMAGE may change.",
        ),
        click.option("--box", callback=numbers(4), metavar="X,Y,W,H", help="Mask of one box, in pixels of IMAGE."),
        click.option(
            "--outpaint",
            callback=numbers(4),
            metavar="L,T,R,B",
            help="Extend IMAGE by L,T,R,B pixels at its left, top, right and bottom, then to a square.",
        ),
        click.option(
            "--mask-margin",
            type=int,
            default=1,
            show_default=True,
            help="Also sample the tokens within this distance of the mask.",
        ),
        click.option(
            "--no-composite",
            "composite",
            flag_value=False,
            default=True,
            help="Do not restore the pixels of IMAGE outside the mask.",
        ),
        click.option(
            "--fit",
            type=click.Choice(FITS),
            default="crop",
            show_default=True,
            help="Fit IMAGE to the model's square: crop to the middle, pad by repeating the border, or stretch.",
        ),
        click.option("--restore", is_flag=True, help="Paste the result back into IMAGE, at the size of IMAGE."),
        click.option("-n", "count", type=int, help="Number of variants (seeds SEED, SEED+1, …)."),
        click.option(
            "--preview", metavar="DIR|terminal", help="Write previews into a folder, or show them in the terminal."
        ),
        click.option(
            "--preview-share",
            type=float,
            default=0.1,
            show_default=True,
            help="Largest share of the decoding time that previews may take.",
        ),
        click.option(
            "--animate", type=PATH, help="Write an animation of the result appearing row by row (.png or .gif)."
        ),
        click.option(
            "--trace", type=PATH, help="Write a trace of the sampled tokens and their probabilities (.jsonl or .npz)."
        ),
        click.option(
            "--force", is_flag=True, help="When IMAGE is a folder, make every result again, even if OUT contains it."
        ),
        click.option(
            "--ray", "on_ray", is_flag=True, help="When IMAGE is a folder, edit it on all nodes of a Ray cluster."
        ),
        quality_option,
        click.option("--no-metadata", is_flag=True, help="Do not store the instruction and the settings in OUT."),
        click.option(
            "--text-states",
            type=PATH,
            help="File of text states (see editar text), or a bundle whose text encoder replaces BUNDLE's.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@bundle_argument
@click.argument("image", type=PATH)
@click.argument("instruction", required=False)
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    metavar="OUT",
    help="Picture to write (.png, .jpg, .webp, .avif or .tiff; - for stdout), or a folder if IMAGE is a folder.",
)
@task_option
@editing_options
@sampling_options
@speculate_option
@device_options
@json_option
def edit(
    bundle: Path,
    image: Path,
    instruction: str | None,
    output: Path,
    then: tuple[str, ...],
    instructions: Path | None,
    mask: Path | None,
    box: tuple[int, int, int, int] | None,
    outpaint: tuple[int, int, int, int] | None,
    count: int | None,
    preview: str | None,
    animate: Path | None,
    trace: Path | None,
    force: bool,
    on_ray: bool,
    quality: int | None,
    no_metadata: bool,
    text_states: Path | None,
    device: str,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Edit IMAGE as INSTRUCTION says.

    With a --task other than edit, IMAGE is the condition and INSTRUCTION describes the picture to make.

    If IMAGE is -, the picture is read from stdin. With -n, OUT is a contact sheet, and the variants are written next to
    it as OUT-SEED. With --then or --instructions, OUT is the last result; the earlier ones are OUT-1, OUT-2, ….

    IMAGE may be a folder; then OUT is a folder too. Results that the same command already made from the same pictures
    are kept.
    """
    words = _instructions(instruction, instructions, then)
    many = image != STREAM and is_folder(image)
    where = mask if mask is not None else box
    job = Job(Request(**options), words, where, outpaint, count, quality, not no_metadata)
    job.check(output, many)
    if on_ray:
        if not many:
            raise OptionError("--ray edits a folder of pictures; leave it out for one")
        require_ray("editar edit --ray")
    if sum(given is not None for given in (mask, box, outpaint)) > 1:
        raise OptionError("give one of --mask, --box and --outpaint")
    one_only = {"--trace": trace, "--animate": animate, "--preview": preview}
    if given := [name for name, value in one_only.items() if value is not None]:
        if many or len(words) > 1:
            raise OptionError(f"{' and '.join(given)} can be used with one picture and one instruction only")
        for path, check in ((trace, check_name), (animate, check_animation)):
            if path is not None:
                check(path)
    if text_states is not None and is_file(text_states) and len(words) > 1:
        raise OptionError(f"{text_states} contains the states of one instruction; give a bundle for several")
    opened = Bundle.open(bundle)
    job.sampling = job.request.sampling_over(opened.default_sampling)
    inputs = [mask, instructions, text_states, *bundle_files(opened)]
    source = Bundle.open(text_states) if text_states is not None and is_folder(text_states) else text_states
    if source is not None:
        job.text_states_from = source.fingerprint if isinstance(source, Bundle) else picture_digest(source)
    begin = functools.partial(_states_of, job, source, device, threads)
    if many:
        listing = list_pictures(image)
        targets = targets_of(listing, output)
        # The editor of this process only names settings if others do the work.
        editor = start(opened, host_device(opened.manifest) if on_ray else device, threads)
        work = prepare_folder(editor, job, targets, output, inputs, force)
        begin()
        _say_of_folder(listing.sentence, work)
        with progress("editing", "pictures" if on_ray else "tokens") as update:
            if on_ray:
                made = spread_folder(opened, job, work.todo, device, threads or 1, update)
            else:
                made = edit_folder(editor, job, work.todo, update)
        document: dict[str, Any] = {
            "output": str(output),
            "pictures": made,
            "skipped": [str(path) for path in work.done],
            "made_again": {str(path): reason for path, reason in work.stale.items()},
            "passed_over": [str(path) for path in listing.passed_over],
        }
        said = f"{output}  {len(work.todo)} pictures made, {len(work.done)} kept"
    else:
        written = [animate, trace, *_previews(preview, opened), *([] if output == STREAM else [output])]
        check_outputs([*written, *(job.beside(output))], [image, *inputs])
        picture = read_given(image)
        started = time.perf_counter()
        editor = start(opened, device, threads)
        begin()
        with _showing(preview, picture) as (update, on_preview):
            made = edit_picture(editor, job, picture, output, update, on_preview, trace, animate)
        document = made[-1] if len(made) == 1 else {"output": str(output), "pictures": made}
        said = f"{output}  ({time.perf_counter() - started:.2f} s)"
    click.echo(json.dumps(document) if as_json else said, err=output == STREAM)


def _instructions(first: str | None, file: Path | None, then: tuple[str, ...]) -> list[str]:
    """All instructions, in turn."""
    listed = [*([] if first is None else [first]), *([] if file is None else read_instructions(file)), *then]
    if not listed:
        raise OptionError("no instruction was given; give INSTRUCTION, or --instructions FILE with one per line")
    return listed


@contextlib.contextmanager
def _showing(preview: str | None, given: Given) -> Iterator[tuple[Progress, Preview | None]]:
    """Callbacks for progress and previews: a bar and a folder, or both in the terminal."""
    if preview == "terminal":
        with _terminal(given.image) as callbacks:
            yield callbacks
        return
    with progress("editing", "tokens") as update:
        if preview is None:
            yield update, None
            return
        folder = Path(preview)
        make_folder(folder)
        yield update, lambda picture, done, total: save_picture(picture, _preview_path(folder, done, total))


def _preview_path(folder: Path, done: int, total: int) -> Path:
    return folder / f"{done:0{len(str(total))}d}.png"


def _previews(preview: str | None, bundle: Bundle) -> list[Path]:
    """Existing previews, which may be overwritten."""
    total = bundle.manifest.model.picture_tokens
    if preview in (None, "terminal") or total is None:
        return []
    paths = [_preview_path(Path(preview), done, total) for done in range(total + 1)]
    return [path for path in paths if is_file(path)]


def _say_of_folder(passed_over: str | None, work: FolderWork) -> None:
    """Before the work, report the files that are skipped and the results that are made again."""
    if passed_over is not None:
        click.echo(f"editar: {passed_over}", err=True)
    for path, reason in work.stale.items():
        click.echo(f"editar: {path} is made again: {reason}", err=True)


@contextlib.contextmanager
def _terminal(given: Image.Image) -> Iterator[tuple[Progress, Preview]]:
    """The picture in the terminal, at first the input, with the number of tokens that are done."""
    from rich.console import Console, Group
    from rich.live import Live

    console = Console(stderr=True)
    if not console.is_terminal:
        raise OptionError("--preview terminal needs a terminal on stderr; give a folder instead")
    columns = max(8, min(64, console.width, 2 * (console.height - 2)))
    shown = [half_blocks(fit_square(given, min(given.size)), columns)]
    with Live(shown[0], console=console, transient=True) as live:

        def update(done: int, total: int) -> None:
            live.update(Group(shown[0], f"{done}/{total} tokens"))

        def show(picture: Image.Image, done: int, total: int) -> None:
            shown[0] = half_blocks(picture, columns)

        yield update, show


def _states_of(job: Job, source: Bundle | Path | None, device: str, threads: int | None) -> None:
    """Set a job's text states, from a file or from the encoder of another bundle, which is closed again."""
    if source is None:
        job.text_states = [None] * len(job.instructions)
    elif isinstance(source, Bundle):
        encoder = start(source, device, threads)
        job.text_states = [encoder.encode_text([words], job.request.task) for words in job.instructions]
    else:
        job.text_states = [load_states(source)]


@cli.command()
@bundle_argument
@click.argument("instruction")
@click.option("-o", "--output", type=PATH, required=True, help="File to write (.npz).")
@task_option
@device_options
def text(bundle: Path, instruction: str, output: Path, task: str, device: str, threads: int | None) -> None:
    """Run the text encoder of BUNDLE on INSTRUCTION. The output is a file for editar edit --text-states."""
    opened = Bundle.open(bundle)
    check_outputs([output], bundle_files(opened), TextStatesError)
    states = start(opened, device, threads).encode_text([instruction], task)
    save_states(output, states, build_prompt(task, instruction))
    click.echo(output)
