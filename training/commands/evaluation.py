"""Commands that measure a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from editar_rt.generation.noise import NOISES
from training.commands import FILE, FOLDER, OUTPUT_FILE, PRESENT_FOLDER, replaced
from training.commands.data import device_option

if TYPE_CHECKING:
    from training.evaluation.runs import Outcome

F = TypeVar("F", bound=Callable[..., Any])


class _DemoByDefault(click.Group):
    """`evaluate BUNDLE` is `evaluate demo BUNDLE`, as it was before there were other benchmarks."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["demo", *args]
        return super().parse_args(ctx, args)


@click.group("evaluate", cls=_DemoByDefault)
def evaluate_group() -> None:
    """Measure a bundle: on the procedural world (demo, guidance), PIE-Bench, or translations."""


def draw_options(command: F) -> F:
    """Options in place of the bundle's defaults, but for guidance."""
    options = (
        click.option("--temperature", type=float, help="Instead of the bundle's default; so are the next three."),
        click.option("--top-k", type=int),
        click.option("--top-p", type=float),
        click.option("--noise", type=click.Choice(NOISES)),
    )
    for option in reversed(options):
        command = option(command)
    return command


def sampling_options(command: F) -> F:
    """Options in place of the bundle's defaults."""
    return click.option("--cfg-scale", type=float, help="Instead of the bundle's default.")(draw_options(command))


seeds_option = click.option(
    "--seeds",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Sampling seeds: so many pictures of every record or scene; measures are means over them.",
)


runtime_option = click.option(
    "--runtime", default="auto", show_default=True, help="Device of the bundle: cpu, cuda, tensorrt, emulated, …"
)


def run_options(command: F) -> F:
    """Options of the evaluations that go on where they were stopped."""
    options = (
        click.option("--bundle", type=PRESENT_FOLDER, help="What to measure."),
        click.option("-o", "--output", type=FOLDER, help="Folder of the results; goes on with what lies there."),
        click.option("--limit", type=click.IntRange(1), help="So many records, evenly spread; all when not given."),
        click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Pictures made at once."),
        click.option("--sample-seed", type=click.IntRange(0), help="First sampling seed, not the bundle's default."),
        seeds_option,
        runtime_option,
        device_option("the measuring networks"),
        click.option("--json", "as_json", is_flag=True, help="One JSON document as the last line of stdout."),
    )
    for option in reversed(options):
        command = option(command)
    return sampling_options(command)


@evaluate_group.command("demo")
@click.argument("bundle", type=PRESENT_FOLDER)
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Held-out scenes a kind.")
@click.option("--seed", default=0, show_default=True, help="Which held-out scenes.")
@seeds_option
@sampling_options
@click.option("-o", "--output", type=OUTPUT_FILE, help="Write the JSON here too.")
@click.option("--sheet", type=OUTPUT_FILE, help="Write a contact sheet here.")
@click.option("--masked", is_flag=True, help="Edits alone, each under the mask of what it truly changes.")
@click.option("--ceiling", is_flag=True, help="Also score the true pictures through the VQ tokenizer alone.")
@runtime_option
def run_evaluation(
    bundle: Path,
    count: int,
    seed: int,
    seeds: int,
    output: Path | None,
    sheet: Path | None,
    masked: bool,
    ceiling: bool,
    runtime: str,
    **changes: float | None,
) -> None:
    """Score BUNDLE strictly on held-out scenes; JSON on stdout."""
    import editar_rt
    from training import evaluate

    editor = editar_rt.load(bundle, runtime)
    sampling = replaced(lambda: editor.default_sampling, changes)

    def tell(kind: str, result: dict[str, Any]) -> None:
        low, high = result["success_interval"]
        click.echo(f"{kind}: {100 * result['success']:.1f} % succeed ({100 * low:.1f} to {100 * high:.1f})", err=True)

    report, shown = evaluate.evaluate(editor, count, sampling, seed, seeds, masked=masked, on_kind=tell)
    if ceiling:
        report["tokenizer_ceiling"] = evaluate.tokenizer_ceiling(editor)
    if output:
        evaluate.write_report(report, output)
    if sheet:
        evaluate.contact_sheet(shown, sheet)
    click.echo(json.dumps(report))


