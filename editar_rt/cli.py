"""The `editar` command line. Results go to stdout, everything else to stderr.

Exit codes: 0, 1 for an error (one sentence on stderr), 2 for a bad option, 130 for Ctrl-C.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

import editar_rt
from editar_rt.backends import DEVICES, make_backend
from editar_rt.backends.prepacked import OFF
from editar_rt.backends.prepacked import VARIABLE as CACHE
from editar_rt.bundle import Bundle
from editar_rt.editor import Editor
from editar_rt.errors import BackendError, BundleError, EditarError, OptionError, PictureError, TruncatedTextWarning
from editar_rt.memory import memory_needs
from editar_rt.pixels import fit_square, open_picture
from editar_rt.prompts import TASKS, build_prompt
from editar_rt.sampling import Sampling

F = TypeVar("F", bound=Callable[..., Any])
DEMO_BUNDLE = Path("engines/demo")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(editar_rt.__version__, prog_name="editar")
def cli() -> None:
    """Edit pictures from instructions with an EditAR bundle."""


def main() -> None:
    """Entry point: turns every expected error into one sentence and an exit code."""
    warnings.simplefilter("always", TruncatedTextWarning)
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    logging.basicConfig(format="editar: %(message)s")  # to stderr
    logging.getLogger("editar_rt").setLevel(logging.INFO)
    try:
        code = cli.main(prog_name="editar", standalone_mode=False)
    except click.ClickException as e:
        e.show()
        code = e.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("editar: stopped", err=True)
        code = 130
    except OptionError as e:
        click.echo(f"editar: {e}", err=True)
        code = 2
    except EditarError as e:
        click.echo(f"editar: {e}", err=True)
        code = 1
    except BrokenPipeError:
        # The reader of stdout has gone; give Python a stream that it can flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _show_warning(message: Any, category: Any, *_: Any) -> None:
    name = "" if issubclass(category, TruncatedTextWarning) else f"{category.__name__}: "
    click.echo(f"editar: {name}{message}", err=True)


# Options that several commands share.


def sampling_options(command: F) -> F:
    """One option a field of `Sampling`; what is not given stays as the bundle has it."""
    options = (
        click.option("--seed", type=int, help="Random seed, 0 or more."),
        click.option("--cfg-scale", type=float, help="Guidance scale; 1 and below go without."),
        click.option("--cfg-interval", type=int, help="Last step with guidance; -1: all."),
        click.option("--temperature", type=float, help="Above 0."),
        click.option("--top-k", type=int, help="Keep the k likeliest tokens; 0: all."),
        click.option("--top-p", type=float, help="Keep the likeliest tokens up to this probability; 1: all."),
        click.option("--greedy", is_flag=True, default=None, help="Always take the likeliest token."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def device_options(command: F) -> F:
    # The environment variable is the setting's one home; the option is short for it.
    command = click.option(
        "--no-cache",
        is_flag=True,
        expose_value=False,
        callback=_refuse_cache,
        help=f"Do not keep rearranged weights on disk; as {CACHE}={OFF}.",
    )(command)
    command = click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores when not given.")(command)
    return click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)(command)


def _refuse_cache(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given:
        os.environ[CACHE] = OFF


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document as the last line.")
task_option = click.option("--task", type=click.Choice(TASKS), default="edit", show_default=True)
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))


def _sampling(defaults: Sampling, options: dict[str, Any]) -> Sampling:
    return dataclasses.replace(defaults, **{k: v for k, v in options.items() if v is not None})


def _check_sampling(options: dict[str, Any]) -> None:
    """Refuse bad values before the bundle is opened."""
    _sampling(Sampling(), options)


def _check_writable(path: Path) -> None:
    """Say before the work, not after it, that the output cannot be written."""
    folder = path.parent
    if not folder.is_dir():
        raise PictureError(f"cannot write {path}: there is no folder {folder}")
    if path.is_dir():
        raise PictureError(f"cannot write {path}: it is a folder")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise PictureError(f"cannot write {path}: permission denied")


@contextlib.contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with units a second on a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[unit]}  {task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, unit=unit, rate="")
        first: list[float] = []

        def update(done: int, total: int) -> None:
            now = time.perf_counter()
            first.append(now) if not first else None
            # The first unit holds the prefill or the warm-up: the rate counts from its end.
            rate = f"{(done - 1) / (now - first[0]):.1f} {unit}/s" if done > 1 else ""
            bar.update(task, completed=done, total=total, rate=rate)

        yield update


@cli.command()
@bundle_argument
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("instruction")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The PNG to write.")
@task_option
@click.option(
    "--text-states",
    type=click.Path(path_type=Path),
    help="Instead of BUNDLE's text encoder: a file of editar text, or another bundle whose encoder is used.",
)
@sampling_options
@device_options
@json_option
def edit(
    bundle: Path,
    image: Path,
    instruction: str,
    output: Path,
    task: str,
    text_states: Path | None,
    device: str,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Edit IMAGE as INSTRUCTION says; with --task, make a picture from a condition IMAGE and a description."""
    _check_sampling(options)
    _check_writable(output)
    picture = open_picture(image)
    editor = editar_rt.load(bundle, device, threads)
    states = None if text_states is None else _text_states(text_states, instruction, task, device, threads)
    sampling = _sampling(editor.default_sampling, options)
    with progress("editing", "tokens") as update:
        result = editor.edit(picture, instruction, task, sampling, update, states)
    result.save(output)
    if as_json:
        document = {"output": str(output), "timings": result.timings, "parameters": result.parameters}
        click.echo(json.dumps(document))
    else:
        click.echo(f"{output}  ({result.timings['total']:.2f} s)")


