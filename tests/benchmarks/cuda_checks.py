"""ONNX Runtime's CUDA provider, checked and measured in one go on a GPU host without a network.

    python -m tests.benchmarks.cuda_checks prepare BUNDLE FOLDER     # where the exporter is, BUNDLE in fp32
    python -m tests.benchmarks.cuda_checks run FOLDER RESULTS.json   # on the GPU host, without PyTorch

The first exports BUNDLE in every precision; the second needs editar_rt with onnxruntime-gpu.

Each bundle of FOLDER is compared with FOLDER/reference on the CPU, in float32: logits of forced tokens, and the first
token at which a greedy generation differs with the margin there; captured steps and passes that verify drafts are
compared with plain steps, greedy and drawn; its self-test is repeated, where it has one of the decoder; then it is
measured. Each bundle runs in its own process with a time limit, so that a crash or a hang stops no other bundle.
RESULTS.json is written before each and after. Not a test: pytest does not collect it.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np

import editar_rt
from editar_rt import names
from editar_rt.backends.engines.cuda import Device, find_runtime
from editar_rt.errors import BackendError, EditarError
from editar_rt.files import placing
from editar_rt.generation.decoding import Step
from editar_rt.measure import selftest
from editar_rt.measure.bench import BundleSubject, Plan, measure
from tests.benchmarks.gpu_host.measure import hardware, run_stage

REFERENCE = "reference"
KINDS: dict[str, list[str]] = {
    "fp32-standard": ["--precision", "fp32", "--dialect", "standard"],
    "fp16": ["--precision", "fp16"],
    "bf16": ["--precision", "bf16"],
    "fp16-standard": ["--precision", "fp16", "--dialect", "standard"],
    "int8": ["--precision", "int8"],
    "int8-int8": ["--precision", "int8", "--kv-cache", "int8"],
    "int4": ["--precision", "int4"],
    "int4-int8": ["--precision", "int4", "--kv-cache", "int8"],
}
DRAFTED = 8  # positions of a pass that verifies drafts; fewer where a picture has fewer tokens
SCORED = 16  # forced tokens of a comparison are the picture's own count; so many are generated
GREEDY = editar_rt.Sampling(cfg_scale=3.0, greedy=True)


@click.group()
def cli() -> None:
    """See the module's docstring."""


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def prepare(bundle: Path, folder: Path) -> None:
    """Convert BUNDLE for CUDA in every precision into FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(bundle, folder / REFERENCE)
    for kind, options in KINDS.items():
        command = [sys.executable, "-m", "export", "convert", str(bundle), "--provider", "cuda", *options]
        subprocess.run([*command, "-o", str(folder / kind)], check=True)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--steps", type=click.IntRange(1), default=64, show_default=True, help="Decode steps measured a repeat.")
@click.option("--limit", type=float, default=900, show_default=True, help="Seconds that each bundle may take.")
def run(folder: Path, results: Path, device: str, steps: int, limit: float) -> None:
    """Compare and measure every bundle of FOLDER."""
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": platform.platform(),
        "hardware": hardware(),
        "command": " ".join(["python", "-m", "tests.benchmarks.cuda_checks", *sys.argv[1:]]),
        "bundles": {},
    }
    expected = results.with_name(results.name + ".expected.npz")
    found = outcome(["answer", str(folder / REFERENCE), str(expected)], limit)
    report[REFERENCE] = found
    click.echo(f"{REFERENCE}: {found.get('failed', 'done')}", err=True)
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and p.name != REFERENCE):
        report["bundles"][path.name] = {"began": True}
        write(report, results)
        known = [str(expected)] if expected.is_file() else []
        found = outcome(["check", str(path), *known, "--device", device, "--steps", str(steps)], limit)
        report["bundles"][path.name] = found
        write(report, results)
        click.echo(f"{path.name}: {found.get('failed', 'done')}", err=True)
    expected.unlink(missing_ok=True)
    click.echo(results)


def write(report: dict[str, Any], results: Path) -> None:
    with placing(results, EditarError) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")


def outcome(arguments: list[str], limit: float) -> dict[str, Any]:
    """What a command of this module in a process of its own printed, or `failed` with the reason; and its `seconds`."""
    stage = run_stage(arguments[0], ["tests.benchmarks.cuda_checks", *arguments], limit, ["-m"])
    seconds, code = {"seconds": stage["seconds"]}, stage["exit"]
    if code == 0 and stage["document"] is not None:
        return stage["document"] | seconds
    said = stage["errors"].strip().splitlines()[-6:]
    if code is None:
        return {"failed": f"no end within {limit:g} s", "where": said} | seconds
    if code < 0:
        return {"failed": f"ended by signal {-code}", "where": said} | seconds
    return {"failed": said[-1] if said else f"exit {code}", "where": said[:-1]} | seconds


@cli.command(hidden=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("expected", type=click.Path(path_type=Path))
def answer(bundle: Path, expected: Path) -> None:
    """Write BUNDLE's answers on the CPU."""
    editor = editar_rt.load(bundle, "cpu")
    np.savez(expected, **answers(editor))
    click.echo(json.dumps({"backend": editor.backend.name}))


