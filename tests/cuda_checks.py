"""ONNX Runtime's CUDA provider, checked and measured in one go on a GPU host without a network.

    python -m tests.cuda_checks prepare BUNDLE FOLDER     # where the exporter is: BUNDLE, fp32, in every precision
    python -m tests.cuda_checks run FOLDER RESULTS.json   # on the GPU host: editar_rt with onnxruntime-gpu, no PyTorch

Each bundle of FOLDER is compared with FOLDER/reference on the CPU, in float32: logits of forced tokens, and the first
token at which a greedy generation differs with the margin there; its self-test is repeated, where it has one of the
decoder; then it is measured. RESULTS.json is written after each. Not a test: pytest does not collect it.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import time
import traceback
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np

import editar_rt
from editar_rt import names, selftest
from editar_rt.bench import BundleSubject, Plan, measure

REFERENCE = "reference"
KINDS: dict[str, list[str]] = {
    "fp32-standard": ["--precision", "fp32", "--spelling", "standard"],
    "fp16": ["--precision", "fp16"],
    "bf16": ["--precision", "bf16"],
    "fp16-standard": ["--precision", "fp16", "--spelling", "standard"],
    "int8": ["--precision", "int8"],
    "int8-int8": ["--precision", "int8", "--kv-cache", "int8"],
    "int4": ["--precision", "int4"],
}
SCORED = 16  # forced tokens of a comparison are the picture's own count; so many are generated


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
def run(folder: Path, results: Path, device: str, steps: int) -> None:
    """Compare and measure every bundle of FOLDER."""
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": platform.platform(),
        "command": " ".join(["python", "-m", "tests.cuda_checks", *sys.argv[1:]]),
        "bundles": {},
    }
    expected = answers(editar_rt.load(folder / REFERENCE, "cpu"))
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and p.name != REFERENCE):
        begun = time.perf_counter()
        try:
            found = check(path, device, expected, steps)
        except Exception as error:  # one that fails must not hide the others
            found = {"failed": f"{type(error).__name__}: {error}", "where": traceback.format_exc().splitlines()[-3:]}
        report["bundles"][path.name] = found | {"seconds": round(time.perf_counter() - begun, 1)}
        partial = results.with_name(results.name + ".partial")
        partial.write_text(json.dumps(report, indent=1) + "\n")
        partial.replace(results)
        click.echo(f"{path.name}: {found.get('failed', 'done')}", err=True)
    click.echo(results)


def answers(editor: editar_rt.Editor) -> dict[str, np.ndarray]:
    """Logits of forced tokens, and greedy tokens with their margins, for seeded inputs."""
    model, count = editor.model, editor.picture_tokens
    rng = np.random.default_rng(0)
    states = rng.standard_normal((1, model.text_tokens or 0, model.text_dim or 0)).astype(np.float32)
    condition, target = rng.integers(0, model.vocab_size or 1, (2, 1, count), np.int32)
    cond, null = editor.score(states, condition, target)
    greedy = editar_rt.Sampling(cfg_scale=3.0, greedy=True)
    steps = [step for step, _ in zip(editor.steps(states, condition, greedy), range(min(SCORED, count)))]
    tokens = np.asarray([int(step.tokens[0, 0]) for step in steps])
    return {"cond": cond, "null": null, "tokens": tokens}


def drawn(editor: editar_rt.Editor, sampling: editar_rt.Sampling) -> np.ndarray:
    """A whole picture's tokens, for seeded inputs."""
    model, rng = editor.model, np.random.default_rng(1)
    states = rng.standard_normal((1, model.text_tokens or 0, model.text_dim or 0)).astype(np.float32)
    return editor.generate(
        states, rng.integers(0, model.vocab_size or 1, (1, editor.picture_tokens), np.int32), sampling
    )


def check(path: Path, device: str, expected: dict[str, np.ndarray], steps: int) -> dict[str, Any]:
    """One bundle's comparison, self-test and benchmark."""
    editor = editar_rt.load(path, device)
    found = answers(editor)
    differ = np.flatnonzero(found["tokens"] != expected["tokens"])
    document: dict[str, Any] = {
        "backend": editor.backend.name,
        "logits_error": {
            name: float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max())
            for name in ("cond", "null")
        },
        "greedy_first_difference": int(differ[0]) if len(differ) else None,
    }
    if names.DECODER in (editor.bundle.manifest.self_test or {}):
        checks = selftest.verify(editor)
        document["self_test"] = [{"what": f"{c.part}: {c.output}", "error": c.error, "holds": c.holds} for c in checks]
    plain = editar_rt.load(path, device)
    plain.backend.capture = False  # type: ignore[attr-defined]
    document["plain_greedy_tokens_equal"] = bool(np.array_equal(answers(plain)["tokens"], found["tokens"]))
    plan = Plan(steps=min(steps, editor.picture_tokens - 1))
    sampling = editar_rt.Sampling()
    document["drawn_tokens_equal"] = bool(np.array_equal(drawn(editor, sampling), drawn(plain, sampling)))
    # The first is captured where its name says so; its ratio to the plain one is beside it.
    document["benchmark"] = measure([BundleSubject(editor, sampling), BundleSubject(plain, sampling)], plan)
    document["backend"] = editor.backend.name
    return document


if __name__ == "__main__":
    cli()
