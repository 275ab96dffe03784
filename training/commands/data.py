"""Commands that make what is trained on."""

from __future__ import annotations

from pathlib import Path

import click

from training.commands import FILE, FOLDER


@click.command("tokens")
@click.argument("folder", type=FOLDER)
@click.option("--vq", type=FILE, required=True, help="Checkpoint of the tokenizer.")
@click.option("--size", default=64, show_default=True, help="Side of the pictures in pixels.")
@click.option("--seed", default=4, show_default=True)
@click.option("--shards", type=click.IntRange(1), default=40, show_default=True)
@click.option("--groups", type=click.IntRange(1), default=500, show_default=True, help="Condition pictures a shard.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes.")
def write_tokens(folder: Path, vq: Path, size: int, seed: int, shards: int, groups: int, workers: int) -> None:
    """Draw examples of the procedural world and write their tokens to FOLDER (keeps the shards that lie there)."""
    from training.data.tokens import write_shards

    write_shards(folder, vq, size, seed, shards, groups, workers)
    click.echo(folder)


@click.command("samples")
@click.argument("folder", type=FOLDER)
@click.option("--size", default=64, show_default=True, help="Side of the pictures in pixels.")
def make_samples(folder: Path, size: int) -> None:
    """Write the sample pictures of a demo bundle to FOLDER."""
    from training.samples import write_samples

    write_samples(folder, size)
    click.echo(folder)


COMMANDS = (write_tokens, make_samples)