@evaluate_group.command("guidance")
@click.argument("bundle", type=PRESENT_FOLDER)
@click.option(
    "--scale",
    "scales",
    type=click.FloatRange(0),
    multiple=True,
    default=(1, 1.5, 2, 3, 4, 5, 6, 8),
    show_default=True,
    help="Guidance scale η; once for each.",
)
@click.option("--count", type=click.IntRange(1), default=50, show_default=True, help="Held-out scenes a kind.")
@click.option("--seed", default=0, show_default=True, help="Which held-out scenes.")
@seeds_option
@draw_options
@click.option("-o", "--output", type=OUTPUT_FILE, help="Write the JSON here too.")
@click.option("--plot", type=OUTPUT_FILE, help="Draw it here, a PNG.")
def guidance(
    bundle: Path,
    scales: tuple[float, ...],
    count: int,
    seed: int,
    seeds: int,
    output: Path | None,
    plot: Path | None,
    **changes: float | None,
) -> None:
    """Score BUNDLE on the procedural world's held-out scenes at several guidance scales; JSON on stdout."""
    import editar_rt
    from training import evaluate
    from training.plots import plot_guidance

    def tell(result: dict[str, Any]) -> None:
        rates = (f"{100 * result[f'{group}_success']:.1f} % of {group}" for group in ("edits", "translations"))
        click.echo(f"scale {result['cfg_scale']:g}: {', '.join(rates)} succeed", err=True)

    sampling = replaced(lambda: editar_rt.load(bundle).default_sampling, changes)
    report = evaluate.guidance_sweep(bundle, scales, count, sampling, seed, seeds, on_scale=tell)
    if output:
        evaluate.write_report(report, output)
    if plot:
        plot_guidance(report, plot)
    click.echo(json.dumps(report))


@evaluate_group.command("pie-bench")
@click.argument("path", type=FOLDER)
@run_options
@click.option("--clip", type=PRESENT_FOLDER, help="openai/clip-vit-large-patch14 in Hugging Face layout.")
@click.option("--dino", type=PRESENT_FOLDER, help="facebook/dino-vitb8 in Hugging Face layout.")
@click.option("--lpips", type=FILE, help="torchvision's squeezenet1_1-b8a52dc0.pth.")
@click.option("--make-example", is_flag=True, help="Write a small benchmark of the procedural world to PATH, no more.")
@click.option("--example-size", type=click.IntRange(16), default=128, show_default=True, help="Side of its pictures.")
def pie_bench(
    path: Path,
    clip: Path | None,
    dino: Path | None,
    lpips: Path | None,
    make_example: bool,
    example_size: int,
    **options: Any,
) -> None:
    """Measure a bundle on PIE-Bench, whose mapping_file.json and annotation_images/ lie in PATH."""
    if make_example:
        from training.evaluation import example

        click.echo(f"{path}: {example.make_example(path, example_size)} edits")
        return
    from training.evaluation.networks import Networks
    from training.evaluation.runs import evaluate_pie_bench

    networks = Networks.load(clip, dino, lpips, options["device"])
    _run(
        lambda editor, **rest: evaluate_pie_bench(path, editor, networks=networks, **rest),
        networks.missing(),
        **options,
    )


@evaluate_group.command("translation")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--task", type=click.Choice(["depth", "canny", "segmentation"]), required=True)
@click.option("--format", "layout", help="Of a data set that its columns do not tell; see docs/data.md.")
@run_options
@click.option("--inception", type=FILE, help="inception-2015-12-05.pt (TorchScript), for FID.")
@click.option("--depth", type=PRESENT_FOLDER, help="Intel/dpt-large in Hugging Face layout, for --task depth.")
@click.option("--segmenter", type=PRESENT_FOLDER, help="A segmenter in Hugging Face layout, for --task segmentation.")
@click.option("--palette", type=FILE, help="JSON list of the classes' colours in the masks.")
def translation(
    path: Path,
    task: str,
    layout: str | None,
    inception: Path | None,
    depth: Path | None,
    segmenter: Path | None,
    palette: Path | None,
    **options: Any,
) -> None:
    """Measure a bundle on the translations in PATH, a data set or a mixture's TOML file."""
    from training.data.sources import read_plan
    from training.evaluation.translation import TranslationNetworks, evaluate_translation

    networks = TranslationNetworks.load(inception, depth, segmenter, palette, options["device"])
    plan = read_plan(path, layout)
    _run(
        lambda editor, **rest: evaluate_translation(plan, task, editor, networks=networks, **rest),
        networks.missing(task),
        **options,
    )


def _run(
    evaluation: Callable[..., Outcome],
    missing: list[str],
    bundle: Path | None,
    output: Path | None,
    runtime: str,
    device: str,
    as_json: bool,
    limit: int | None,
    batch: int,
    sample_seed: int | None,
    seeds: int,
    **changes: float | None,
) -> None:
    """An evaluation with a bundle: the table on stdout; what will be missing from it on stderr, before it starts."""
    import editar_rt
    from editar_rt.cli.options import progress

    if bundle is None or output is None:
        raise click.UsageError("give --bundle BUNDLE and -o FOLDER")
    editor = editar_rt.load(bundle, runtime)
    sampling = replaced(lambda: editor.default_sampling, {"seed": sample_seed, **changes})
    for sentence in missing:
        click.echo(sentence, err=True)
    with progress("evaluating", "pictures") as update:
        outcome = evaluation(
            editor, output=output, sampling=sampling, limit=limit, batch=batch, seeds=seeds, on_progress=update
        )
    for message in outcome.bad.messages:
        click.echo(f"bad: {message}", err=True)
    click.echo(outcome.table)
    if as_json:
        click.echo(json.dumps(outcome.report))


COMMANDS = (evaluate_group,)
