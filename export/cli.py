"""`python -m export …`: checkpoints in, a bundle out. Results go to stdout, errors in one sentence to stderr.

PyTorch and ONNX are imported inside the commands that need them: help texts and the command `tensorrt` work on devices
without them.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from editar_rt.backends import DEVICES
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.words import DIALECTS, KV_CACHES, PRECISIONS
from editar_rt.errors import BundleError, OptionError
from editar_rt.generation.sampling import Sampling
from export.recipe import PROVIDERS, recipe_names
from export.tensorrt_cli import tensorrt

if TYPE_CHECKING:
    from export.checkpoint_reader import Checkpoint
    from export.model_info import Options, Sources
    from export.precision import Storage

PATH = click.Path(path_type=Path)
REFERENCE_MODES = (
    "fp32",
    "bf16",
    "compiled-fp32",
    "compiled-bf16",
)  # of `reference_bench`, which loads when it is used
OFFICIAL_PRECISION = "fp16"
WEIGHTS = ("ema", "model")  # of `training.weights_file`, which loads when it is used
F = TypeVar("F", bound=Callable[..., Any])
Read = TypeVar("Read", bound="Checkpoint[Any]")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Export trained weights to bundles, and bundles to engines."""


cli.add_command(tensorrt)


def storage_options(precision: str = "fp32") -> Callable[[F], F]:
    """Options for the storage of the decoder: a recipe, and single options that override it.

    Args:
        precision: the command's default, if neither a recipe nor the option gives one.
    """
    options = (
        click.option(
            "--target",
            help=f"Recipe in engines/ ({', '.join(recipe_names())}), or a .toml file. The options below override it.",
        ),
        click.option(
            "--precision", type=click.Choice(list(PRECISIONS)), help=f"Weight precision (default {precision})."
        ),
        click.option(
            "--kv-cache",
            type=click.Choice(KV_CACHES),
            help="KV cache type: int8, or the same as the activations (default).",
        ),
        click.option("--dialect", type=click.Choice(list(DIALECTS)), help="Operators of the decoder (default ort)."),
        click.option("--spelling", type=click.Choice(list(DIALECTS)), hidden=True),
        click.option("--provider", type=click.Choice(PROVIDERS), help="Execution provider (default cpu; bf16: cuda)."),
        click.option(
            "--sampling-head/--no-sampling-head",
            default=None,
            help="Add a sampling head: the device samples tokens itself (dialects delta and native; default off).",
        ),
        click.option(
            "--calibration",
            type=PATH,
            help="Folder of pictures with samples.json, for the scales of an int8 cache.",
        ),
    )

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


weights_option = click.option(
    "--weights",
    type=click.Choice(WEIGHTS),
    help="Weights of a checkpoint to use: the moving average (ema; default if there is one) or model.",
)


def _read(reader: Callable[..., Read], path: Path | None, *options: object) -> Read | None:
    """Read a checkpoint, if one was given. Its notes (choices made, tensors skipped) are printed on stderr."""
    if path is None:
        return None
    checkpoint = reader(path, *options)
    for note in checkpoint.notes:
        click.echo(note, err=True)
    return checkpoint


