"""`editar replay` and `editar heatmap`: reading a trace."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

import editar_rt
from editar_rt.cli.app import cli
from editar_rt.cli.options import PATH, device_options, json_option, progress
from editar_rt.files import check_outputs
from editar_rt.images.writing import check_picture_name, save_picture
from editar_rt.observe.heatmap import MEASURES, heatmap
from editar_rt.observe.replay import replay as run_again
from editar_rt.observe.trace import Trace
from editar_rt.text.states import load_states

trace_argument = click.argument("trace", type=PATH)


@cli.command()
@trace_argument
@click.option("--bundle", type=PATH, required=True, help="Bundle that made the trace.")
@click.option("--text-states", type=PATH, help="File of text states that the edit was given, if any.")
@device_options
@json_option
def replay(
    trace: Path, bundle: Path, text_states: Path | None, device: str, threads: int | None, as_json: bool
) -> None:
    """Sample the tokens of TRACE again. Reports the first token that differs on this machine."""
    loaded = Trace.load(trace)
    states = None if text_states is None else load_states(text_states).states
    editor = editar_rt.load(bundle, device, threads)
    with progress("replaying", "tokens") as update:
        replayed = run_again(editor, loaded, states, update)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(replayed) | {"identical": replayed.difference is None}))
        return
    where = "" if loaded.header.backend == replayed.backend else f" (traced on {loaded.header.backend})"
    click.echo(f"{replayed.backend}{where}, {replayed.seconds:.2f} s")
    error = f"log-probabilities differ by at most {replayed.largest_error:.1e}"
    if (first := replayed.difference) is None:
        click.echo(f"all {replayed.compared} sampled tokens are equal; {error}")
    else:
        click.echo(
            f"{replayed.compared} sampled positions are equal, then variant {first.variant} has token {first.found} "
            f"instead of {first.traced} at position {first.position}, by a logit margin of {first.margin:.2e}; {error}"
        )


@cli.command("heatmap")
@trace_argument
@click.option("-o", "--output", type=PATH, required=True, help="Picture to write.")
@click.option("--variant", type=int, default=0, show_default=True, help="Variant to show, from 0.")
@click.option(
    "--measure", type=click.Choice(list(MEASURES)), default="entropy", show_default=True, help="Quantity to show."
)
def paint(trace: Path, output: Path, variant: int, measure: str) -> None:
    """Draw the uncertainty of each token of TRACE. Writes the picture of TRACE without and with this overlay."""
    check_picture_name(output)
    check_outputs([output], [trace])
    save_picture(heatmap(Trace.load(trace), variant, measure), output)
    click.echo(output)
