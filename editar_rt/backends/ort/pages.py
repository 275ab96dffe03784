"""Returns memory that the process no longer needs to the system (Linux; a no-op elsewhere).

Opening a graph reads weights that no matmul reads again (the original ones besides the prepacked ones), and a long
prefill leaves freed blocks in the C library's heap. Both would add to the peak while the cache grows.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from editar_rt.backends.ort.sessions import mappings_stay

SMAPS = Path("/proc/self/smaps")
_TRIMMING = threading.Lock()
WORTH = 16 << 20  # file size in bytes below which searching its pages is not worthwhile


class Mapping(NamedTuple):
    """A range of the process's address space; sizes in bytes."""

    start: int
    size: int
    file: str
    """The mapped file; empty for anonymous memory."""
    resident: int
    share: int
    """Resident bytes, with every page divided by its number of mappings in all processes (PSS)."""
    own: int
    """Anonymous bytes, which the process has written."""


def mappings() -> Iterator[Mapping]:
    """The process's mappings as reported by the system; none if it does not report them."""
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


def drop_file_pages(weights: Collection[Path]) -> int:
    """Drop the resident pages of files with weights.

    Pages are loaded again when they are read, from the page cache or the disk. Mappings that the process has written to
    are not touched. While another thread opens or closes a session, nothing is dropped; the next call does it.

    Returns:
        bytes that were resident.
    """
    libc = _libc("madvise")
    if libc is None or max((file.stat().st_size for file in weights), default=0) < WORTH:
        return 0
    files, dropped = {str(file.resolve()) for file in weights}, 0
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with mappings_stay() as stay:
        for mapping in mappings() if stay else ():
            ours = mapping.file in files and not mapping.own
            if ours and libc.madvise(mapping.start, mapping.size, mmap.MADV_DONTNEED) == 0:
                dropped += mapping.resident
    return dropped


def trim_heap() -> None:
    """Return freed blocks of the C library's heap to the system; only glibc keeps them.

    Under another malloc (jemalloc by LD_PRELOAD), the first call sets up glibc's unused heap; if two threads do that at
    once, glibc aborts when the second of them ends.
    """
    libc = _libc("malloc_trim")
    if libc is not None:
        with _TRIMMING:
            libc.malloc_trim(ctypes.c_size_t(0))


def _libc(function: str) -> Any:
    """The C library; None if it lacks a function or the system is not Linux."""
    if sys.platform != "linux":
        return None
    try:
        libc = ctypes.CDLL(None)
    except OSError:
        return None
    return libc if hasattr(libc, function) else None
