"""The machine's cores, memory and read bandwidth, and the share that this process may use."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

_peak_before_sharing: int | None = None
READ_BYTES = 512 << 20  # far larger than any CPU cache
PASSES = 5
COPIED_BYTES = 256 << 20  # on a device; far more than its caches hold
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # of Linux


def description() -> str:
    """Processor architecture, system and number of cores, as text for users."""
    return f"{platform.machine()} {platform.system()}, {core_count()} cores"


def core_count() -> int:
    """Number of cores that this process may use, by its CPU affinity and its cgroups' quota."""
    quota = cpu_quota()
    return len(_allowed()) if quota is None else max(1, min(len(_allowed()), int(quota)))


def thread_count() -> int:
    """Best number of threads for computing: one per physical core that this process may use."""
    siblings = {_siblings(core) for core in _allowed()}
    return min(len(siblings), core_count())


def is_limited() -> bool:
    """Whether affinity or a quota limits this process to fewer cores than the machine has."""
    return core_count() < (os.cpu_count() or 1)


def cpu_quota(root: Path = CGROUPS, process: Path = OWN_CGROUPS) -> float | None:
    """CPU time that cgroups grant this process, in cores; None if they do not limit it.

    The smallest limit of the process's groups and their parents applies. In a container the path may be the host's;
    then the mounted root is the container's group.

    Args:
        root: mount point of cgroups.
        process: file that lists this process's groups.
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
    """The limit of a cgroup of version 2, whose file contains `QUOTA PERIOD` in microseconds, or `max PERIOD`."""
    quota, _, period = _read(group / "cpu.max").partition(" ")
    return _ratio(quota, period)


def _limit_of_version_1(group: Path) -> float | None:
    """The limit of a cgroup of version 1, from two files; a quota of -1 means none."""
    return _ratio(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    try:
        limit = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return limit if limit > 0 else None


def _allowed() -> set[int]:
    """The system's numbers of the logical cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _siblings(core: int) -> str:
    """An identifier of a logical core's physical core."""
    return _read(Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")).strip() or str(core)


def _read(path: Path) -> str:
    """The text of a system file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def thread_limit() -> int:
    """Largest useful number of threads: the machine's logical cores, even if this process may not use all."""
    return max(os.cpu_count() or 1, core_count())


def peak_resident_bytes() -> int | None:
    """Peak resident memory of this process as reported by the system; None if it does not report it.

    Pages count once per mapping; `peak_memory_bytes` corrects this.
    """
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def note_sharing() -> None:
    """Record the peak memory before pages are first mapped twice, because the system then counts them twice."""
    global _peak_before_sharing
    _peak_before_sharing = _peak_before_sharing or peak_resident_bytes()


def peak_memory_bytes(counted_twice: int) -> int | None:
    """Peak resident memory of this process with every page counted once; None if the system does not report it.

    The system's peak counts a page once per mapping. It was exact before pages were first shared; since then, the peak
    occurs when most pages are shared, so the bytes counted twice at that time are the excess.

    Args:
        counted_twice: `Backend.shared_bytes` when most pages were shared.
    """
    peak = peak_resident_bytes()
    return None if peak is None else max(peak - counted_twice, min(peak, _peak_before_sharing or 0))


def copy_bandwidth(copy: Callable[[int], None]) -> float | None:
    """Bytes per second of copies on a device: every byte is read and written, and both count.

    Args:
        copy: copies a number of bytes, at most `COPIED_BYTES`, and waits for it.

    Returns:
        None if the time is too short to measure.
    """

    def fastest(size: int) -> float:
        seconds = []
        for _ in range(PASSES + 1):
            begun = time.perf_counter()
            copy(size)
            seconds.append(time.perf_counter() - begun)
        return min(seconds)

    seconds = fastest(COPIED_BYTES) - fastest(1)  # subtract the overhead of a call
    return 2 * COPIED_BYTES / seconds if seconds > 0 else None


def read_bandwidth(threads: int | None = None) -> float:
    """Bytes per second that the CPU reads from memory: the best of several passes over a large array.

    max() does almost no work per byte, so it is memory-bound.

    Args:
        threads: number of threads, each of which reads a part; None means `thread_count()`.
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
