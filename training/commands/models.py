"""Commands that train one model, and all of the demo's."""

from __future__ import annotations

from pathlib import Path

import click

from training.commands import ANY_PATH, FILE, FOLDER, PRESENT_FOLDER, replaced
from training.config import TRANSFORMER_PRESETS


@click.command("vq")
@click.argument("run", type=FOLDER)
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps; the recipe's number when not given.")
@click.option("--batch", type=click.IntRange(1), help="Pictures a step.")
def train_vq(run: Path, **changes: int | None) -> None:
    """Train the VQ tokenizer into the folder RUN (resumes what lies there)."""
    from training import train_vq as recipe

    click.echo(recipe.train(run, replaced(recipe.Recipe, changes)))


@click.command("text-encoder")
@click.argument("run", type=FOLDER)
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps; the recipe's number when not given.")
@click.option("--batch", type=click.IntRange(1), help="Texts a step.")
def train_text(run: Path, **changes: int | None) -> None:
    """Train the tokenizer and the text encoder into the folder RUN (resumes what lies there)."""
    from training import train_text as recipe

    click.echo(recipe.train(run, replaced(recipe.Recipe, changes)))


@click.command("transformer")
@click.argument("run", type=FOLDER)
@click.option("--tokens", type=PRESENT_FOLDER, required=True)
@click.option("--text-encoder", type=PRESENT_FOLDER, required=True)
@click.option("--vq", type=FILE, required=True, help="Checkpoint of the tokenizer, for the tokens' looks.")
@click.option("--init", type=FILE, help="Weights to start from, such as LlamaGen's t2i_XL_stage2_512.pt.")
@click.option(
    "--preset",
    type=click.Choice(list(TRANSFORMER_PRESETS)),
    help="Size of the transformer; the recipe's when not given.",
)
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps; the recipe's number when not given.")
@click.option("--pictures", type=click.IntRange(1), help="Condition pictures a step, four examples each.")
def train_transformer(
    run: Path, tokens: Path, text_encoder: Path, vq: Path, init: Path | None, **changes: int | str | None
) -> None:
    """Train the transformer into the folder RUN (resumes what lies there)."""
    from training import train_transformer as recipe

    chosen = replaced(recipe.Recipe, changes)
    made = recipe.train(
        run, tokens, text_encoder, vq, chosen, init=init, report=lambda line: click.echo(line, err=True)
    )
    click.echo(made)


@click.command("plot")
@click.argument("run", type=PRESENT_FOLDER)
@click.option("-o", "--output", type=ANY_PATH, required=True, help="The PNG to write.")
def plot(run: Path, output: Path) -> None:
    """Draw the learning curves of the folder RUN."""
    from training.plots import plot_log

    plot_log(run / "log.jsonl", output)
    click.echo(output)


@click.command("demo")
@click.argument("run", type=FOLDER)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that draw pictures.")
def train_demo(run: Path, workers: int) -> None:
    """Make the demo's three models from nothing into RUN, and say how to export them (resumes what lies there)."""
    from training import train_text, train_transformer, train_vq
    from training.data.tokens import write_shards

    vq_recipe = train_vq.Recipe()
    vq = run / "vq" / "vq.pt"
    if not vq.exists():
        train_vq.train(run / "vq", vq_recipe)
    text_encoder = run / "text" / "text_encoder"
    if not text_encoder.exists():
        train_text.train(run / "text", train_text.Recipe())
    write_shards(run / "tokens", vq, vq_recipe.picture_size, seed=4, shards=40, groups=500, workers=workers)
    transformer = train_transformer.train(
        run / "transformer", run / "tokens", text_encoder, vq, train_transformer.Recipe()
    )
    click.echo(f"python -m training samples {run}/samples")
    click.echo(
        f"python -m export onnx --transformer {transformer} --vq {vq} --text-encoder {text_encoder} "
        f"--image-size {vq_recipe.picture_size} --samples {run}/samples "
        "--default cfg_scale=2.0 --default temperature=0.3 -o engines/demo"
    )


COMMANDS = (train_vq, train_text, train_transformer, plot, train_demo)
