"""`editar edit` and `editar text`."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from PIL import Image

import editar_rt
from editar_rt.cli.app import cli
from editar_rt.cli.jobs import Job, edit_folder, edit_picture, pictures_of, prepare_folder
from editar_rt.cli.options import (
    bundle_argument,
    check_apart,
    check_sampling,
    chosen_sampling,
    device_options,
    json_option,
    numbers,
    progress,
    sampling_options,
    task_option,
)
from editar_rt.errors import OptionError, PictureError
from editar_rt.files import check_writable, is_file, is_folder
from editar_rt.generation.decoding import Progress
from editar_rt.images.pixels import fit_square, open_picture
from editar_rt.observe.preview import check_animation, half_blocks
from editar_rt.observe.sheets import save_png
from editar_rt.observe.trace import check_name
from editar_rt.results import Preview
from editar_rt.text.prompts import build_prompt

MAX_INSTRUCTIONS_BYTES = 1 << 20
FILE = click.Path(path_type=Path)


def editing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What only `editar edit` takes."""
    options = (
        click.option("--then", multiple=True, metavar="TEXT", help="Then this, on the last result; may be repeated."),
        click.option("--instructions", type=FILE, help="Instructions to follow in turn from a text file, one a line."),
        click.option("--mask", type=FILE, help="A picture of the same aspect: where it is white, IMAGE may change."),
        click.option("--box", callback=numbers(4), metavar="X,Y,W,H", help="A mask of one box, in IMAGE's pixels."),
        click.option(
            "--outpaint",
            callback=numbers(4),
            metavar="L,T,R,B",
            help="Paint so many pixels around IMAGE, and what then lacks of a square.",
        ),
        click.option("--mask-margin", type=int, default=1, show_default=True, help="Tokens drawn around the mask."),
        click.option("--no-composite", is_flag=True, help="Do not put the result back into IMAGE by the mask."),
        click.option("-n", "count", type=int, help="Make so many variants, with the seeds from --seed on."),
        click.option("--preview", metavar="DIR|terminal", help="Show the picture while it is being made."),
        click.option(
            "--preview-share", type=float, default=0.1, show_default=True, help="Of the steps' time, for previews."
        ),
        click.option("--animate", type=FILE, help="Write the edit appearing row by row, an animated .png or .gif."),
        click.option("--trace", type=FILE, help="Write what was drawn and from what, .jsonl or .npz."),
        click.option("--force", is_flag=True, help="With a folder: make again what OUT has already."),
        click.option(
            "--text-states",
            type=FILE,
            help="Instead of BUNDLE's text encoder: a file of editar text, or another bundle whose encoder is used.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@bundle_argument
@click.argument("image", type=FILE)
@click.argument("instruction", required=False)
@click.option(
    "-o",
    "--output",
    type=FILE,
    required=True,
    metavar="OUT",
    help="The PNG to write; with a folder as IMAGE, a folder.",
)
@task_option
@editing_options
@sampling_options
@device_options
@json_option
def edit(
    bundle: Path,
    image: Path,
    instruction: str | None,
    output: Path,
    task: str,
    then: tuple[str, ...],
    instructions: Path | None,
    mask: Path | None,
    box: tuple[int, int, int, int] | None,
    outpaint: tuple[int, int, int, int] | None,
    mask_margin: int,
    no_composite: bool,
    count: int | None,
    preview: str | None,
    preview_share: float,
    animate: Path | None,
    trace: Path | None,
    force: bool,
    text_states: Path | None,
    device: str,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Edit IMAGE as INSTRUCTION says; with --task, make a picture from a condition IMAGE and a description.

    With -n, OUT is a contact sheet and the variants lie beside it as OUT-SEED.png. With --then or --instructions, OUT
    is the last result and those before it are OUT-1.png, OUT-2.png, …. IMAGE may be a folder; OUT is one then, and what
    it has already is not made again.
    """
    check_sampling(options)
    words = _instructions(instruction, instructions, then)
    many = is_folder(image)
    one_only = {"--trace": trace, "--animate": animate, "--preview": preview}
    job = Job(
        task, words, mask if mask is not None else box, outpaint, mask_margin, not no_composite, count, preview_share
    )
    job.check()
    if sum(given is not None for given in (mask, box, outpaint)) > 1:
        raise OptionError("give one of --mask, --box and --outpaint")
    if given := [name for name, value in one_only.items() if value is not None]:
        if many or len(words) > 1:
            raise OptionError(f"{' and '.join(given)}: one picture and one instruction at a time")
        for path, check in ((trace, check_name), (animate, check_animation)):
            if path is not None:
                check(path)
                check_writable(path)
    if text_states is not None and is_file(text_states) and len(words) > 1:
        raise OptionError(f"{text_states} holds one instruction's states; give a bundle for several")
    if many:
        targets = pictures_of(image, output)
    else:
        check_writable(output)
        check_apart([output, animate, trace])
        open_picture(image)  # says before the bundle is loaded that there is none
    editor = editar_rt.load(bundle, device, threads)
    job.sampling = chosen_sampling(editor.default_sampling, options)
    if many:
        todo, skipped = prepare_folder(job, targets, output, force)  # variants are named by the bundle's seed
    else:
        beside = job.beside(output)
        check_apart([output, animate, trace, *beside])
        for path in beside:
            check_writable(path)
    job.text_states = [
        None if text_states is None else _text_states(text_states, w, task, device, threads) for w in words
    ]
    started = time.perf_counter()
    if many:
        with progress("editing", "tokens") as update:
            made = edit_folder(editor, job, todo, update)
        document: dict[str, Any] = {"output": str(output), "pictures": made, "skipped": [str(path) for path in skipped]}
        said = f"{output}  {len(todo)} pictures made, {len(skipped)} were there"
    else:
        with _showing(preview, image) as (update, on_preview):
            made = edit_picture(editor, job, image, output, update, on_preview, trace, animate)
        document = made[-1] if len(made) == 1 else {"output": str(output), "pictures": made}
        said = f"{output}  ({time.perf_counter() - started:.2f} s)"
    click.echo(json.dumps(document) if as_json else said)


def _instructions(first: str | None, file: Path | None, then: tuple[str, ...]) -> list[str]:
    """All instructions, in turn."""
    listed = [] if first is None else [first]
    if file is not None:
        try:
            with open(file, "rb") as f:
                raw = f.read(MAX_INSTRUCTIONS_BYTES + 1)
            if len(raw) > MAX_INSTRUCTIONS_BYTES:
                raise OptionError(f"{file} is larger than {MAX_INSTRUCTIONS_BYTES >> 20} MiB; that is no list")
            listed += [line.strip() for line in raw.decode("utf-8-sig").splitlines() if line.strip()]
        except OSError as e:
            raise OptionError(f"the instructions {file} cannot be read: {e.strerror or e}") from None
        except UnicodeDecodeError:
            raise OptionError(f"the instructions {file} are not UTF-8 text") from None
    listed += then
    if not listed:
        raise OptionError("there is no instruction: give INSTRUCTION, or --instructions FILE with one a line")
    return listed


@contextlib.contextmanager
def _showing(preview: str | None, image: Path) -> Iterator[tuple[Progress, Preview | None]]:
    """Callbacks for progress and previews: a bar and a folder, or both in the terminal."""
    if preview == "terminal":
        with _terminal(image) as callbacks:
            yield callbacks
        return
    with progress("editing", "tokens") as update:
        if preview is None:
            yield update, None
            return
        folder = Path(preview)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise PictureError(f"cannot make the folder {folder}: {e.strerror}") from None
        yield update, lambda picture, done, total: save_png(picture, folder / f"{done:0{len(str(total))}d}.png")


@contextlib.contextmanager
def _terminal(image: Path) -> Iterator[tuple[Progress, Preview]]:
    """The picture in the terminal, first as it was given, and how far it is."""
    from rich.console import Console, Group
    from rich.live import Live

    console = Console(stderr=True)
    if not console.is_terminal:
        raise OptionError("--preview terminal needs a terminal on stderr; give a folder instead")
    columns = max(8, min(64, console.width, 2 * (console.height - 2)))
    given = open_picture(image)
    shown = [half_blocks(fit_square(given, min(given.size)), columns)]
    with Live(shown[0], console=console, transient=True) as live:

        def update(done: int, total: int) -> None:
            live.update(Group(shown[0], f"{done}/{total} tokens"))

        def show(picture: Image.Image, done: int, total: int) -> None:
            shown[0] = half_blocks(picture, columns)

        yield update, show


def _text_states(source: Path, instruction: str, task: str, device: str, threads: int | None) -> Any:
    """Text states from a file, or from the encoder of another bundle, which is closed again."""
    from editar_rt.text.states import load_states

    if is_folder(source):
        return editar_rt.load(source, device, threads).encode_text([instruction], task)
    return load_states(source)


@cli.command()
@bundle_argument
@click.argument("instruction")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .npz to write.")
@task_option
@device_options
def text(bundle: Path, instruction: str, output: Path, task: str, device: str, threads: int | None) -> None:
    """Run BUNDLE's text encoder on INSTRUCTION alone, for: editar edit --text-states."""
    from editar_rt.text.states import save_states

    check_writable(output)
    states = editar_rt.load(bundle, device, threads).encode_text([instruction], task)
    save_states(output, states, build_prompt(task, instruction))
    click.echo(output)
