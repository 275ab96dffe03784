"""One replica against two, a folder by Ray Data against the command alone, and what a cluster costs.

    python -m tests.benchmarks.replicas [--pictures 200] [--requests 64] [--rounds 2]

Needs Ray and a network namespace, as `tests/server/test_ray.py` does. The sides of a comparison take turns. Prints a
line for each run, and one JSON document at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.runtime.demo import BUNDLE, SAMPLES, WORDS
from tests.server.two_nodes import Cluster, end, two_nodes

URL = "http://127.0.0.1:8765"
AT_ONCE = 16
MIB = 1 << 20


@contextmanager
def serving(cluster: Cluster, replicas: int) -> Iterator[float]:
    """The seconds until it serves."""
    command = [sys.executable, "-m", "editar_rt", "serve", str(BUNDLE), "--ray", "--replicas", str(replicas)]
    started = time.perf_counter()
    process = cluster.start(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield time.perf_counter() - started
        process.send_signal(signal.SIGTERM)
        process.wait()
    finally:
        end(process)


def rate(cluster: Cluster, requests: int) -> float:
    """Pictures per second of stock clients; the first answers are not counted."""
    program = (sys.executable, "-m", "tests.server.stock_clients", URL, str(requests + AT_ONCE), str(AT_ONCE))
    process = cluster.start(*program, stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = [(time.perf_counter(), json.loads(line)) for line in process.stdout]
    process.wait()
    assert len(lines) == requests + AT_ONCE and all(len(answer) == 64 for _, (_, answer) in lines), lines
    return requests / (lines[-1][0] - lines[AT_ONCE - 1][0])


def seconds_of_folder(cluster: Cluster, pictures: Path, *options: str) -> float:
    with tempfile.TemporaryDirectory() as out:
        arguments = ["-m", "editar_rt", "edit", str(BUNDLE), str(pictures), WORDS, "-o", out, "--threads=1", *options]
        started = time.perf_counter()
        done = cluster.python(*arguments, seconds=600)
        assert done.returncode == 0, done.stderr.decode()
        assert len(list(Path(out).iterdir())) == len(list(pictures.iterdir()))
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, usual in (("pictures", 200), ("requests", 64), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    given = parser.parse_args()
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(round(value, 2))
        print(f"{name}: {value:.2f}", file=sys.stderr, flush=True)

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, two_nodes({}) as cluster:
        note("start of two nodes, seconds", time.perf_counter() - started)
        note("memory of two idle nodes, MiB", cluster.memory() / MIB)
        names = sorted(SAMPLES.glob("recolour-*.png"))
        for number in range(given.pictures):
            shutil.copy(names[number % len(names)], Path(folder) / f"{number:04}.png")
        for _ in range(given.rounds):
            note("folder alone, seconds", seconds_of_folder(cluster, Path(folder)))
            note("folder with Ray Data, seconds", seconds_of_folder(cluster, Path(folder), "--ray"))
            for replicas in (1, 2):
                with serving(cluster, replicas) as seconds:
                    note(f"start of {replicas} replicas, seconds", seconds)
                    note(f"memory with {replicas} replicas, MiB", cluster.memory() / MIB)
                    note(f"pictures per second of {replicas} replicas", rate(cluster, given.requests))
    summary: dict[str, Any] = {name: {"median": statistics.median(all_), "all": all_} for name, all_ in found.items()}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
