"""`editar sweep`."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import click

from editar_rt.bundle.folder import Bundle
from editar_rt.cli.app import cli
from editar_rt.cli.options import (
    PATH,
    bundle_argument,
    bundle_files,
    check_sampling,
    chosen_sampling,
    device_options,
    json_option,
    part_of,
    progress,
    quality_option,
    sampling_options,
    start,
    task_option,
)
from editar_rt.cli.streams import read_given
from editar_rt.errors import OptionError
from editar_rt.files import check_outputs
from editar_rt.generation.sampling import Sampling
from editar_rt.images.writing import check_picture_name, save_picture
from editar_rt.observe.sheets import Cell, contact_sheet
from editar_rt.request import Options, variant_seeds


@cli.command()
@bundle_argument
@click.argument("image", type=PATH)
@click.argument("instruction")
@click.option("-o", "--output", type=PATH, required=True, help="Picture of the grid to write.")
@click.option(
    "--scale",
    "scales",
    multiple=True,
    default=("1", "2", "3", "5"),
    show_default=True,
    help="Guidance scale or schedule of one row, written as for editar edit --cfg-scale; may be repeated.",
)
@click.option(
    "-n", "count", type=int, default=3, show_default=True, help="Number of seeds (SEED, SEED+1, …), one per column."
)
@task_option
@quality_option
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
    quality: int | None,
    device: str,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Edit IMAGE with several guidance scales and seeds. Writes a grid: a row per scale, a column per seed."""
    if options.pop("cfg_scale") is not None:
        raise OptionError("editar sweep runs several guidance scales; give each with --scale, not --cfg-scale")
    check_sampling(options)
    listed = [Sampling(cfg_scale=scale).settings()["cfg_scale"] for scale in scales]
    variant_seeds(0, count)
    check_picture_name(output, quality)
    opened = Bundle.open(bundle)
    check_outputs([output], [image, *bundle_files(opened)])
    picture = read_given(image).image
    usual = chosen_sampling(opened.default_sampling, options)
    session = start(opened, device, threads).session(picture)
    cells, started = [], time.perf_counter()
    with progress("sweeping", "tokens") as update:
        for row, scale in enumerate(scales):
            sampling = dataclasses.replace(usual, cfg_scale=scale)
            options_of_row: Options = {
                "task": task,
                "sampling": sampling,
                "on_progress": part_of(update, row, len(scales)),
            }
            results = session.variants(instruction, count, **options_of_row)
            cells += [Cell([r.image], f"cfg {scale}, seed {r.seed}") for r in results]
    save_picture(contact_sheet(cells, columns=count), output, quality=quality)
    seconds = time.perf_counter() - started
    if as_json:
        click.echo(json.dumps({"output": str(output), "scales": listed, "pictures": len(cells), "seconds": seconds}))
    else:
        click.echo(f"{output}  ({len(cells)} pictures in {seconds:.2f} s)")
