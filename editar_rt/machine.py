"""What this machine is and can: its memory's read bandwidth, how much of it this process took."""

from __future__ import annotations

import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

READ_BYTES = 512 << 20  # far more than any cache holds
PASSES = 5


def description() -> str:
    """Processor architecture, system and number of cores, for people."""
    return f"{platform.machine()} {platform.system()}, {core_count()} cores"


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        threads: that read, each its own part; all cores when None.
    """
    threads = threads or core_count()
    parts = np.array_split(np.ones(READ_BYTES // 4, np.float32), threads)
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(PASSES):
            begun = time.perf_counter()
            list(pool.map(np.max, parts))
            seconds.append(time.perf_counter() - begun)
    return READ_BYTES / min(seconds)
