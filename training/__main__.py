"""`python -m training …`: the demo's models, stage by stage, or all of them with one command."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click
import torch

from editar_rt.errors import EditarError
from training.config import TRANSFORMER_PRESETS

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads; all cores when not given.")
def cli(threads: int | None) -> None:
    """Train the VQ tokenizer, the text encoder and the transformer, and evaluate a bundle."""
    if threads:
        torch.set_num_threads(threads)


def _recipe(kind: Any, changes: dict[str, Any]) -> Any:
    return dataclasses.replace(kind(), **{k: v for k, v in changes.items() if v is not None})


@cli.command("vq")
@click.argument("run", type=FOLDER)
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps; the recipe's number when not given.")
@click.option("--batch", type=click.IntRange(1), help="Pictures a step.")
def train_vq(run: Path, **changes: int | None) -> None:
    """Train the VQ tokenizer into the folder RUN (resumes what lies there)."""
    from training import train_vq as recipe

    click.echo(recipe.train(run, _recipe(recipe.Recipe, changes)))


@cli.command("text-encoder")
@click.argument("run", type=FOLDER)
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps; the recipe's number when not given.")
@click.option("--batch", type=click.IntRange(1), help="Texts a step.")
def train_text(run: Path, **changes: int | None) -> None:
    """Train the tokenizer and the text encoder into the folder RUN (resumes what lies there)."""
    from training import train_text as recipe

    click.echo(recipe.train(run, _recipe(recipe.Recipe, changes)))


@cli.command("tokens")
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


@cli.command("transformer")
@click.argument("run", type=FOLDER)
@click.option("--tokens", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--text-encoder", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
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

    chosen = _recipe(recipe.Recipe, changes)
    made = recipe.train(
        run, tokens, text_encoder, vq, chosen, init=init, report=lambda line: click.echo(line, err=True)
    )
    click.echo(made)


@cli.command("samples")
@click.argument("folder", type=FOLDER)
@click.option("--size", default=64, show_default=True, help="Side of the pictures in pixels.")
def make_samples(folder: Path, size: int) -> None:
    """Write the sample pictures of a demo bundle to FOLDER."""
    from training.samples import write_samples

    write_samples(folder, size)
    click.echo(folder)


@cli.command("plot")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The PNG to write.")
def plot(run: Path, output: Path) -> None:
    """Draw the learning curves of the folder RUN."""
    from training.plots import plot_log

    plot_log(run / "log.jsonl", output)
    click.echo(output)


@cli.command("evaluate")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Held-out scenes a kind.")
@click.option("--seed", default=0, show_default=True, help="Which held-out scenes.")
@click.option("--cfg-scale", type=float, help="Instead of the bundle's default; so are the next three.")
@click.option("--temperature", type=float)
@click.option("--top-k", type=int)
@click.option("--top-p", type=float)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the JSON here too.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Write a contact sheet here.")
@click.option("--masked", is_flag=True, help="Edits alone, each under a mask around what it truly changes.")
@click.option("--ceiling", is_flag=True, help="Also score the true pictures through the VQ tokenizer alone.")
def run_evaluation(
    bundle: Path,
    count: int,
    seed: int,
    output: Path | None,
    sheet: Path | None,
    masked: bool,
    ceiling: bool,
    **changes: float | None,
) -> None:
    """Score BUNDLE strictly on held-out scenes; JSON on stdout."""
    import editar_rt
    from training import evaluate

    sampling = _recipe(lambda: editar_rt.load(bundle).default_sampling, changes)

    def tell(kind: str, result: dict[str, Any]) -> None:
        click.echo(f"{kind}: {100 * result['success']:.1f} % succeed", err=True)

    report, shown = evaluate.evaluate(bundle, count, sampling, seed, masked=masked, on_kind=tell)
    if ceiling:
        report["tokenizer_ceiling"] = evaluate.tokenizer_ceiling(bundle)
    if output:
        evaluate.write_report(report, output)
    if sheet:
        evaluate.contact_sheet(shown, sheet)
    click.echo(json.dumps(report))


@cli.command("demo")
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


def main() -> None:
    """Exit codes: 0; 1 for an error, one sentence on stderr; 2 for a bad option; 130 for Ctrl-C."""
    try:
        cli.main(prog_name="python -m training", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("training: stopped; the last checkpoint is kept", err=True)
        sys.exit(130)
    except (EditarError, FileNotFoundError, FloatingPointError) as error:
        click.echo(f"training: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
