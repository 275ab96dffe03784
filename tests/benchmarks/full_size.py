"""Exports of EditAR's full size, measured: python -m tests.benchmarks.full_size FOLDER

Makes weights of the published sizes and layouts from seeds (GPT-XL for 512×512, VQ-16, a T5-XL encoder), exports each
at every precision in a process of its own, repeats the bundle's self-test, compares it with PyTorch, and writes time,
peak memory and errors to FOLDER/full_size.json. Needs 40 GB of disk and 12 GB of memory. Not a test: pytest does not
collect it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[2]
T5_XL = {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32}
T5_VOCABULARY = 32128
PARTS = ("vq", "transformer", "text-encoder")
# Options of every precision; what no CPU runs is exported, and compared through its twin while it is.
PRECISIONS: dict[str, list[str]] = {
    "fp32": [],
    "fp16": [],
    "bf16": ["--provider", "cuda"],
    "int8": ["--kv-cache", "int8"],
    "int4": ["--kv-cache", "int8"],
}


def make_weights(folder: Path, part: str) -> Path:
    """Seeded weights in the official layout; kept where they lie already."""
    import torch

    from tests.conftest import write_text_encoder
    from tests.golden.seeded_checkpoint import gpt_state
    from training.config import TRANSFORMER_PRESETS, VQ_PRESETS
    from training.models.text_encoder import build_text_encoder
    from training.models.vq import VQModel

    path = folder / {"vq": "vq_ds16_t2i.pt", "transformer": "editar_release.pt", "text-encoder": "flan-t5-xl"}[part]
    if path.exists():
        return path
    torch.manual_seed(0)
    partial = path.with_name(path.name + ".partial")
    if part == "vq":
        torch.save({"model": VQModel(VQ_PRESETS["VQ-16"]).state_dict()}, partial)
    elif part == "transformer":
        state = gpt_state("full_size/", TRANSFORMER_PRESETS["GPT-XL"].to_dict())
        torch.save({"model": {name: torch.from_numpy(value) for name, value in state.items()}}, partial)
    else:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write_text_encoder(partial, states_dim=64)  # for its tokenizer
        (partial / "model.safetensors").unlink()
        model: Any = build_text_encoder(T5_XL, T5_VOCABULARY)
        model.save_pretrained(partial, max_shard_size="2GB")
    partial.rename(path)
    return path


def measured(command: list[str]) -> dict[str, Any]:
    """Runs a command; its wall time, largest resident memory and exit code."""
    begun = time.perf_counter()
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert running.stdout is not None
    output = running.stdout.read()
    _, status, usage = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begun
    return {
        "command": " ".join(Path(c).name if "/" in c else c for c in command[1:]),
        "exit": running.returncode,
        "seconds": round(seconds, 1),
        "peak_memory": usage.ru_maxrss * 1024,
        "output": output.splitlines()[-12:],
    }


def tables(report: dict[str, Any]) -> str:
    """The report as Markdown: costs of every command, then errors of every output."""
    lines = [
        f"Measured on {report['date']}, {report['machine']}.",
        "",
        "| part | precision | what | seconds | peak memory, GB | over fp32 weights | bundle, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in report["runs"]:
        share = run["peak_memory"] / run["weights_bytes"]
        bundle = f"{run['bundle_bytes'] / 1e9:.2f}" if "bundle_bytes" in run else ""
        cost = f"{run['seconds']:.0f} | {run['peak_memory'] / 1e9:.2f} | {share:.2f} | {bundle}"
        failed = "" if run["exit"] == 0 else f" (exit {run['exit']})"
        lines.append(f"| {run['part']} | {run['precision']} | {run['what']}{failed} | {cost} |")
    lines += ["", "| precision | output | largest error | relative error | allowed |", "|---|---|---|---|---|"]
    for run in report["runs"]:
        for found in run.get("compared", {}).get("parts", []):
            errors = f"{found['largest_error']:.1e} | {found['relative_error']:.1e} | {found['bound']:.0e}"
            lines.append(f"| {run['precision']} | {found['part']}: {found['output']} | {errors} |")
        for found in run.get("compared", {}).get("generated", []):
            where = "equal" if found["first_difference"] is None else f"first differs at {found['first_difference']}"
            margin = "" if found["margin"] is None else f"{found['margin']:.1e}"
            what = f"{found['steps']} greedy tokens, cfg_scale {found['cfg_scale']:g}"
            lines.append(f"| {run['precision']} | {what} | {where} | {margin} | {found['bound']:.0e} |")
    return "\n".join(lines)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS, show_default=True)
@click.option("--precision", "precisions", type=click.Choice(list(PRECISIONS)), multiple=True, default=PRECISIONS)
@click.option("--keep", is_flag=True, help="Keep the bundles, for benchmarks.")
@click.option("--table", is_flag=True, help="Only print FOLDER/full_size.json as Markdown.")
@click.option("--steps", default=8, show_default=True, help="Tokens of the greedy generations compared.")
def main(
    folder: Path, parts: tuple[str, ...], precisions: tuple[str, ...], keep: bool, table: bool, steps: int
) -> None:
    """Export and verify the full size; results go to FOLDER/full_size.json after every step."""
    result = folder / "full_size.json"
    if table:
        click.echo(tables(json.loads(result.read_text())))
        return
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()} {platform.system()}",
        "runs": [],
    }
    for part in parts:
        # In a process of its own: what a process ever took counts as its children's peak too.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            weights = pool.apply(make_weights, (folder, part))
        size = sum(f.stat().st_size for f in ([weights] if weights.is_file() else weights.iterdir()))
        differ = {"vq": ("fp32",), "text-encoder": ("fp32", "fp16")}.get(part, tuple(PRECISIONS))
        for precision in [p for p in precisions if p in differ]:
            bundle = folder / f"{part}-{precision}"
            extra = {"vq": ["--image-size", "512"], "transformer": [], "text-encoder": []}[part]
            extra += ["--precision", precision, *PRECISIONS[precision]]
            option = [f"--{part}", str(weights), *extra, "-o", str(bundle), "--force"]
            against = ["--against", str(weights), "--steps", str(steps), "--json"]
            runs = {
                "export": [sys.executable, "-m", "export", "onnx", *option],
                "self-test": [sys.executable, "-m", "editar_rt", "verify", str(bundle), "--device", "cpu"],
                "verify": [sys.executable, "-m", "export", "verify", str(bundle), *against],
            }
            for what, command in runs.items():
                if what != "export" and "cuda" in extra:
                    continue
                entry = {"part": part, "precision": precision, "what": what, "weights_bytes": size} | measured(command)
                if what == "verify" and entry["exit"] == 0:
                    entry["compared"] = json.loads(entry["output"][-1])
                    entry["output"] = []
                if what == "export" and entry["exit"] == 0:
                    entry["bundle_bytes"] = sum(f.stat().st_size for f in bundle.rglob("*") if f.is_file())
                report["runs"].append(entry)
                click.echo(f"{part} {precision} {what}: exit {entry['exit']}, {entry['seconds']} s", err=True)
                result.write_text(json.dumps(report, indent=1) + "\n")
            if not keep:
                shutil.rmtree(bundle, ignore_errors=True)
    result.write_text(json.dumps(report, indent=1) + "\n")
    click.echo(result)


if __name__ == "__main__":
    main()
