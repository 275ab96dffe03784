"""Commands that make what is trained on."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import click

from training.choices import VIEWS
from training.commands import FILE, FOLDER, OUTPUT_FILE, PRESENT_FOLDER
from training.config import VQ_PRESETS
from training.errors import first_line


@click.command("tokens")
@click.argument("folder", type=FOLDER)
@click.option("--vq", type=FILE, required=True, help="Checkpoint of the tokenizer.")
@click.option("--size", default=128, show_default=True, help="Side of the pictures in pixels.")
@click.option("--seed", default=4, show_default=True)
@click.option("--shards", type=click.IntRange(1), default=20, show_default=True)
@click.option("--groups", type=click.IntRange(1), default=500, show_default=True, help="Condition pictures a shard.")
@click.option(
    "--edit-share", type=click.FloatRange(0, 1), default=0.72, show_default=True, help="Of groups; the rest translate."
)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes.")
@click.option("--features", type=PRESENT_FOLDER, help="Write the targets' patch features too (a vision encoder).")
def write_tokens(folder: Path, vq: Path, features: Path | None, edit_share: float, **amounts: int) -> None:
    """Draw examples of the procedural world and write their tokens to FOLDER (keeps the shards that lie there)."""
    from training.data.tokens import write_shards

    write_shards(folder, vq, **amounts, vision_encoder=features, edit_share=edit_share)
    click.echo(folder)


@click.command("samples")
@click.argument("folder", type=FOLDER)
@click.option("--size", default=128, show_default=True, help="Side of the pictures in pixels.")
def make_samples(folder: Path, size: int) -> None:
    """Write the sample pictures of a demo bundle to FOLDER."""
    from training.samples import write_samples

    write_samples(folder, size)
    click.echo(folder)


@click.group("data")
def data() -> None:
    """Public data sets, and your own: what they hold, and their tokens."""


format_option = click.option("--format", "layout", help="Of a data set that its columns do not tell; see docs/data.md.")


def _checked_device(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    import torch

    try:
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError) as error:
        raise click.BadParameter(f"{value}: {first_line(error)}") from None
    return value


def device_option(what: str) -> Any:
    """`--device`, refused where PyTorch does not have it."""
    text = f"Where {what} run: cpu, cuda, cuda:1, …"
    return click.option("--device", default="cpu", show_default=True, callback=_checked_device, help=text)


@data.command("check")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@format_option
@click.option("--limit", type=click.IntRange(1), default=200, show_default=True, help="Records read a data set.")
@click.option("--all", "everything", is_flag=True, help="Read every record.")
@click.option("--sheet", type=OUTPUT_FILE, help="Write a contact sheet here.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document as the last line of stdout.")
def check(path: Path, layout: str | None, limit: int, everything: bool, sheet: Path | None, as_json: bool) -> None:
    """Say what PATH holds: a data set, a mixture's TOML file, or a folder of token shards."""
    from editar_rt.cli.options import progress
    from editar_rt.images.writing import save_picture
    from editar_rt.observe.sheets import contact_sheet
    from training.data import check as checking
    from training.data.shards import holds_shards
    from training.data.sources import read_plan

    if holds_shards(path):
        report = checking.check_shards(path)
        for name, value in report.items():
            click.echo(f"{name:<17} {value}")
    else:
        with progress("reading", "records") as update:
            holdings, bad, cells = checking.check_plan(read_plan(path, layout), None if everything else limit, update)
        report = {"sources": {name: h.to_dict() for name, h in holdings.items()}, "bad_records": bad.messages}
        row = "{:<20} {:>9} {:>6} {:>7} {:>5}  {}"
        click.echo(row.format("data set", "records", "share", "read", "bad", "tasks; sizes"))
        for name, h in holdings.items():
            told = "; ".join(", ".join(f"{k} {v}" for k, v in c.most_common(5)) for c in (h.tasks, h.sizes))
            click.echo(row.format(name, h.records, f"{h.share:.3f}", h.read, h.bad, told))
        for message in bad.messages:
            click.echo(f"bad: {message}", err=True)
        if bad.total > len(bad.messages):
            click.echo(f"bad: and {bad.total - len(bad.messages)} more", err=True)
        if sheet:
            save_picture(contact_sheet(cells), sheet)
            click.echo(f"contact sheet: {sheet}", err=True)
    if as_json:
        click.echo(json.dumps(report))


