"""`python -m training`: the models, stage by stage, or all of the demo's with one command."""

from __future__ import annotations

import click

from training.commands import data, evaluation, models


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads; all cores when not given.")
def cli(threads: int | None) -> None:
    """Train the VQ tokenizer, the text encoder and the transformer, and evaluate a bundle."""
    if threads:
        import torch

        torch.set_num_threads(threads)


for module in (models, data, evaluation):
    for command in module.COMMANDS:
        cli.add_command(command)
