"""`editar bench`."""

from __future__ import annotations

import json
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
)


@cli.command()
@bundle_argument
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True)
@sampling_options
@device_options
@json_option
def bench(
    bundle: Path, repeats: int, warmup: int, device: str, threads: int | None, as_json: bool, **options: Any
) -> None:
    """Measure BUNDLE on this machine, stage by stage."""
    from editar_rt.bench import run_bench

    check_sampling(options)
    editor = editar_rt.load(bundle, device, threads)
    with progress("measuring", "runs") as update:
        report = run_bench(editor, repeats, warmup, chosen_sampling(editor.default_sampling, options), update)
    if as_json:
        click.echo(json.dumps(report))
        return
    click.echo(f"{report['backend']}  {report['precision']}  {repeats} runs after {warmup} to warm up")
    for stage, spread in report["stages"].items():
        click.echo(f"{stage:>8} {spread['median_ms']:10.2f} ms   ({spread['min_ms']:.2f} to {spread['max_ms']:.2f})")
    click.echo(f"{'picture':>8} {1e3 * report['seconds_per_picture']:10.2f} ms")
    if "p50" in report:
        click.echo(
            f"a step: p50 {report['p50']:.3f} ms, p95 {report['p95']:.3f} ms; "
            f"{report['tokens_per_second']:.1f} tokens/s; first token after {report['time_to_first_token_ms']:.1f} ms"
        )
    if report["peak_memory"] is not None:
        click.echo(f"peak memory {report['peak_memory'] / 2**20:.0f} MiB")
