"""Commands that measure a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from training.commands import ANY_PATH, PRESENT_FOLDER, replaced


@click.command("evaluate")
@click.argument("bundle", type=PRESENT_FOLDER)
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Held-out scenes a kind.")
@click.option("--seed", default=0, show_default=True, help="Which held-out scenes.")
@click.option("--cfg-scale", type=float, help="Instead of the bundle's default; so are the next three.")
@click.option("--temperature", type=float)
@click.option("--top-k", type=int)
@click.option("--top-p", type=float)
@click.option("-o", "--output", type=ANY_PATH, help="Write the JSON here too.")
@click.option("--sheet", type=ANY_PATH, help="Write a contact sheet here.")
@click.option("--ceiling", is_flag=True, help="Also score the true pictures through the VQ tokenizer alone.")
def run_evaluation(
    bundle: Path,
    count: int,
    seed: int,
    output: Path | None,
    sheet: Path | None,
    ceiling: bool,
    **changes: float | None,
) -> None:
    """Score BUNDLE strictly on held-out scenes; JSON on stdout."""
    import editar_rt
    from training import evaluate

    sampling = replaced(lambda: editar_rt.load(bundle).default_sampling, changes)

    def tell(kind: str, result: dict[str, Any]) -> None:
        click.echo(f"{kind}: {100 * result['success']:.1f} % succeed", err=True)

    report, shown = evaluate.evaluate(bundle, count, sampling, seed, on_kind=tell)
    if ceiling:
        report["tokenizer_ceiling"] = evaluate.tokenizer_ceiling(bundle)
    if output:
        evaluate.write_report(report, output)
    if sheet:
        evaluate.contact_sheet(shown, sheet)
    click.echo(json.dumps(report))


COMMANDS = (run_evaluation,)
