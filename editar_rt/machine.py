"""What this machine is and can: its memory's read bandwidth, how much of it this process took."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_peak_before_sharing: int | None = None
READ_BYTES = 512 << 20  # far more than any cache holds
PASSES = 5
COPIED_BYTES = 256 << 20  # on a device; far more than its caches hold


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

    It counts a page as often as it is mapped: `peak_memory_bytes` corrects that.
    """
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def note_sharing() -> None:
    """Say that pages are about to be mapped a second time, which the system counts twice from then on."""
    global _peak_before_sharing
    _peak_before_sharing = _peak_before_sharing or peak_resident_bytes()


def peak_memory_bytes(counted_twice: int) -> int | None:
    """Peak resident memory of this process with every page counted once; None where the system does not tell.

    The system's own peak counts a page as often as it is mapped. Before pages were shared for the first time it was
    exact; since then the peak is where most were shared, so that what is counted twice there is what is too much.

    Args:
        counted_twice: bytes, when most were shared (`Backend.shared_bytes`).
    """
    peak = peak_resident_bytes()
    return None if peak is None else max(peak - counted_twice, min(peak, _peak_before_sharing or 0))


def copy_bandwidth(copy: Callable[[int], None]) -> float | None:
    """Bytes a second that a device copies: every byte is read and written, and both count.

    Args:
        copy: copies so many bytes, up to `COPIED_BYTES`, and waits until that is done.

    Returns:
        None where the clock tells nothing.
    """

    def fastest(size: int) -> float:
        seconds = []
        for _ in range(PASSES + 1):
            begun = time.perf_counter()
            copy(size)
            seconds.append(time.perf_counter() - begun)
        return min(seconds)

    seconds = fastest(COPIED_BYTES) - fastest(1)  # a call takes time besides the copy
    return 2 * COPIED_BYTES / seconds if seconds > 0 else None


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
