"""Commands that train one model, and all of the demo's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from training.choices import DEVICES, FSDP_PRECISIONS, PRECISIONS, WAYS
from training.commands import FILE, FOLDER, OUTPUT_FILE, PRESENT_FOLDER, replaced
from training.config import TRANSFORMER_PRESETS, VISION_PRESETS, VQ_PRESETS
from training.recipes.transformer import TEACHERS


def execution_options(command: Callable[..., None]) -> Callable[..., None]:
    """How a recipe is carried out, see `training.engine.Execution`."""
    options = [
        click.option("--device", type=click.Choice(DEVICES), help="A GPU where there is one: auto."),
        click.option("--parallel", type=click.Choice(WAYS), help="Under torchrun: ddp (auto) or fsdp."),
        click.option("--precision", type=click.Choice(PRECISIONS), help="Of products; weights stay float32."),
        click.option("--accumulate", type=click.IntRange(1), help="Pieces that a process takes its batch in."),
        click.option("--recompute/--no-recompute", default=None, help="Run layers twice to save memory."),
        click.option("--compile", help="Backend of torch.compile, such as inductor."),
        click.option("--prefetch", type=click.IntRange(0), help="Batches prepared ahead; 0: each when it is needed."),
        click.option("--workers", type=click.IntRange(1), help="Threads that prepare batches ahead."),
        click.option("--tf32/--no-tf32", default=None, help="Round float32 products on a GPU to TF32."),
        click.option(
            "--fsdp-precision",
            type=click.Choice(FSDP_PRECISIONS),
            help="In which sharded layers are put together; their shares stay float32.",
        ),
        click.option("--until", type=click.IntRange(1), help="Stop after this step, with a checkpoint."),
        click.option("--log-every", type=click.IntRange(1), help="Steps between lines of the log."),
        click.option("--save-every", type=click.IntRange(1), help="Steps between checkpoints."),
        click.option("--keep", type=click.IntRange(1), help="The last checkpoints that stay; 1 by default."),
        click.option("--sample-every", type=click.IntRange(0), help="Steps between grids of sample pictures; 0: none."),
        click.option("--tensorboard/--no-tensorboard", default=None, help="Write RUN/tensorboard."),
        click.option("--wandb", metavar="PROJECT", help="Log to Weights & Biases."),
        click.option("--peak-tflops", type=float, help="Of one device, to report MFU; below 0 measures a product."),
        click.option("--profile/--no-profile", default=None, help="Write RUN/trace.json of a few steps."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _tell(made: Path) -> None:
    """The result, by one of the processes that torchrun started."""
    if os.environ.get("RANK", "0") == "0":
        click.echo(made)


def _report(line: str) -> None:
    click.echo(line, err=True)


def recipe_options(default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Which recipe, and single fields of it."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        setting = click.option(
            "--set",
            "settings",
            metavar="FIELD=VALUE",
            multiple=True,
            help="A field of the recipe or its execution, such as optimizer.lr=3e-4; goes before all else. Repeatable.",
        )
        which = "A file in training/recipes, by name, or a path to a .toml."
        return click.option("--recipe", default=default, show_default=True, help=which)(setting(command))

    return decorate


# Fields of the recipes that have options of their own; all other options are of the execution.
VQ_FIELDS = {
    "preset": "model.preset",
    "steps": "schedule.steps",
    "batch": "data.batch",
    "picture_size": "data.picture_size",
    "perceptual": "losses.perceptual",
}
TRANSFORMER_FIELDS = {
    "preset": "model.preset",
    "steps": "schedule.steps",
    "pictures": "data.pictures",
    "teacher": "distillation.teacher",
    "lora_rank": "model.lora_rank",
}


def _chosen(
    kind: type, recipe: str, model: str, fields: dict[str, str], given: dict[str, Any], settings: tuple[str, ...]
) -> tuple[Any, Any]:
    """The recipe and its execution, as a file and the command line say them."""
    from training.recipes.files import EXECUTION, assignments, combined

    options = {fields.get(name, EXECUTION + name): value for name, value in given.items()}
    return combined(kind, recipe, model, options | assignments(settings))


@click.command("vq")
@click.argument("run", type=FOLDER)
@recipe_options("vq-demo")
@click.option("--pictures", type=PRESENT_FOLDER, help="Folder of pictures; the procedural world when not given.")
@click.option("--preset", type=click.Choice(list(VQ_PRESETS)), help="Size of the tokenizer.")
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps.")
@click.option("--batch", type=click.IntRange(1), help="Pictures a step, over all processes.")
@click.option("--picture-size", type=click.IntRange(8), help="Side of the pictures in pixels.")
@click.option("--perceptual", help="none, edges, lpips:VGG16_WEIGHTS or dino:FOLDER (any local DINOv2 or CLIP).")
@click.option("--inception", type=FILE, help="inception-2015-12-05.pt (TorchScript), to report rFID.")
@click.option("--fid-encoder", type=PRESENT_FOLDER, help="Vision model (DINOv2, CLIP) for another distance.")
@execution_options
def train_vq(
    run: Path,
    recipe: str,
    settings: tuple[str, ...],
    pictures: Path | None,
    inception: Path | None,
    fid_encoder: Path | None,
    **given: Any,
) -> None:
    """Train the VQ tokenizer into the folder RUN (resumes what lies there).

    Options go before the recipe's values, and --set before the options.
    """
    from training import train_vq as trainer

    chosen, execution = _chosen(trainer.Recipe, recipe, "vq", VQ_FIELDS, given, settings)
    _tell(trainer.train(run, chosen, execution, pictures, fid_encoder, inception, _report))


@click.command("text-encoder")
@click.argument("run", type=FOLDER)
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps; the recipe's number when not given.")
@click.option("--batch", type=click.IntRange(1), help="Texts a step.")
def train_text(run: Path, **changes: int | None) -> None:
    """Train the tokenizer and the text encoder into the folder RUN (resumes what lies there)."""
    from training import train_text as recipe

    click.echo(recipe.train(run, replaced(recipe.Recipe, changes)))


@click.command("vision-encoder")
@click.argument("run", type=FOLDER)
@click.option(
    "--preset",
    type=click.Choice(list(VISION_PRESETS)),
    help="DINOv2-demo, which learns what every patch shows, when not given.",
)
@click.option("--text-encoder", type=PRESENT_FOLDER, help="The demo's, for CLIP-demo, which learns from captions.")
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps; the recipe's number when not given.")
@click.option("--batch", type=click.IntRange(1), help="Pictures a step.")
def train_vision(run: Path, text_encoder: Path | None, **changes: int | str | None) -> None:
    """Train a small vision encoder, a teacher for distillation, into the folder RUN (resumes what lies there)."""
    from training import train_vision as recipe

    click.echo(recipe.train(run, replaced(recipe.Recipe, changes), text_encoder))


@click.command("transformer")
@click.argument("run", type=FOLDER)
@recipe_options("demo")
@click.option("--tokens", type=PRESENT_FOLDER, help="Token shards: of `tokens`, or of `data extract`.")
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="In place of shards: a mixture or data set.")
@click.option("--text-encoder", type=PRESENT_FOLDER, help="Not needed where the shards hold text states.")
@click.option("--vq", type=FILE, help="The tokenizer: for a head start, sample pictures and --data.")
@click.option("--init", type=FILE, help="Weights to start from, such as LlamaGen's t2i_XL_stage2_512.pt.")
@click.option(
    "--validation",
    type=click.Path(exists=True, path_type=Path),
    help="Kept from training, to log the loss on it: token shards, or a mixture or data set as --data.",
)
@click.option("--teacher-folder", type=PRESENT_FOLDER, help="DINOv2 or CLIP; not needed where shards hold features.")
@click.option("--teacher", type=click.Choice(TEACHERS), help="What distillation learns from.")
@click.option("--preset", type=click.Choice(list(TRANSFORMER_PRESETS)), help="Size of the transformer.")
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps.")
@click.option("--pictures", type=click.IntRange(1), help="Condition pictures a step, over all processes.")
@click.option("--lora-rank", type=click.IntRange(0), help="Train adapters of this rank; 0 trains all weights.")
@execution_options
def train_transformer(
    run: Path,
    recipe: str,
    settings: tuple[str, ...],
    tokens: Path | None,
    data: Path | None,
    text_encoder: Path | None,
    vq: Path | None,
    init: Path | None,
    teacher_folder: Path | None,
    validation: Path | None,
    **given: Any,
) -> None:
    """Train the transformer into the folder RUN (resumes what lies there).

    Options go before the recipe's values, and --set before the options.
    """
    from training import train_transformer as trainer

    if (tokens is None) == (data is None):
        raise click.UsageError("give one of --tokens and --data")
    chosen, execution = _chosen(trainer.Recipe, recipe, "transformer", TRANSFORMER_FIELDS, given, settings)
    made = trainer.train(
        run,
        tokens,
        text_encoder,
        vq,
        chosen,
        execution,
        init=init,
        report=_report,
        data=data,
        teacher_folder=teacher_folder,
        validation=validation,
    )
    _tell(made)


@click.command("plot")
@click.argument("runs", nargs=-1, required=True, type=PRESENT_FOLDER)
@click.option("-o", "--output", type=OUTPUT_FILE, required=True, help="The PNG to write.")
def plot(runs: tuple[Path, ...], output: Path) -> None:
    """Draw the learning curves of a run's folder; of several RUNS over each other, named by their folders."""
    from training.plots import plot_log, plot_runs

    logs = {run.resolve().name: run / "log.jsonl" for run in runs}
    if len(logs) < len(runs):
        raise click.UsageError("two of the runs have folders of the same name, by which they would be told apart")
    for path in logs.values():
        if not path.is_file():
            raise click.UsageError(f"{path.parent} has no log.jsonl; give the folder of a run")
    if len(logs) == 1:
        plot_log(*logs.values(), output)
    else:
        plot_runs(logs, output)
    click.echo(output)