@data.command("extract")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.argument("folder", type=FOLDER)
@format_option
@click.option("--vq", type=FILE, required=True, help="Weights of the tokenizer, ours or official.")
@click.option("--vq-preset", type=click.Choice(list(VQ_PRESETS)), help="Sizes of an official one; VQ-16 by default.")
@click.option("--size", type=click.IntRange(16), default=512, show_default=True, help="Side of the pictures in pixels.")
@click.option("--text-encoder", type=PRESENT_FOLDER, help="Write the text's states too (a T5 folder).")
@click.option("--text-tokens", type=click.IntRange(1), default=120, show_default=True, help="Positions of a text.")
@click.option(
    "--features", type=PRESENT_FOLDER, help="Write the targets' patch features too (a DINOv2 or CLIP folder)."
)
@click.option(
    "--features-view",
    type=click.Choice(VIEWS),
    default="reference",
    show_default=True,
    help="What that model is shown: the part that its own preprocessing cuts out, or the whole picture.",
)
@click.option("--groups", type=click.IntRange(1), default=500, show_default=True, help="Records a shard.")
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Records encoded at once.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads that read pictures.")
@click.option("--limit", type=click.IntRange(1), help="Records of each data set at most.")
@click.option(
    "--bfloat16",
    type=click.Choice(["vq", "text", "features"]),
    multiple=True,
    help="Round this model's products to bfloat16; may be given several times.",
)
@device_option("the models")
def extract(
    path: Path,
    folder: Path,
    layout: str | None,
    vq: Path,
    vq_preset: str | None,
    size: int,
    text_encoder: Path | None,
    text_tokens: int,
    features: Path | None,
    features_view: str,
    bfloat16: tuple[str, ...],
    device: str,
    **amounts: int | None,
) -> None:
    """Turn PATH (a data set or a mixture's TOML file) into token shards in FOLDER; goes on where it was stopped.

    Under torchrun every process writes its share of the shards, with --device cuda on a GPU of its own.
    """
    from editar_rt.cli.options import progress
    from training.checkpoints import open_vq
    from training.data import extract as extraction
    from training.data.features import PatchFeatures
    from training.data.sources import read_plan
    from training.distributed import pick_device, started
    from training.provenance import fingerprint

    plan = read_plan(path, layout)
    rank, processes, local_rank = started()
    if device == "cuda":
        device = str(pick_device(device, local_rank))
    encoders = extraction.Encoders(
        open_vq(vq, vq_preset).to(device),
        extraction.TextStates(text_encoder, text_tokens, device) if text_encoder else None,
        PatchFeatures(features, device, features_view) if features else None,
        frozenset(bfloat16),
    )
    models = {"vq": vq, "text_encoder": text_encoder, "features": features}
    settings: dict[str, Any] = {k: v and fingerprint(v) for k, v in models.items()}
    settings["features_view"] = features_view if features and features_view != "whole" else None
    settings["text_tokens"] = text_tokens if text_encoder else None
    settings["bfloat16"] = sorted(set(bfloat16)) or None
    with progress("encoding", "records") if rank == 0 else contextlib.nullcontext(lambda done, total: None) as update:
        written, bad = extraction.extract(
            plan, folder, encoders, size, settings, **amounts, on_progress=update, rank=rank, processes=processes
        )
    for message in bad.messages:
        click.echo(f"bad: {message}", err=True)
    by = f" by process {rank} of {processes}" if processes > 1 else ""
    click.echo(f"{folder}: {written} records{by}, {bad.total} bad ones left out")


COMMANDS = (write_tokens, make_samples, data)
