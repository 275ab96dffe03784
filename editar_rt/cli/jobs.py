"""The work of `editar edit` on one picture and on a folder of pictures."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from editar_rt.cli.options import part_of
from editar_rt.cli.streams import STREAM, Given, destination, picture_digest, read_given
from editar_rt.editor import Editor
from editar_rt.errors import EditarError, OptionError, PictureError
from editar_rt.files import check_outputs, is_folder
from editar_rt.generation.decoding import Progress
from editar_rt.generation.sampling import Sampling
from editar_rt.images.fit import Placement
from editar_rt.images.folders import Listing, picture_endings
from editar_rt.images.masks import Box, Mask, feather, outpainted, read_mask
from editar_rt.images.writing import check_picture_name, read_parameters, save_picture
from editar_rt.observe.preview import save_animation
from editar_rt.observe.sheets import Cell, contact_sheet
from editar_rt.request import Preview, Request, variant_seeds
from editar_rt.results import Result
from editar_rt.text.states import TextStates

PASSING = {"backend", "version", "mask"}
"""Metadata of a result that follows from the other settings or does not matter; `mask` counts tokens."""


@dataclass
class Job:
    """The work to do on every picture."""

    request: Request
    """The options of every edit; picture, instruction, mask, text states and observers come with each."""
    instructions: list[str]  # in turn, each on the last result
    mask: Path | bytes | Box | None = None
    outpaint: tuple[int, int, int, int] | None = None
    count: int | None = None  # variants
    quality: int | None = None
    metadata: bool = True
    sampling: Sampling = field(default_factory=Sampling)  # the request's over the bundle's defaults
    text_states: list[NDArray[np.float32] | TextStates | None] = field(default_factory=list)  # of the instructions
    text_states_from: str | None = None  # hash of the file, or of the bundle, that they come from

    def check(self, output: Path, many: bool) -> None:
        """Reject bad values before a bundle is opened."""
        variant_seeds(0, 1 if self.count is None else self.count)
        if self.count is not None and len(self.instructions) > 1:
            raise OptionError("-n makes variants of one instruction; choose one of them, then run --then on it")
        if output == STREAM:
            if many or self.count is not None or len(self.instructions) > 1:
                raise OptionError(
                    "-o - writes one PNG to stdout, but this command makes several pictures; give a file name"
                )
            if self.quality is not None:
                raise OptionError("-o - writes a PNG, which is lossless; leave --quality out")
        else:
            check_picture_name(output / "each.png" if many else output, self.quality)

    def beside(self, output: Path) -> list[Path]:
        """Files written next to a result: the earlier results of several instructions, or the variants by seed."""
        if self.count is None:
            marks: Iterable[int] = range(1, len(self.instructions))
        else:
            marks = variant_seeds(self.sampling.seed, self.count)
        return [output.with_name(f"{output.stem}-{mark}{output.suffix}") for mark in marks]

    def settings(self, digest: str, turn: int) -> dict[str, Any]:
        """The settings of a result besides its own instruction and sampling, as JSON values.

        Args:
            digest: of the picture's file.
            turn: index of the instruction.
        """
        settings: dict[str, Any] = {"picture": digest}
        if turn:
            settings["turns"] = self.instructions[:turn]
        if self._mask_from is not None:
            settings["mask_from"] = self._mask_from
            settings |= {"mask_margin": self.request.mask_margin, "composite": self.request.composite}
        optional: dict[str, Any] = {
            "variants": self.count,
            "text_states": self.text_states_from,
            "quality": self.quality,
        }
        fit = self.request.fit if self.request.fit != "crop" else None
        optional |= {"fit": fit, "restore": self.request.restore or None}
        return settings | {name: value for name, value in optional.items() if value is not None}

    @functools.cached_property
    def _mask_from(self) -> str | None:
        if self.outpaint is not None:
            return f"outpaint {','.join(map(str, self.outpaint))}"
        if isinstance(self.mask, Path):
            return picture_digest(self.mask)  # read once, not for every picture
        return None if self.mask is None else f"box {','.join(map(str, self.mask))}"

    def expected(self, editor: Editor, digest: str) -> dict[str, str]:
        """The metadata that a result of this job would have, except `PASSING`."""
        own = editor.parameters(self.instructions[-1], self.request.task, self.sampling)
        whole = own | _texts(self.settings(digest, len(self.instructions) - 1))
        return {name: value for name, value in whole.items() if name not in PASSING}


def _texts(settings: dict[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}


def edit_picture(
    editor: Editor,
    job: Job,
    given: Given,
    output: Path,
    on_progress: Progress,
    on_preview: Preview | None = None,
    trace: Path | None = None,
    animate: Path | None = None,
) -> list[dict[str, Any]]:
    """Do a job on one picture and write the results.

    Returns:
        the `output`, `timings`, `passes` and `parameters` of every picture except the contact sheet.
    """
    side, picture, mask, fit = editor.image_size, given.image, None, job.request.fit or "crop"
    where: Mask | None = job.mask
    if job.outpaint is not None:
        picture, where = outpainted(picture, job.outpaint)
    if where is not None:
        mask = read_mask(where, picture.size, side, fit)
    placement = Placement(picture.size, side, fit)
    whole, picture = picture, placement.fit(picture)  # later turns start from the square
    share = feather(mask, editor.grid) if mask is not None and job.request.composite else None

    def save(result: Result, settings: dict[str, Any], path: Path) -> dict[str, Any]:
        if job.request.restore:
            result = replace(result, image=placement.restore(result.image, whole, share=share))
        return _saved(job, result, settings, path)

    turns, made, beside = len(job.instructions), [], job.beside(output)
    for turn, (words, states) in enumerate(zip(job.instructions, job.text_states, strict=True)):
        session = editor.session(picture)
        request = replace(
            job.request,
            instruction=words,
            text_states=states,
            mask=mask,
            on_progress=part_of(on_progress, turn, turns),
            on_preview=on_preview,
            trace=trace,
            fit=None,  # the session's picture is the square already, and the result is put back here
            restore=False,
        )
        results = session.run(request, job.count or 1)
        settings = job.settings(given.digest, turn)
        if job.count is None:
            path = output if turn == turns - 1 else beside[turn]
            made.append(save(results[0], settings, path))
        else:
            made += [save(result, settings, path) for path, result in zip(beside, results, strict=True)]
            sheet = _variants_sheet(session.source, words, results)
            save_picture(sheet, output, results[0].parameters | _texts(settings), job.quality, job.metadata)
        if animate is not None:
            save_animation(session.frames(), animate)
        picture = results[0].image
    return made


def _variants_sheet(source: Image.Image, words: str, results: list[Result]) -> Image.Image:
    cells = [Cell([result.image], f"seed {result.seed}") for result in results]
    return contact_sheet([Cell([source], words), *cells], columns=min(4, len(cells) + 1))


def _saved(job: Job, result: Result, settings: dict[str, Any], path: Path) -> dict[str, Any]:
    parameters = result.parameters | _texts(settings)
    save_picture(result.image, destination(path), parameters, job.quality, job.metadata)
    # JSON gets the numbers themselves, not the texts of the picture's metadata.
    sampling = replace(job.sampling, seed=result.seed).settings(len(result.tokens))
    return {
        "output": str(path),
        "timings": result.timings,
        "passes": result.passes,
        "parameters": parameters | sampling | settings,
    }


# Folders.


@dataclass(frozen=True)
class FolderWork:
    """The work to do on a folder."""

    todo: dict[Path, Path]
    """Each picture to edit, and the PNG to write."""
    done: list[Path]
    """Existing PNGs that the same job made."""
    stale: dict[Path, str]
    """Existing PNGs to make again, and the reason."""


def targets_of(listing: Listing, output: Path) -> dict[Path, Path]:
    """The PNG for each picture of a folder, with its picture.

    Raises:
        PictureError: there are no pictures, two would have one result, or the output is the input folder.
    """
    folder = listing.folder
    if not listing.pictures:
        raise PictureError(f"the folder {folder} contains no pictures ({', '.join(picture_endings())})")
    targets: dict[Path, Path] = {}
    for path in listing.pictures:
        target = output / f"{path.stem}.png"
        if target in targets:
            raise PictureError(f"{targets[target]} and {path} would both become {target}; rename one of them")
        targets[target] = path
    if is_folder(output) and output.samefile(folder):
        raise PictureError(f"{output} contains the pictures to edit; give another folder for the results")
    return targets


def prepare_folder(
    editor: Editor, job: Job, targets: dict[Path, Path], output: Path, inputs: Iterable[Path | None], force: bool
) -> FolderWork:
    """Make the output folder, and find out which results exist already.

    Args:
        inputs: files that are read besides the pictures.
        force: make all results again.

    Raises:
        PictureError: one result would overwrite another, or the folder cannot be made.
        OptionError: a result would overwrite an input.
    """
    for target, image in targets.items():
        for path in job.beside(target):
            if path in targets:
                raise PictureError(
                    f"{path.name} is written next to the result of {image}, but is also the name of the result of "
                    f"{targets[path]}; rename one of them, or edit it alone"
                )
    make_folder(output)
    check_outputs((path for target in targets for path in (target, *job.beside(target))), [*targets.values(), *inputs])
    there = [] if force else [target for target in targets if target.exists()]
    reasons = {target: _why_again(editor, job, targets[target], target) for target in there}
    done = [target for target, reason in reasons.items() if reason is None]
    stale = {target: reason for target, reason in reasons.items() if reason is not None}
    kept = set(done)
    return FolderWork({image: target for target, image in targets.items() if target not in kept}, done, stale)


def _why_again(editor: Editor, job: Job, image: Path, target: Path) -> str | None:
    """The reason to make an existing result again; None if this job made it from this picture."""
    if lost := [path.name for path in job.beside(target) if not path.exists()]:
        return f"{', '.join(lost)} next to it is missing"
    metadata = read_parameters(target)
    if metadata is None:
        return "it has no record of how it was made"
    try:
        expected = job.expected(editor, picture_digest(image))
    except PictureError:
        return "its input cannot be read"
    known = {name: value for name, value in metadata.items() if name not in PASSING}
    names = sorted(name for name in known.keys() | expected.keys() if known.get(name) != expected.get(name))
    return f"it was made with a different {', '.join(names)}" if names else None


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents.

    Raises:
        PictureError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise PictureError(f"cannot make the folder {folder}: {e.strerror or e}") from None


def edit_folder(
    editor: Editor, job: Job, todo: dict[Path, Path], on_progress: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """Do a job on every picture. A picture that cannot be read is reported, and the work goes on with the next.

    Raises:
        PictureError: at the end, if any picture failed.
    """
    made, failed = [], 0
    for n, (image, output) in enumerate(todo.items()):
        try:
            made += edit_picture(editor, job, read_given(image), output, part_of(on_progress, n, len(todo)))
        except PictureError as e:
            failed += 1
            click.echo(f"{image}: {e}", err=True)
        except EditarError as e:
            raise type(e)(f"{image}: {e}") from None
    if failed:
        raise PictureError(f"{failed} of {len(todo)} pictures failed; the others are done")
    return made
