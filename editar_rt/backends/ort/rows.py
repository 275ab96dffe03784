"""Memory of a KV cache on the CPU whose rows can be one and the same where they hold the same.

The picture's keys and values are the same in every row. Rows that only copy them would be read from memory again and
again in every step; here such a row's pages are mapped to those of the row it takes after: they take no memory of their
own, and what attention has read for one row lies in the processor's cache for the next. Kernels see a plain array.
Linux alone can do this; elsewhere, and where it fails, rows are copied.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
import weakref
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from editar_rt.backends.ort.pages import mappings
from editar_rt.machine import peak_resident_bytes

PAGE = mmap.PAGESIZE
MEMORY = "editar-kv-cache"  # its name, in the system's list of mappings too
MAP_FIXED, MAP_FAILED = 0x10, ctypes.c_void_p(-1).value  # of Linux; Python's mmap does not name them


class RowBuffer:
    """An array [rows, heads, positions, width] of zeros, `array`.

    Args:
        positions: at least this many; more where heads then begin at pages.
    """

    def __init__(self, rows: int, heads: int, positions: int, width: int, dtype: DTypeLike) -> None:
        self._position = width * np.dtype(dtype).itemsize  # bytes of one head
        step = PAGE // math.gcd(PAGE, self._position)  # positions that fill whole pages
        shape = (rows, heads, -(-positions // step) * step, width)
        size = rows * heads * shape[2] * self._position
        self._pages = _Pages.make(size) if rows > 1 else None
        if self._pages is None:
            self.array: NDArray[Any] = np.zeros(shape, dtype)
        else:
            self.array = self._pages.array.view(dtype).reshape(shape)

    def copy(self, source: int, target: int, positions: int, frozen: bool) -> None:
        """Give a row the first positions of another one.

        Args:
            frozen: neither row's are written again, so that they may be the same memory.
        """
        heads, head = self.array.shape[1], self.array[0, 0].nbytes
        whole = positions * self._position // PAGE * PAGE if frozen else 0
        pairs = [((source * heads + h) * head, (target * heads + h) * head) for h in range(heads)]
        if whole and self._pages is not None:
            _Pages.peak_before = _Pages.peak_before or peak_resident_bytes()
        shared = bool(whole) and self._pages is not None and all(self._pages.alias(*pair, whole) for pair in pairs)
        done = whole // self._position if shared else 0
        self.array[target, :, done:positions] = self.array[source, :, done:positions]


class _Pages:
    """Zeros in a file that lies in memory, mapped; parts of it can be mapped in place of others."""

    peak_before: int | None = None
    """The process's peak resident memory when pages were mapped a second time for the first time."""

    def __init__(self, libc: Any, descriptor: int, address: int, size: int) -> None:
        self._libc, self._descriptor, self._address = libc, descriptor, address
        block = (ctypes.c_char * size).from_address(address)
        self.array: NDArray[np.uint8] = np.ctypeslib.as_array(block).view(np.uint8)
        # Whatever looks into the memory holds the block: it is let go when nothing does.
        weakref.finalize(block, _release, libc, descriptor, address, size)

    @classmethod
    def make(cls, size: int) -> _Pages | None:
        """None where the system cannot."""
        if sys.platform != "linux":
            return None
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
            libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
            descriptor = os.memfd_create(MEMORY)
        except (OSError, AttributeError):
            return None
        try:
            os.ftruncate(descriptor, size)
            address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0)
        except OSError:
            address = MAP_FAILED
        if address == MAP_FAILED:
            os.close(descriptor)
            return None
        return cls(libc, descriptor, address, size)

    def alias(self, source: int, target: int, size: int) -> bool:
        """Make `size` bytes at `target` those at `source`, whole pages all; False where the system refuses."""
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | MAP_FIXED
        found = self._libc.mmap(self._address + target, size, protection, flags, self._descriptor, source)
        return bool(found != MAP_FAILED)


def bytes_counted_twice() -> int:
    """What the system counts too much in this process's resident memory now: pages of rows in the place of others."""
    own = [m for m in mappings() if m.file.startswith(f"/memfd:{MEMORY}")]
    return sum(m.resident - m.share for m in own)


def peak_memory_bytes(counted_twice: int) -> int | None:
    """Peak resident memory of this process with every page counted once; None where the system does not tell.

    The system's own peak counts a page of rows once a row. Before pages were shared for the first time it was exact;
    since then the peak is where the cache was fullest, so that what is counted twice there is what is too much.

    Args:
        counted_twice: `bytes_counted_twice` when the cache was fullest.
    """
    peak = peak_resident_bytes()
    return None if peak is None else max(peak - counted_twice, min(peak, _Pages.peak_before or 0))


def _release(libc: Any, descriptor: int, address: int, size: int) -> None:
    libc.munmap(address, size)
    os.close(descriptor)