def _text_states(source: Path, instruction: str, task: str, device: str, threads: int | None) -> Any:
    """Text states from a file, or from the encoder of another bundle, which is closed again."""
    from editar_rt.states import load_states

    if source.is_dir():
        return editar_rt.load(source, device, threads).encode_text([instruction], task)
    return load_states(source)


@cli.command()
@bundle_argument
@click.argument("instruction")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .npz to write.")
@task_option
@device_options
def text(bundle: Path, instruction: str, output: Path, task: str, device: str, threads: int | None) -> None:
    """Run BUNDLE's text encoder on INSTRUCTION alone, for: editar edit --text-states."""
    from editar_rt.states import save_states

    _check_writable(output)
    states = editar_rt.load(bundle, device, threads).encode_text([instruction], task)
    save_states(output, states, build_prompt(task, instruction))
    click.echo(output)


@cli.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("editar-demo"), show_default=True)
@click.option("--bundle", type=click.Path(path_type=Path), default=DEMO_BUNDLE, show_default=True)
@sampling_options
@device_options
@json_option
def demo(output: Path, bundle: Path, device: str, threads: int | None, as_json: bool, **options: Any) -> None:
    """Do every task on the bundle's sample pictures and make a contact sheet."""
    from editar_rt.sheets import Cell, contact_sheet, save_png

    _check_sampling(options)
    if bundle == DEMO_BUNDLE and not bundle.exists():
        raise BundleError(f"there is no {bundle} here; run editar demo in a checkout of the project, or give --bundle")
    editor = editar_rt.load(bundle, device, threads)
    samples = read_samples(editor.bundle)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise PictureError(f"cannot make the folder {output}: {e.strerror}") from None
    sampling = _sampling(editor.default_sampling, options)
    cells, written = [], []
    started = time.perf_counter()
    with progress("editing", "pictures") as update:
        for n, (picture, task, instruction) in enumerate(samples):
            result = editor.edit(picture, instruction, task, sampling)
            path = output / f"{n:02d}-{task}.png"
            result.save(path)
            written.append(str(path))
            source = fit_square(open_picture(picture), editor.image_size)
            cells.append(Cell([source, result.image], instruction if task == "edit" else f"{task}: {instruction}"))
            update(n + 1, len(samples))
    sheet = output / "contact-sheet.png"
    save_png(contact_sheet(cells), sheet)
    seconds = time.perf_counter() - started
    if as_json:
        click.echo(json.dumps({"contact_sheet": str(sheet), "pictures": written, "seconds": seconds}))
    else:
        click.echo(f"{len(written)} pictures in {seconds:.1f} s; look at {sheet}")


def read_samples(bundle: Bundle) -> list[tuple[Path, str, str]]:
    """(picture, task, instruction) of the sample pictures that a bundle carries."""
    name = bundle.manifest.samples
    if name is None:
        raise BundleError(f"the bundle {bundle.folder} carries no sample pictures; use: editar edit")
    try:
        entries = json.loads(bundle.path(name).read_text())["samples"]
        listed = [(str(e["picture"]), str(e["task"]), str(e["instruction"])) for e in entries]
    except (ValueError, KeyError, TypeError) as e:
        raise BundleError(f"{bundle.folder / name} is not a list of samples ({e!r}); export the bundle again") from None
    return [(bundle.path(picture), task, instruction) for picture, task, instruction in listed]


