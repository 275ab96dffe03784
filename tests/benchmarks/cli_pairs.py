"""`editar-cli edit` beside Python's `editar edit`, in turns: the whole command, from its start to the first token, and
its memory. The figures of docs/embedding.md.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.cli_pairs engines/demo [--pairs 10]

Both run with one thread, on the demo's picture, and must give the same pixels. What others of the machine cost is in
both halves of a pair, so the ratio of a pair says more than its seconds. The last line of stdout is a JSON document.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import click
import numpy as np
from PIL import Image

from editar_rt.machine import description
from tests.cpp.installed import engine_library, installed
from tests.runtime.demo import PICTURE, WORDS

WANTED = ("seconds", "to_first_token", "cpu_seconds", "megabytes")


def measured(command: list[str], bundle: Path, out: Path) -> dict[str, float]:
    """Run an edit in a process of its own.

    Returns:
        `seconds` from the process's start to its end; `to_first_token`, the same without decoding the other tokens and
        the pixels; `cpu_seconds`; `megabytes` of memory at the peak.
    """
    options = ["edit", str(bundle), str(PICTURE), WORDS, "-o", str(out), "--seed", "7", "--threads", "1", "--json"]
    environment = os.environ | {"EDITAR_ONNXRUNTIME": str(engine_library())}
    started = time.perf_counter()
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    timings = json.loads(said.splitlines()[-1])["timings"]
    return {
        "seconds": seconds,
        "to_first_token": seconds - timings["decode"] - timings["pixels"],
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "megabytes": usage.ru_maxrss / 1024,
    }


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--pairs", default=10, show_default=True)
def main(bundle: Path, pairs: int) -> None:
    """Measure pairs of edits of BUNDLE."""
    commands = {
        "editar-cli": [str(installed() / "bin/editar-cli")],
        "editar": [sys.executable, "-m", "editar_rt"],
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(pairs + 1):  # the first one only fills the caches
            order = list(commands) if pair % 2 else list(commands)[::-1]
            for name in order:
                made = measured(commands[name], bundle, Path(folder) / f"{name}.png")
                if pair > 0:
                    runs[name].append(made)
        mine, theirs = (np.asarray(Image.open(Path(folder) / f"{name}.png")) for name in commands)
    assert np.array_equal(mine, theirs)
    report: dict[str, object] = {
        "machine": description(),
        "date": date.today().isoformat(),
        "pairs": pairs,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }
    for wanted in WANTED:
        own, python = ([made[wanted] for made in runs[name]] for name in commands)
        ratios = [b / a for a, b in zip(own, python, strict=True)]
        report[wanted] = {
            "editar-cli": round(statistics.median(own), 3),
            "editar": round(statistics.median(python), 3),
            "ratio": round(statistics.median(ratios), 2),
            "ratios": [round(min(ratios), 2), round(max(ratios), 2)],
        }
        click.echo(f"{wanted:15} {report[wanted]}")
    click.echo(json.dumps(report))


if __name__ == "__main__":
    main()