@cli.command("onnx")
@click.option("--transformer", type=PATH, help="Checkpoint of the transformer (.pt or .safetensors).")
@click.option("--vq", type=PATH, help="Checkpoint of the VQ tokenizer (.pt or .safetensors).")
@click.option("--text-encoder", type=PATH, help="Hugging Face folder of a T5 and its tokenizer.")
@click.option("-o", "--output", type=PATH, required=True, help="Folder of the bundle to write.")
@click.option("--heads", type=click.IntRange(1), help="Attention heads, for sizes other than the published ones.")
@weights_option
@click.option(
    "--image-size",
    type=click.IntRange(1),
    help="Side of the pictures in pixels, if there is no transformer.",
)
@click.option("--text-tokens", type=click.IntRange(1), help="Number of text positions, if there is no transformer.")
@storage_options()
@click.option("--samples", type=PATH, help="Folder of sample pictures with samples.json, copied into the bundle.")
@click.option(
    "--default",
    "defaults",
    metavar="NAME=VALUE",
    multiple=True,
    help="Sampling default of this bundle, such as temperature=0.9; may be repeated. Without one, noise is gumbel.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
def onnx(
    transformer: Path | None,
    vq: Path | None,
    text_encoder: Path | None,
    output: Path,
    heads: int | None,
    weights: str | None,
    image_size: int | None,
    text_tokens: int | None,
    target: str | None,
    calibration: Path | None,
    samples: Path | None,
    defaults: tuple[str, ...],
    force: bool,
    **choices: str | bool | None,
) -> None:
    """Write a bundle of ONNX graphs. Its parts are any of a transformer, a VQ tokenizer and a text encoder.

    Every graph is compared with PyTorch; if one differs, no bundle is written.
    """
    from export.checkpoint_reader import read_transformer, read_vq
    from export.model_info import Options, Sources
    from export.text_reader import read_text_encoder

    # Report bad options before the minutes of reading.
    sampling = NEW_BUNDLES | parse_defaults(defaults)
    stored = _storage(target, calibration, choices)
    sources = Sources(
        transformer=_read(read_transformer, transformer, heads, weights),
        vq=_read(read_vq, vq, weights),
        text_encoder=read_text_encoder(text_encoder) if text_encoder is not None else None,
    )
    options = Options(
        storage=stored,
        image_size=image_size,
        text_tokens=text_tokens,
        samples=samples,
        calibration=calibration,
        sampling=sampling,
        command=command_line(sys.argv[1:]),
    )
    _write(output, sources, options, force)


def _storage(target: str | None, calibration: Path | None, choices: Mapping[str, str | bool | None]) -> Storage:
    """The storage of the decoder. Calibration pictures are also checked here, before the work."""
    from export.calibration import read_list
    from export.precision import storage

    choices = dict(choices)
    if (old := choices.pop("spelling")) is not None:
        click.echo("--spelling is deprecated and will be removed in 0.3; use --dialect", err=True)
        choices["dialect"] = choices["dialect"] or old
    stored = storage(target, **choices)
    if calibration is not None:
        read_list(calibration)
    return stored


def _write(output: Path, sources: Sources, options: Options, force: bool) -> None:
    from export.bundle_writer import write_bundle

    manifest = write_bundle(output, sources, options, force, report=click.echo)
    size = sum(file.bytes for file in manifest.files.values())
    click.echo(f"wrote {output}: {', '.join(manifest.parts)}; {size / 2**20:.1f} MiB")


@cli.command("convert")
@click.argument("bundle", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder of the bundle to write.")
@storage_options()
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
def convert(
    bundle: Path,
    output: Path,
    target: str | None,
    calibration: Path | None,
    force: bool,
    **choices: str | bool | None,
) -> None:
    """Convert the transformer of an fp32 BUNDLE. Its other parts are copied unchanged."""
    from export.checkpoint_reader import read_transformer
    from export.model_info import Options, Sources

    _refuse_existing(output, force)
    stored = _storage(target, calibration, choices)
    opened = Bundle.open(bundle)
    opened.check()
    options = Options(
        storage=stored,
        calibration=calibration,
        sampling=opened.manifest.sampling,
        command=command_line(sys.argv[1:]),
    )
    _write(output, Sources(transformer=read_transformer(bundle), kept=opened), options, force)


def _refuse_existing(output: Path, force: bool) -> None:
    """Reject an existing output before the work, not after it."""
    if output.exists() and not force:
        raise BundleError(f"{output} exists; choose another name, or replace it with --force")


@cli.command("official")
@click.option("-o", "--output", type=PATH, help="Folder of the bundle to write; not needed with --only-look.")
@storage_options(OFFICIAL_PRECISION)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--only-look", is_flag=True, help="Only list the files that would be downloaded.")
def official(
    output: Path | None,
    target: str | None,
    calibration: Path | None,
    force: bool,
    only_look: bool,
    **choices: str | bool | None,
) -> None:
    """Download EditAR's released weights. Makes a bundle of them, for 512×512 pictures.

    Without a recipe or --precision, the weights are stored in fp16, half the size of the released ones.
    """
    from export.official import look

    if only_look:
        for line in look():
            click.echo(line)
        return
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output': the bundle to write, a folder.")
    _refuse_existing(output, force)
    from export.checkpoint_reader import read_transformer, read_vq
    from export.model_info import Options, Sources
    from export.official import fetch
    from export.text_reader import read_text_encoder

    if target is None:
        choices["precision"] = choices["precision"] or OFFICIAL_PRECISION
    stored = _storage(target, calibration, choices)
    parts = fetch(output, 1.0 if stored.precision == "fp32" else 0.5, report=click.echo)
    sources = Sources(
        transformer=_read(read_transformer, parts.transformer),
        vq=_read(read_vq, parts.vq),
        text_encoder=read_text_encoder(parts.text_encoder),
    )
    options = Options(storage=stored, calibration=calibration, command=command_line(sys.argv[1:]))
    _write(output, sources, options, force)


@cli.command("verify")
@click.argument("bundle", type=PATH)
@click.option(
    "--against",
    type=PATH,
    multiple=True,
    required=True,
    help="Checkpoint (.pt, .safetensors) or folder of the text encoder; may be repeated.",
)
@click.option("--heads", type=click.IntRange(1), help="Attention heads, for sizes other than the published ones.")
@weights_option
@click.option(
    "--steps",
    type=click.IntRange(0),
    default=16,
    show_default=True,
    help="Tokens to generate and compare.",
)
@click.option(
    "--device",
    type=click.Choice(DEVICES[1:]),
    help="Also run the bundle on this device (default: TensorRT, if the bundle contains engines for it).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document as the last line.")
def verify(
    bundle: Path,
    against: tuple[Path, ...],
    heads: int | None,
    weights: str | None,
    steps: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Compare BUNDLE with its checkpoints. Compares every part, then greedy generations."""
    from export.bundle_writer import ParityError
    from export.checkpoint_reader import read_either
    from export.model_info import Sources
    from export.text_reader import read_text_encoder
    from export.verify import verify as compare
    from training.config import VQConfig

    sources = Sources()
    for path in against:
        if path.is_dir():
            sources = dataclasses.replace(sources, text_encoder=read_text_encoder(path))
            continue
        checkpoint = _read(read_either, path, heads, weights)
        assert checkpoint is not None  # a path was given
        if isinstance(checkpoint.config, VQConfig):
            sources = dataclasses.replace(sources, vq=checkpoint)
        else:
            sources = dataclasses.replace(sources, transformer=checkpoint)
    report = compare(bundle, sources, steps, lambda part: click.echo(f"comparing {part}", err=True), device)
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        for line in report.lines():
            click.echo(line)
    if not report.holds:
        raise ParityError(f"the outputs of {bundle} differ from those of its checkpoints; export it again")


@cli.command("bench-reference")
@click.argument("transformer", type=PATH)
@click.option(
    "--mode",
    "modes",
    type=click.Choice(REFERENCE_MODES),
    multiple=True,
    default=["fp32"],
    show_default=True,
    help="Type; may be repeated.",
)
@click.option("--compare", type=PATH, multiple=True, help="Measure this bundle too, interleaved; may be repeated.")
@click.option("--heads", type=click.IntRange(1), help="Attention heads, for sizes other than the published ones.")
@weights_option
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Measured runs.")
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True, help="Unmeasured runs before them.")
@click.option("--steps", type=click.IntRange(1), show_default="to the end of the picture", help="Decode steps per run.")
@click.option(
    "--at", type=click.IntRange(1), show_default="picture and prompt", help="Cached positions at the first step."
)
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Device to run on."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document as the last line.")
def bench_reference(
    transformer: Path,
    modes: tuple[str, ...],
    compare: tuple[Path, ...],
    heads: int | None,
    weights: str | None,
    repeats: int,
    warmup: int,
    steps: int | None,
    at: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure the PyTorch model of a checkpoint. With --compare, bundles are measured too, and reported first."""
    import editar_rt
    from editar_rt.measure.bench import BundleSubject, Plan, Subject, measure, printed
    from export.checkpoint_reader import read_transformer
    from export.reference_bench import ReferenceSubject

    plan = Plan(repeats, warmup, at, steps)
    bundles: list[Subject] = [BundleSubject(editar_rt.load(path, device), Sampling()) for path in compare]
    checkpoint = _read(read_transformer, transformer, heads, weights)
    assert checkpoint is not None  # a path was given
    report = measure([*bundles, *(ReferenceSubject(checkpoint, mode, device) for mode in modes)], plan)
    click.echo(printed(report, as_json))


# Drafts hold more often with Gumbel noise, and rounding changes fewer tokens (docs/performance.md).
NEW_BUNDLES: dict[str, int | float | str] = {"noise": "gumbel"}


def parse_defaults(given: tuple[str, ...]) -> dict[str, int | float | str]:
    """Parse NAME=VALUE options to fields of `Sampling` that a bundle may set."""
    usual = dataclasses.asdict(Sampling())
    del usual["seed"], usual["greedy"]  # they belong to a call, not to a model
    found: dict[str, int | float | str] = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in usual:
            raise OptionError(f"--default must be NAME=VALUE with one of the names {', '.join(usual)}; got {text!r}")
        kind: type[float] | type[int] | type[str] = type(usual[name])
        try:
            found[name] = kind(value)
        except ValueError:
            raise OptionError(
                f"--default {name} must be {'an integer' if kind is int else 'a number'}, got {value!r}"
            ) from None
    Sampling(**found)  # type: ignore[arg-type]  # checks the ranges
    return found


def command_line(arguments: list[str]) -> str:
    """The command that makes this bundle, without the folder names of this machine."""
    return shlex.join(["python", "-m", "export", *(Path(a).name if "/" in a or "\\" in a else a for a in arguments)])
