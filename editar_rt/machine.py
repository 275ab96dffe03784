"""What this machine is and can, and how much of it is this process's: cores, memory, its read bandwidth."""

from __future__ import annotations

import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

READ_BYTES = 512 << 20  # far more than any cache holds
PASSES = 5
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # of Linux


def description() -> str:
    """Processor architecture, system and number of cores, for people."""
    return f"{platform.machine()} {platform.system()}, {core_count()} cores"


def core_count() -> int:
    """Cores that this process may use: of its CPU affinity, and no more than its cgroups grant it time on."""
    quota = cpu_quota()
    return len(_allowed()) if quota is None else max(1, min(len(_allowed()), int(quota)))


def thread_count() -> int:
    """Threads that compute best: one a physical core, among those that this process may use."""
    siblings = {_siblings(core) for core in _allowed()}
    return min(len(siblings), core_count())


def is_limited() -> bool:
    """Whether this process may use less than the machine has, by its affinity or by a quota."""
    return core_count() < (os.cpu_count() or 1)


def cpu_quota(root: Path = CGROUPS, process: Path = OWN_CGROUPS) -> float | None:
    """Processor time that cgroups grant this process, in cores; None where they do not limit it.

    The smallest of its groups' and their parents' limits holds. A container may show a path that is the host's: then
    the root of what is mounted is its own group.

    Args:
        root: where cgroups are mounted.
        process: the file that names this process's groups.
    """
    limits = []
    for line in _read(process).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":  # version 2
            mount, limit_of = root, _limit
        elif "cpu" in controllers.split(","):
            mount = root / "cpu" if (root / "cpu").is_dir() else root / controllers
            limit_of = _limit_of_version_1
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        limits += [limit_of(mount / folder) for folder in (group, *group.parents)]
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(group: Path) -> float | None:
    """Of a group of version 2, whose file says `QUOTA PERIOD` in microseconds, or `max PERIOD`."""
    quota, _, period = _read(group / "cpu.max").partition(" ")
    return _ratio(quota, period)


def _limit_of_version_1(group: Path) -> float | None:
    """In two files; a quota of -1 is none."""
    return _ratio(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    try:
        limit = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return limit if limit > 0 else None


def _allowed() -> set[int]:
    """Numbers of the cores, as the system counts them, that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _siblings(core: int) -> str:
    """What names the physical core that a logical one is part of."""
    return _read(Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")).strip() or str(core)


def _read(path: Path) -> str:
    """A file of the system; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def thread_limit() -> int:
    """The most threads that are of use: the machine's processors, whether or not this process may use them all."""
    return max(os.cpu_count() or 1, core_count())


def peak_resident_bytes() -> int | None:
    """Peak resident memory of this process as the system counts it; None where it does not tell.

    It counts a page as often as it is mapped: `backends.rows.peak_memory_bytes` corrects that.
    """
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_bandwidth(threads: int | None = None) -> float:
    """Bytes a second that the CPU reads from memory, the best of some passes over a large array.

    Looking for the largest element does next to nothing per byte, so memory is what it waits for.

    Args:
        threads: that read, each its own part; those that this process computes with best when None.
    """
    threads = threads or thread_count()
    parts = np.array_split(np.ones(READ_BYTES // 4, np.float32), threads)
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(PASSES):
            begun = time.perf_counter()
            list(pool.map(np.max, parts))
            seconds.append(time.perf_counter() - begun)
    return READ_BYTES / min(seconds)
