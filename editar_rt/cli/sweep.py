"""`editar sweep`."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import click

import editar_rt
from editar_rt.cli.app import cli
from editar_rt.cli.options import (
    bundle_argument,
    check_sampling,
    chosen_sampling,
    device_options,
    json_option,
    progress,
    sampling_options,
    task_option,
)
from editar_rt.errors import OptionError
from editar_rt.files import check_writable
from editar_rt.generation.sampling import Sampling
from editar_rt.images.pixels import open_picture
from editar_rt.observe.sheets import Cell, contact_sheet, save_png
from editar_rt.session import variant_seeds


@cli.command()
@bundle_argument
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("instruction")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The grid to write, a PNG.")
@click.option(
    "--scale",
    "scales",
    multiple=True,
    default=("1", "2", "3", "5"),
    show_default=True,
    help="Guidance scale or schedule, as --cfg-scale takes it; once a row.",
)
@click.option("-n", "count", type=int, default=3, show_default=True, help="Seeds, from --seed on; columns.")
@task_option
@sampling_options
@device_options
@json_option
def sweep(
    bundle: Path,
    image: Path,
    instruction: str,
    output: Path,
    scales: tuple[str, ...],
    count: int,
    task: str,
    device: str,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Edit IMAGE with every guidance scale and seed, and put the results into one grid."""
    if options.pop("cfg_scale") is not None:
        raise OptionError("editar sweep goes over several scales: give each with --scale, not --cfg-scale")
    check_sampling(options)
    for scale in scales:
        Sampling(cfg_scale=scale)
    seeds = variant_seeds(0, count)
    check_writable(output)
    picture = open_picture(image)
    editor = editar_rt.load(bundle, device, threads)
    usual = chosen_sampling(editor.default_sampling, options)
    session = editor.open(picture)
    cells, started = [], time.perf_counter()
    with progress("sweeping", "tokens") as update:
        for row, scale in enumerate(scales):

            def on_progress(done: int, total: int, row: int = row) -> None:
                update(row * total + done, len(scales) * total)

            sampling = dataclasses.replace(usual, cfg_scale=scale)
            results = session.edit(instruction, task, sampling, on_progress, n=len(seeds))
            cells += [Cell([r.image], f"cfg {scale}, seed {r.parameters['seed']}") for r in results]
    save_png(contact_sheet(cells, columns=len(seeds)), output)
    seconds = time.perf_counter() - started
    if as_json:
        click.echo(json.dumps({"output": str(output), "scales": scales, "pictures": len(cells), "seconds": seconds}))
    else:
        click.echo(f"{output}  ({len(cells)} pictures in {seconds:.2f} s)")