@click.command("demo")
@click.argument("run", type=FOLDER)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that draw pictures.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="float32",
    show_default=True,
    help="Of the transformer's products; bfloat16 saves a third of the time where the processor has it.",
)
@click.option("--compile", default="", help="Backend of torch.compile for the transformer, such as inductor.")
def train_demo(run: Path, workers: int, **execution: str) -> None:
    """Make the demo's three models from nothing into RUN, and say how to export them (resumes what lies there)."""
    from training import demo, train_text, train_transformer, train_vq
    from training.data.tokens import write_shards
    from training.engine import Execution
    from training.recipes.files import combined

    vq_recipe, _ = combined(train_vq.Recipe, "vq-demo", "vq", {})
    recipe, _ = combined(train_transformer.Recipe, "demo", "transformer", {})
    size = vq_recipe.data.picture_size
    vq = run / "vq" / "vq.pt"
    if not vq.exists():
        train_vq.train(run / "vq", vq_recipe)
    text_encoder = run / "text" / "text_encoder"
    if not text_encoder.exists():
        train_text.train(run / "text", train_text.Recipe())
    for shards, edit_share in demo.SHARDS:
        write_shards(run / "tokens", vq, size, 4, shards, 500, workers=workers, edit_share=edit_share)
    write_shards(run / "validation", vq, size, 5, 1, 128, workers=1, edit_share=0.4)
    transformer = train_transformer.train(
        run / "transformer",
        run / "tokens",
        text_encoder,
        vq,
        recipe,
        Execution(**execution),
        validation=run / "validation",
    )
    click.echo(f"python -m training samples {run}/samples")
    click.echo(
        f"python -m export onnx --transformer {transformer} --vq {vq} --text-encoder {text_encoder} "
        f"--image-size {size} --samples {run}/samples "
        "--default cfg_scale=2.0 --default temperature=0.3 -o engines/demo"
    )


COMMANDS = (train_vq, train_text, train_vision, train_transformer, plot, train_demo)
