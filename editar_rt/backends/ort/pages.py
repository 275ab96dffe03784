"""Memory that a process holds and does not need, given back to the system; Linux alone, elsewhere nothing happens.

Opening a graph reads weights that no product reads again (plain ones beside rearranged ones), and a long prefill leaves
freed blocks behind that the C library keeps. Neither is wrong, but both count while the cache grows behind them.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SMAPS = Path("/proc/self/smaps")
WORTH = 16 << 20  # bytes of a file below which looking for its pages takes longer than they are worth


class Mapping(NamedTuple):
    """A range of the process's addresses; sizes in bytes."""

    start: int
    size: int
    file: str
    """What is mapped there; empty for plain memory."""
    resident: int
    share: int
    """What is resident, every page over the number of times that it is mapped, here and in other processes."""
    own: int
    """What the process has written and no file holds."""


def mappings() -> Iterator[Mapping]:
    """The process's mappings as the system tells them; none where it does not."""
    try:
        lines = SMAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    start = size = 0
    file, fields = "", dict[str, int]()
    for line in lines:
        name, _, rest = line.partition(":")
        if " " in name:  # "begin-end permissions offset device inode file": a new mapping
            ends, *words = line.split(maxsplit=5)
            start, end = (int(address, 16) for address in ends.split("-"))
            size, file, fields = end - start, words[4] if len(words) > 4 else "", {}
        elif name == "VmFlags":  # the last line of each
            yield Mapping(start, size, file, *(fields.get(key, 0) for key in ("Rss", "Pss", "Anonymous")))
        elif rest.endswith("kB"):
            fields[name] = int(rest.split()[0]) * 1024


def drop_file_pages(graph: Path) -> int:
    """Let go of what is resident of the files beside a graph that are named after it, its weights.

    Pages come back when they are read: from the system's own copy of the file while it holds one, else from the disk.
    Mappings that the process has written to are left alone.

    Returns:
        bytes that were resident.
    """
    libc = _libc("madvise")
    sizes = [file.stat().st_size for file in graph.parent.glob(f"{graph.name}.*")]
    if libc is None or max(sizes, default=0) < WORTH:
        return 0
    beginning, dropped = f"{graph.resolve()}.", 0
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for mapping in mappings():
        ours = mapping.file.startswith(beginning) and not mapping.own
        if ours and libc.madvise(mapping.start, mapping.size, mmap.MADV_DONTNEED) == 0:
            dropped += mapping.resident
    return dropped


def trim_heap() -> None:
    """Give freed blocks of the C library's heap back; glibc alone keeps them."""
    libc = _libc("malloc_trim")
    if libc is not None:
        libc.malloc_trim(ctypes.c_size_t(0))


def _libc(function: str) -> Any:
    """The C library; None where it lacks a function or the system is not Linux."""
    if sys.platform != "linux":
        return None
    try:
        libc = ctypes.CDLL(None)
    except OSError:
        return None
    return libc if hasattr(libc, function) else None
