"""What `run.sh` does once all is unpacked: engines of every bundle at hand, their parity, and how fast they are.

    python -m tests.benchmarks.gpu_host.measure RESULTS SECONDS

Each stage is a process of its own with what is left of the time as its limit. Written to RESULTS/results.json after
each: the command, its exit code, wall time, the JSON document it printed, the end of what it said.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RTX = importlib.util.find_spec("tensorrt_rtx") is not None  # TensorRT for RTX was packed, not TensorRT
# As h200, for one picture at a time: built in less time.
TARGET = str(Path(__file__).with_name("measured-rtx.toml" if RTX else "measured.toml"))
RESERVE = 20  # seconds to write results and leave
# A child's interpreter needs what run.sh set for this one.
PROGRAM = """
import os, runpy, sys
sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def stages(project: Path) -> list[tuple[str, list[str]]]:
    """Name and arguments of every stage, by value: that it works at all, then the large model, then the rest.

    A bundle of the dialect native, whose name ends with that, is measured right after that of delta, or before it where
    it is large: what the two differ by is most worth knowing. Passes that verify drafts come next where there are
    engines for them, sampled by the head, if any, and by the host. Bundles with a sampling head are measured with it,
    and then on the host's sampling; INT4 weights come last, which TensorRT 8 refuses to build.
    """
    demo, seeded, int4 = (project / name for name in ("demo", "seeded", "int4"))
    native, large = project / "demo-native", project / "seeded-native"
    found: list[tuple[str, list[str]]] = []

    def build(bundle: Path) -> tuple[str, list[str]]:
        return f"build {bundle.name}", ["export", "tensorrt", str(bundle), "--target", TARGET, "--force", "--json"]

    def bench(bundle: Path, *more: str) -> tuple[str, list[str]]:
        return " ".join(["bench", bundle.name, *more]), [
            *("editar_rt", "bench", str(bundle), "--device", "tensorrt", "--json", *more)
        ]

    def draws(bundle: Path) -> bool:
        manifest = bundle / "bundle.json"
        return manifest.is_file() and "sampler" in json.loads(manifest.read_text(encoding="utf-8"))["parts"]

    def drafted(bundle: Path) -> list[tuple[str, list[str]]]:
        if not RTX:
            return []  # its recipe has no engines for them
        draft = ("--repeats", "3", "--speculate", "8")
        return [bench(bundle, *draft), *([bench(bundle, *draft, "--host-sampling")] if draws(bundle) else [])]

    def verify(bundle: Path) -> tuple[str, list[str]]:
        arguments = ["editar_rt", "verify", str(bundle), "--device", "tensorrt", "--json"]
        return f"verify {bundle.name}", arguments

    def grow(bundle: Path) -> tuple[str, list[str]]:
        return f"grow {bundle.name}", ["tests.benchmarks.gpu_host.seeds", "grow", str(bundle)]

    for each in (demo, native):
        if each.is_dir():
            found += [build(each), bench(each)]
    for each in (demo, native):
        if each.is_dir():
            found += drafted(each)
    if large.is_dir():
        found += [grow(large), build(large), bench(large, "--repeats", "3"), *drafted(large), verify(large)]
    if seeded.is_dir():
        found += [
            grow(seeded),
            ("check seeded", ["editar_rt", "info", str(seeded), "--check"]),
            build(seeded),
            bench(seeded, "--repeats", "3"),
            verify(seeded),
            *([bench(seeded, "--repeats", "3", "--host-sampling")] if draws(seeded) else []),
            bench(seeded, "--repeats", "2", "--cfg-scale", "1"),
        ]
    if demo.is_dir():
        found += [bench(demo, "--host-sampling")] if draws(demo) else []
        found.append(verify(demo))
    if native.is_dir():
        found.append(verify(native))
    if int4.is_dir():
        found += [
            build(int4),
            bench(int4, "--repeats", "3"),
            verify(int4),
        ]
    return found


def run_stage(
    name: str, arguments: list[str], seconds: float, program: Sequence[str] = ("-c", PROGRAM)
) -> dict[str, Any]:
    """Run a module in a process of its own: its exit code, None where time was up, and what it printed.

    Args:
        arguments: the module and what it is given.
        program: options of the interpreter that run it.
    """
    begun = time.perf_counter()
    command = [sys.executable, *program, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        code, said, errors = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        code = None
        said, errors = (
            x.decode(errors="replace") if isinstance(x, bytes) else x or "" for x in (error.stdout, error.stderr)
        )
    lines = said.strip().splitlines()
    try:
        document = json.loads(lines[-1])
    except (ValueError, IndexError):
        document = None
    return {
        "stage": name,
        "command": " ".join(["python", "-m", *arguments]),
        "exit": code,
        "seconds": round(time.perf_counter() - begun, 2),
        "document": document,
        "said": "" if document is not None else said[-2000:],
        "errors": errors[-4000:],
    }


def hardware() -> str:
    """What nvidia-smi says of the GPUs."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi does not run: {error}"


def main(results: Path, seconds: float) -> None:
    end = time.monotonic() + seconds - RESERVE
    report: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "processors": os.cpu_count(),
        "stages": [],
    }
    failed: set[str] = set()  # bundles whose engines are not there
    for name, arguments in stages(Path.cwd()):
        bundle = name.split()[1]
        left = end - time.monotonic()
        if bundle in failed or left <= 0:
            found: dict[str, Any] = {"stage": name, "skipped": "no time left" if left <= 0 else "the build failed"}
        else:
            found = run_stage(name, arguments, left)
            if found["exit"] != 0 and name.split()[0] in ("build", "grow", "check"):
                failed.add(bundle)
        report["stages"].append(found)
        (results / "results.json.partial").write_text(json.dumps(report, indent=1))
        (results / "results.json.partial").replace(results / "results.json")
        print(f"{name}: exit {found.get('exit')}, {found.get('seconds')} s {found.get('skipped', '')}", flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
