"""What `editar edit` does with a picture, and with a folder of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from editar_rt.editor import Editor
from editar_rt.errors import EditarError, OptionError, PictureError
from editar_rt.files import check_writable
from editar_rt.generation.decoding import Progress
from editar_rt.generation.sampling import Sampling
from editar_rt.images.masks import Box, Mask, outpainted, read_mask
from editar_rt.images.pixels import fit_square, open_picture
from editar_rt.observe.preview import save_animation
from editar_rt.observe.sheets import Cell, contact_sheet, save_png
from editar_rt.results import EditOptions, EditResult, Preview
from editar_rt.session import variant_seeds

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass
class Job:
    """What is to be done with every picture."""

    task: str
    instructions: list[str]  # in turn, each on the last result
    mask: Path | Box | None
    outpaint: tuple[int, int, int, int] | None
    mask_margin: int
    composite: bool
    count: int | None  # variants
    preview_share: float
    sampling: Sampling = field(default_factory=Sampling)
    text_states: list[NDArray[np.float32] | None] = field(default_factory=list)  # of the instructions

    def check(self) -> None:
        """Refuse bad values before a bundle is opened."""
        EditOptions(mask_margin=self.mask_margin, preview_share=self.preview_share)
        variant_seeds(0, self.count)
        if self.count is not None and len(self.instructions) > 1:
            raise OptionError("-n makes variants of one instruction; give --then another time, on the one you choose")

    def beside(self, output: Path) -> list[Path]:
        """What is written beside a result: those on the way to it, or its variants by their seeds."""
        if self.count is None:
            marks: Iterable[int] = range(1, len(self.instructions))
        else:
            marks = variant_seeds(self.sampling.seed, self.count)
        return [output.with_name(f"{output.stem}-{mark}.png") for mark in marks]


def edit_picture(
    editor: Editor,
    job: Job,
    image: Path,
    output: Path,
    on_progress: Progress,
    on_preview: Preview | None = None,
    trace: Path | None = None,
    animate: Path | None = None,
) -> list[dict[str, Any]]:
    """Do a job on one picture and write what comes out.

    Returns:
        of every PNG but the contact sheet: its `output`, `timings` and `parameters`.
    """
    side = editor.image_size
    picture, mask = open_picture(image), None
    given: Mask | None = job.mask
    if job.outpaint is not None:
        picture, given = outpainted(picture, job.outpaint)
    if given is not None:
        mask = read_mask(given, picture.size, side)
    picture = fit_square(picture, side)  # later turns have no other
    turns, made, beside = len(job.instructions), [], job.beside(output)
    for turn, (words, states) in enumerate(zip(job.instructions, job.text_states, strict=True)):

        def update(done: int, total: int, turn: int = turn) -> None:
            on_progress(turn * total + done, turns * total)

        session = editor.open(picture)
        options = EditOptions(
            mask, job.mask_margin, job.composite, None, on_preview, preview_share=job.preview_share, trace=trace
        )
        results = session.run(words, job.task, job.sampling, update, states, job.count, options)
        if job.count is None:
            last = turn == turns - 1
            made.append(_saved(results[0], output if last else beside[turn]))
        else:
            seeds = [result.parameters["seed"] for result in results]
            made += [_saved(result, path) for path, result in zip(beside, results, strict=True)]
            cells = [Cell([result.image], f"seed {seed}") for seed, result in zip(seeds, results, strict=True)]
            save_png(contact_sheet([Cell([session.source], words), *cells], columns=min(4, len(cells) + 1)), output)
        if animate is not None:
            save_animation(session.frames(), animate)
        picture = results[0].image
    return made


def _saved(result: EditResult, path: Path) -> dict[str, Any]:
    result.save(path)
    return {"output": str(path), "timings": result.timings, "parameters": result.parameters}


def pictures_of(folder: Path, output: Path) -> dict[Path, Path]:
    """The PNGs that the pictures of a folder become, and of which each is made.

    Raises:
        PictureError: no pictures, two that become one, or an output that is the folder.
    """
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as e:
        raise PictureError(f"the folder {folder} cannot be read: {e.strerror}") from None
    if not found:
        raise PictureError(f"the folder {folder} holds no pictures ({', '.join(SUFFIXES)})")
    targets: dict[Path, Path] = {}
    for path in found:
        target = output / f"{path.stem}.png"
        if target in targets:
            raise PictureError(f"{targets[target]} and {path} would both become {target}; rename one of them")
        targets[target] = path
    if os.path.realpath(output) == os.path.realpath(folder):
        raise PictureError(f"{output} holds the pictures to edit; give another folder for the results")
    return targets


def prepare_folder(
    job: Job, targets: dict[Path, Path], output: Path, force: bool
) -> tuple[dict[Path, Path], list[Path]]:
    """(pictures that are to be done and the PNG that each becomes, PNGs that are there); makes the output's folder.

    Raises:
        PictureError: a result that another picture's would be written over, or a folder that cannot be made.
    """
    for target, image in targets.items():
        for path in job.beside(target):
            if path in targets:
                raise PictureError(
                    f"{path.name}, which is written beside the result of {image}, would also be the result of "
                    f"{targets[path]}; rename one of them, or edit it alone"
                )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise PictureError(f"cannot make the folder {output}: {e.strerror}") from None
    for target in targets:
        for path in (target, *job.beside(target)):
            check_writable(path)
    done = [] if force else [target for target in targets if target.exists()]
    return {image: target for target, image in targets.items() if target not in done}, done


def edit_folder(
    editor: Editor, job: Job, todo: dict[Path, Path], on_progress: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """Do a job on every picture; one that cannot be read is named, and the others are done.

    Raises:
        PictureError: at the end, where some failed.
    """
    made, failed = [], 0
    for n, (image, output) in enumerate(todo.items()):

        def update(done: int, total: int, n: int = n) -> None:
            on_progress(n * total + done, len(todo) * total)

        try:
            made += edit_picture(editor, job, image, output, update)
        except PictureError as e:
            failed += 1
            click.echo(f"{image}: {e}", err=True)
        except EditarError as e:
            raise type(e)(f"{image}: {e}") from None
    if failed:
        raise PictureError(f"{failed} of {len(todo)} pictures failed; the others are done")
    return made