@cli.command(hidden=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("expected", type=click.Path(path_type=Path), required=False)
@click.option("--device", required=True)
@click.option("--steps", type=int, required=True)
def check(bundle: Path, expected: Path | None, device: str, steps: int) -> None:
    """Check and measure BUNDLE; without EXPECTED it is compared with nothing."""
    known = None
    if expected is not None:
        with np.load(expected) as file:
            known = dict(file)
    click.echo(json.dumps(examine(bundle, device, known, steps)))


def inputs(editor: editar_rt.Editor, seed: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """A generator that has made seeded text states [1, T, C] and a picture's tokens [1, N]."""
    model, rng = editor.model, np.random.default_rng(seed)
    states = rng.standard_normal((1, model.text_tokens or 0, model.text_dim or 0)).astype(np.float32)
    return rng, states, rng.integers(0, model.vocab_size or 1, (1, editor.picture_tokens), np.int32)


def answers(editor: editar_rt.Editor) -> dict[str, np.ndarray]:
    """Logits of forced tokens, and greedy tokens with their margins, for seeded inputs."""
    rng, states, condition = inputs(editor, 0)
    target = rng.integers(0, editor.model.vocab_size or 1, condition.shape, np.int32)
    cond, null = editor.score(states, condition, target)
    steps = zip(editor.steps(states, condition, GREEDY), range(min(SCORED, editor.picture_tokens)))
    pairs = [(int(step.tokens[0, 0]), margin(step)) for step, _ in steps]
    tokens, margins = (np.asarray(each) for each in zip(*pairs))
    return {"cond": cond, "null": null, "tokens": tokens, "margins": margins}


def margin(step: Step) -> float:
    """How far the largest logit is above the next, as a share of the largest in size."""
    assert step.logits is not None
    second, first = np.partition(step.logits[0], -2)[-2:]
    return float((first - second) / np.abs(step.logits[0]).max())


def first_difference(ours: Iterator[Step], theirs: Iterator[Step]) -> dict[str, Any] | None:
    """Where two generations first have different tokens; None where they nowhere do.

    Returns:
        `position`; `margin` of the other's logits there; `logits_error` there, as a share of the largest. Until then
        both were given the same tokens, so that a margin below the error is nothing but rounding.
    """
    for own, other in zip(ours, theirs):
        if not np.array_equal(own.tokens, other.tokens):
            assert own.logits is not None and other.logits is not None
            error = float(np.abs(own.logits - other.logits).max() / np.abs(other.logits).max())
            return {"position": int(own.position), "margin": margin(other), "logits_error": error}
    return None


def examine(path: Path, device: str, expected: dict[str, np.ndarray] | None, steps: int) -> dict[str, Any]:
    """One bundle's comparison, self-test and benchmark."""
    editor = editar_rt.load(path, device)
    document: dict[str, Any] = {"backend": editor.backend.name, "gpu": gpu() if device == "cuda" else None}
    if expected is not None:
        found = answers(editor)
        document["logits_error"] = {
            name: float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max())
            for name in ("cond", "null")
        }
        differ = np.flatnonzero(found["tokens"] != expected["tokens"])
        document["greedy_first_difference"] = (
            {"position": int(differ[0]), "margin": float(expected["margins"][differ[0]])} if len(differ) else None
        )
    if names.DECODER in (editor.bundle.manifest.self_test or {}):
        checks = selftest.verify(editor)
        document["self_test"] = [{"what": f"{c.part}: {c.output}", "error": c.error, "holds": c.holds} for c in checks]
    plain = editar_rt.load(path, device)
    plain.backend.capture = False  # type: ignore[attr-defined]
    _, states, condition = inputs(editor, 1)
    draft = min(DRAFTED, (editor.picture_tokens - 1) // 2 * 2)
    for name, speculate in (("captured", None), ("drafted", draft)):
        document[f"{name}_and_plain_first_difference"] = {
            kind: first_difference(
                editor.steps(states, condition, sampling, speculate=speculate), plain.steps(states, condition, sampling)
            )
            for kind, sampling in (("greedy", GREEDY), ("drawn", editar_rt.Sampling()))
        }
    plan = Plan(steps=min(steps, editor.picture_tokens - 1))
    # The first is captured where its name says so; its ratios to the plain one and to the one that drafts are beside it
    subjects = [BundleSubject(each, editar_rt.Sampling()) for each in (editor, plain)]
    document["benchmark"] = measure([*subjects, BundleSubject(editor, editar_rt.Sampling(), speculate=draft)], plan)
    document["backend"] = editor.backend.name
    return document


def gpu() -> dict[str, str] | str:
    """The GPU as CUDA's runtime describes it, with its own version and the newest that the driver knows."""
    try:
        runtime = find_runtime()
        found, newest = Device(runtime), runtime.call("cudaDriverGetVersion")
    except BackendError as error:
        return str(error)
    driver = f"{newest // 1000}.{newest % 1000 // 10}"
    return {"name": found.name, "capability": found.capability, "cuda": found.cuda, "cuda_of_driver": driver}


if __name__ == "__main__":
    cli()