@cli.command()
@bundle_argument
@click.option("--check", is_flag=True, help="Hash every file again, the largest too.")
@json_option
def info(bundle: Path, check: bool, as_json: bool) -> None:
    """Say what BUNDLE holds: parts, shapes, precision, sizes, hashes."""
    opened = Bundle.open(bundle)
    if check:
        opened.check()
    manifest = opened.manifest
    needs = memory_needs(manifest)
    if as_json:
        memory = {device: dataclasses.asdict(need) | {"total": need.total} for device, need in needs.items()}
        document = dataclasses.asdict(manifest) | {
            "fingerprint": opened.fingerprint,
            "checked": check,
            "memory": memory,
        }
        click.echo(json.dumps(document))
        return
    model = manifest.model
    click.echo(f"{bundle}  format {manifest.format_version}  {manifest.precision}  spelling {manifest.spelling}")
    click.echo(f"fingerprint {opened.fingerprint}" + ("  all hashes checked" if check else ""))
    if model.image_size:
        click.echo(f"pictures     {model.image_size}×{model.image_size} pixels, {model.picture_tokens} tokens")
    if model.dim:
        click.echo(
            f"transformer  {model.layers} layers, {model.heads} heads, width {model.dim}, {model.vocab_size} tokens"
        )
    if model.text_dim:
        click.echo(f"text         {model.text_tokens} tokens, width {model.text_dim}")
    defaults = opened.default_sampling
    click.echo("sampling     " + ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(defaults).items()))
    for device, need in needs.items():
        parts = (("weights", need.weights), ("cache", need.cache), ("activations", need.activations))
        listed = ", ".join(f"{what} {size / 1e6:.0f}" for what, size in parts)
        click.echo(f"memory       {device}: about {need.total / 1e6:.0f} MB ({listed})")
    for name, part in manifest.parts.items():
        files = [f for f in manifest.files if f == part.file or f.startswith(part.file + ".")]
        size = sum(manifest.files[f].bytes for f in files)
        count = model.parameters.get(name)
        parameters = f"  {count / 1e6:.2f} M parameters" if count is not None else ""
        click.echo(f"\n{name}  {size / 1e6:.2f} MB{parameters}")
        for label, tensors in (("in ", part.inputs), ("out", part.outputs)):
            shown = [t for t in tensors if not t.name.startswith(("past_key", "past_value", "present_"))]
            for t in shown:
                click.echo(f"  {label} {t.name} {t.dtype} {t.shape}")
            if len(shown) < len(tensors):
                click.echo(f"  {label} … and {len(tensors) - len(shown)} of the KV cache")
    click.echo("\nfiles")
    for name, file in manifest.files.items():
        click.echo(f"  {file.sha256}  {file.bytes:>12}  {name}")


@cli.command()
@bundle_argument
@device_options
@json_option
def verify(bundle: Path, device: str, threads: int | None, as_json: bool) -> None:
    """Repeat BUNDLE's self-test on this machine: does it answer as where it was exported?"""
    from editar_rt.selftest import verify as run_self_test

    editor = editar_rt.load(bundle, device, threads)
    editor.bundle.check()
    checks = run_self_test(editor)
    holds = all(check.holds for check in checks)
    if as_json:
        listed = [dataclasses.asdict(check) | {"holds": check.holds} for check in checks]
        click.echo(json.dumps({"backend": editor.backend.name, "holds": holds, "checks": listed}))
    else:
        for check in checks:
            verdict = "identical" if check.identical else "ok" if check.holds else "DIFFERS"
            click.echo(f"{check.part:12} {check.output:20} error {check.error:.1e}  bound {check.bound:.0e}  {verdict}")
    if not holds:
        failed = ", ".join(f"{c.part}: {c.output}" for c in checks if not c.holds)
        raise BackendError(
            f"{editor.backend.name} does not answer as the exporting machine did ({failed}); "
            "try another --device, or export the bundle again on this machine"
        )


@cli.command()
@bundle_argument
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True, help="Repeats that do not count.")
@click.option("--steps", type=click.IntRange(1), help="Decode steps a repeat; to the end of the picture by default.")
@click.option("--at", type=click.IntRange(1), help="Filled cache positions where they begin; else behind the text.")
@click.option("--compare", type=click.Path(path_type=Path), multiple=True, help="Another bundle, measured in turns.")
@click.option("--chart", type=click.Path(path_type=Path), help="Draw where a step's time goes (.png, .svg).")
@sampling_options
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
    device: str,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure BUNDLE on this machine, stage by stage; with --compare in turns with others, and their ratios."""
    from editar_rt.bench import BundleSubject, Plan, lines, measure

    _check_sampling(options)
    plan = Plan(repeats, warmup, at, steps)
    if chart is not None:
        from editar_rt.profile import check_chart

        _check_writable(chart)
        check_chart(chart)
    bundles = [Bundle.open(path) for path in (bundle, *compare)]
    samplings = [_sampling(opened.default_sampling, options) for opened in bundles]
    subjects = [
        BundleSubject(Editor(opened, make_backend(opened, device, threads)), sampling)
        for opened, sampling in zip(bundles, samplings)
    ]
    with progress("measuring", "runs") as update:
        report = measure(subjects, plan, update)
    del subjects  # their memory goes before the profiles are made
    if chart is not None:
        from editar_rt.profile import draw_chart, limit_ms, profile_steps

        profiled = dataclasses.replace(plan, steps=min(plan.steps or 32, 32), warmup=0, repeats=1)
        bars = []
        for opened, sampling, document in zip(bundles, samplings, [report, *report.get("others", [])]):
            document["step_ms_by_kind"] = profile_steps(opened, device, threads, profiled, sampling)
            bars.append((document["name"], document["step_ms_by_kind"], limit_ms(document)))
        draw_chart(bars, chart)
    click.echo(json.dumps(report) if as_json else "\n".join(lines(report)))
