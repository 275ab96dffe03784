"""Opening a large bundle in both runtimes, with and without kept weights:

python -m tests.benchmarks.opening BUNDLE EDITAR_CLI [--rounds 3]

Runs `verify`, which opens the parts and feeds a few positions, and `bench` with a nearly full cache,
each as a new process and in turns, and prints seconds and peak memory. EDITAR_CLI is the built `editar-cli`.
Not a test: pytest does not collect it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import click

from editar_rt.backends.kept_folder import VARIABLE
from tests.cpp.installed import engine_library

BENCH = ("bench", "--steps", "12", "--at", "1600", "--repeats", "1", "--warmup", "0", "--json")
WAYS = {"as stored": ("--no-cache",), "kept": ()}


class Run(NamedTuple):
    """What a process took."""

    seconds: float
    cpu: float  # seconds
    peak: int  # resident bytes, as the system counts them
    once: int | None  # every page once; of `bench` alone


def run(command: list[str], cache: Path) -> Run:
    """Run a command to its end."""
    environment = os.environ | {VARIABLE: str(cache), "EDITAR_ONNXRUNTIME": str(engine_library())}
    begun = time.perf_counter()
    running = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    assert running.stdout is not None
    output = running.stdout.read()
    _, status, usage = os.wait4(running.pid, 0)
    seconds = time.perf_counter() - begun
    if os.waitstatus_to_exitcode(status) != 0:
        raise click.ClickException(f"{' '.join(command)} failed")
    document = json.loads(output.splitlines()[-1])
    cpu = usage.ru_utime + usage.ru_stime
    return Run(seconds, cpu, usage.ru_maxrss * 1024, document.get("peak_memory"))


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("editar_cli", type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=3, show_default=True)
def main(bundle: Path, editar_cli: Path, rounds: int) -> None:
    """Compare the two runtimes, in turns."""
    programs = {"C++": [str(editar_cli)], "Python": [sys.executable, "-m", "editar_rt"]}
    found: dict[tuple[str, ...], list[Run]] = {}
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        for name, program in programs.items():  # the first opening, which makes kept weights; the last ones are used
            command = [*program, "verify", str(bundle), "--device", "cpu", "--json"]
            found["verify", "kept, the first time", name] = [run(command, Path(folder) / name)]
        for _ in range(rounds):
            for way, option in WAYS.items():
                for what in (("verify", "--json"), BENCH):
                    for name, program in programs.items():
                        command = [*program, what[0], str(bundle), *what[1:], "--device", "cpu", *option]
                        found.setdefault((what[0], way, name), []).append(run(command, Path(folder) / "Python"))
    click.echo("| what | weights | runtime | seconds | CPU seconds | peak, MB | every page once, MB |")
    click.echo("|---|---|---|---|---|---|---|")
    for (command_name, way, name), runs in found.items():
        seconds, cpu = (statistics.median(each[place] for each in runs) for place in (0, 1))
        peak = statistics.median(each.peak for each in runs) / 1e6
        once = [each.once for each in runs if each.once is not None]
        shown = f"{statistics.median(once) / 1e6:.0f}" if once else ""
        click.echo(f"| {command_name} | {way} | {name} | {seconds:.1f} | {cpu:.1f} | {peak:.0f} | {shown} |")


if __name__ == "__main__":
    main()
