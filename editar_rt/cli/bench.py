"""`editar bench`."""

from __future__ import annotations

import dataclasses
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
    progress,
    sampling_options,
    speculate_option,
    start,
)
from editar_rt.files import check_outputs
from editar_rt.generation.strategy import Speculate, check_speculate


@cli.command()
@bundle_argument
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Measured runs.")
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True, help="Unmeasured runs before them.")
@click.option("--steps", type=click.IntRange(1), show_default="to the end of the picture", help="Decode steps per run.")
@click.option("--at", type=click.IntRange(1), show_default="picture and prompt", help="Cached positions at the start.")
@click.option(
    "--compare",
    type=PATH,
    multiple=True,
    help="Measure this bundle too, interleaved with BUNDLE; may be repeated.",
)
@click.option(
    "--chart",
    type=PATH,
    help="Write a chart of the time per kind of operator in a decode step (.png or .svg).",
)
@click.option("--host-sampling", is_flag=True, help="Sample tokens on the host, even if the device can.")
@sampling_options
@speculate_option
@device_options
@json_option
def bench(
    bundle: Path,
    repeats: int,
    warmup: int,
    steps: int | None,
    at: int | None,
    compare: tuple[Path, ...],
    chart: Path | None,
    host_sampling: bool,
    speculate: Speculate | None,
    device: str,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the speed and memory of BUNDLE.

    The report has the time of every stage, and compares the time of a decode step with the machine's memory bandwidth.
    With --compare, the bundles take turns, so that their ratios do not depend on the machine's load.

    With --speculate, times of a step are those of a token, and the report has the tokens taken in a pass. These depend
    on the picture and the instruction: here random noise and "make the ball red".
    """
    from editar_rt.measure.bench import BundleSubject, Plan, measure, printed

    check_sampling(options)
    check_speculate(speculate)
    plan = Plan(repeats, warmup, at, steps)
    bundles = [Bundle.open(path) for path in (bundle, *compare)]
    if chart is not None:
        from editar_rt.measure.profile import check_chart

        check_chart(chart, bundles)
        check_outputs([chart], [path for opened in bundles for path in bundle_files(opened)])
    samplings = [chosen_sampling(opened.default_sampling, options) for opened in bundles]
    subjects = [
        BundleSubject(start(opened, device, threads), sampling, not host_sampling, speculate)
        for opened, sampling in zip(bundles, samplings)
    ]
    with progress("measuring", "runs") as update:
        report = measure(subjects, plan, update)
    del subjects  # free their memory before profiling
    if chart is not None:
        from editar_rt.measure.profile import draw_chart, limit_ms, profile_steps

        profiled = dataclasses.replace(plan, steps=min(plan.steps or 32, 32), warmup=0, repeats=1)
        bars = []
        for opened, sampling, document in zip(bundles, samplings, [report, *report.get("others", [])]):
            document["step_ms_by_kind"] = profile_steps(opened, device, threads, profiled, sampling)
            bars.append((document["name"], document["step_ms_by_kind"], limit_ms(document)))
        draw_chart(bars, chart)
    click.echo(printed(report, as_json))
