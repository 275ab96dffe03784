"""`editar demo`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.samples import read_samples
from editar_rt.cli.app import cli
from editar_rt.cli.jobs import make_folder
from editar_rt.cli.options import (
    PATH,
    bundle_files,
    check_sampling,
    chosen_sampling,
    device_options,
    json_option,
    progress,
    sampling_options,
    start,
)
from editar_rt.errors import BundleError
from editar_rt.files import check_outputs
from editar_rt.images.writing import save_picture
from editar_rt.observe.sheets import Cell, contact_sheet

DEMO_BUNDLE = Path("engines/demo")


@cli.command()
@click.option("-o", "--output", type=PATH, default=Path("editar-demo"), show_default=True, help="Folder to write.")
@click.option("--bundle", type=PATH, default=DEMO_BUNDLE, show_default=True, help="Bundle to run.")
@sampling_options
@device_options
@json_option
def demo(output: Path, bundle: Path, device: str, threads: int | None, as_json: bool, **options: Any) -> None:
    """Run every task on a bundle's sample pictures. Writes the results and a contact sheet."""
    check_sampling(options)
    if bundle == DEMO_BUNDLE and not bundle.exists():
        raise BundleError(f"{bundle} does not exist; run editar demo in a checkout of the project, or give --bundle")
    opened = Bundle.open(bundle)
    samples = read_samples(opened)
    paths = [output / f"{n:02d}-{task}.png" for n, (_, task, _) in enumerate(samples)]
    sheet = output / "contact-sheet.png"
    make_folder(output)
    check_outputs([*paths, sheet], bundle_files(opened))
    editor = start(opened, device, threads)
    sampling = chosen_sampling(editor.default_sampling, options)
    cells = []
    started = time.perf_counter()
    with progress("editing", "pictures") as update:
        for n, ((picture, task, instruction), path) in enumerate(zip(samples, paths, strict=True)):
            session = editor.session(picture)
            result = session.edit(instruction, task=task, sampling=sampling)
            result.save(path)
            cells.append(
                Cell([session.source, result.image], instruction if task == "edit" else f"{task}: {instruction}")
            )
            update(n + 1, len(samples))
    save_picture(contact_sheet(cells), sheet)
    seconds = time.perf_counter() - started
    if as_json:
        click.echo(json.dumps({"contact_sheet": str(sheet), "pictures": list(map(str, paths)), "seconds": seconds}))
    else:
        click.echo(f"{len(paths)} pictures in {seconds:.1f} s; look at {sheet}")
