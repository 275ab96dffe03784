"""CPU memory of a KV cache in which rows with equal contents share pages.

The picture's keys and values are the same in every row of a picture. Here, the pages of such a row are mapped to those
of the row that computed them: they take no additional memory, and attention finds them in the CPU's cache after it has
read them for the other row. Kernels see an ordinary array. On systems other than Linux, and if the system refuses the
mapping, rows are copied.
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
from editar_rt.backends.process import Process
from editar_rt.errors import BackendError
from editar_rt.machine import note_sharing

PAGE = mmap.PAGESIZE
MEMORY = "editar-kv-cache"  # also its name in the system's list of mappings
MAP_FIXED, MAP_FAILED = 0x10, ctypes.c_void_p(-1).value  # of Linux; Python's mmap does not name them


class RowBuffer:
    """An array [rows, heads, positions, width] of zeros, `array`.

    Args:
        positions: minimum number; it is rounded up so that heads begin at page boundaries.
    """

    def __init__(self, rows: int, heads: int, positions: int, width: int, dtype: DTypeLike) -> None:
        self.position_bytes = width * np.dtype(dtype).itemsize  # of one head
        step = PAGE // math.gcd(PAGE, self.position_bytes)  # positions that fill whole pages
        shape = (rows, heads, -(-positions // step) * step, width)
        size = rows * heads * shape[2] * self.position_bytes
        self._pages = _Pages.make(size) if rows > 1 else None
        if self._pages is None:
            self.array: NDArray[Any] = np.zeros(shape, dtype)
        else:
            self.array = self._pages.array.view(dtype).reshape(shape)

    def map(self, source: int, target: int, size: int) -> bool:
        """Map the first `size` bytes (whole pages) of every head of row `target` to the memory of row `source`.

        A row mapped to itself gets its own memory back, with its old contents. Returns False if the system refuses.
        """
        if self._pages is None:
            return False
        if source != target:
            note_sharing()
        heads, head = self.array.shape[1], self.array[0, 0].nbytes
        pairs = [((source * heads + h) * head, (target * heads + h) * head) for h in range(heads)]
        return all(self._pages.alias(*pair, size) for pair in pairs)


class RowBuffers:
    """Several `RowBuffer`s, one per tensor of a cache, whose rows share pages in the same way.

    A row that shares pages gets its own back before either row is written there, so neither row changes the other.
    """

    def __init__(self, count: int, rows: int, heads: int, positions: int, width: int, dtype: DTypeLike) -> None:
        self._process = Process()  # a fork shares this memory instead of copying it
        self.buffers = [RowBuffer(rows, heads, positions, width, dtype) for _ in range(count)]
        self._position = self.buffers[0].position_bytes if count else 1
        self._root = list(range(rows))  # the row that owns each row's first pages
        self._shared = [0] * rows  # number of positions in the root's pages
        self._frozen = [0] * rows  # a write below this position would touch shared pages

    def copy(self, source: int, target: int, start: int, stop: int, frozen: bool) -> None:
        """Copy positions of a row to another one; see `base.Decoder.copy`."""
        self.prepare_write(target, start)
        done = start
        if frozen and start == 0:
            root = self._root[source]
            most = stop if root == source else min(stop, self._shared[source])
            done = self._share(root, target, most)
        for buffer in self.buffers:
            buffer.array[target, :, done:stop] = buffer.array[source, :, done:stop]

    def prepare_write(self, row: int, position: int) -> None:
        """Make sure that writing to a row from `position` on does not change other rows.

        Raises:
            BackendError: this is a fork of the process that owns the memory.
        """
        self._process.check("this picture", "open it again in the new one, with editor.session(...)")
        if position >= self._frozen[row]:
            return
        for other, root in enumerate(self._root):
            if other != row and root == row and position < self._shared[other]:
                self._take_back(other, self._shared[other])
        if position < self._shared[row]:
            self._take_back(row, position)
        self._note_shares()

    def _share(self, root: int, target: int, positions: int) -> int:
        """Map as many whole pages as these positions fill. Returns the number of positions in them."""
        size = positions * self._position // PAGE * PAGE
        if not size or root == target:
            return 0
        if not all(buffer.map(root, target, size) for buffer in self.buffers):
            for buffer in self.buffers:
                buffer.map(target, target, size)  # undo the mappings that succeeded
            return 0
        self._root[target], self._shared[target] = root, -(-size // self._position)
        self._note_shares()
        return size // self._position

    def _take_back(self, row: int, keep: int) -> None:
        """Give a row its own memory back, with its first `keep` positions."""
        size = -(-self._shared[row] * self._position // PAGE) * PAGE
        for buffer in self.buffers:
            held = buffer.array[row, :, :keep].copy()
            if not buffer.map(row, row, size):
                raise BackendError("the system refused memory for a row of the KV cache; free some and try again")
            buffer.array[row, :, :keep] = held
        self._root[row], self._shared[row] = row, 0

    def _note_shares(self) -> None:
        self._frozen = list(self._shared)
        for row, root in enumerate(self._root):
            self._frozen[root] = max(self._frozen[root], self._shared[row])


class _Pages:
    """A mapped in-memory file of zeros, parts of which can be mapped in place of others."""

    def __init__(self, libc: Any, descriptor: int, address: int, size: int) -> None:
        self._libc, self._descriptor, self._address = libc, descriptor, address
        block = (ctypes.c_char * size).from_address(address)
        self.array: NDArray[np.uint8] = np.ctypeslib.as_array(block).view(np.uint8)
        # Every array over the memory references the block; it is released with the last of them.
        weakref.finalize(block, _release, libc, descriptor, address, size)

    @classmethod
    def make(cls, size: int) -> _Pages | None:
        """Allocate; None if the system cannot."""
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
        """Map `size` bytes (whole pages) at `target` to those at `source`. Returns False if the system refuses."""
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | MAP_FIXED
        mapped = self._libc.mmap(self._address + target, size, protection, flags, self._descriptor, source)
        return bool(mapped != MAP_FAILED)


def bytes_counted_twice() -> int:
    """Bytes that RSS now counts more than once because rows share pages."""
    own = [m for m in mappings() if m.file.startswith(f"/memfd:{MEMORY}")]
    return sum(m.resident - m.share for m in own)


def _release(libc: Any, descriptor: int, address: int, size: int) -> None:
    libc.munmap(address, size)
    os.close(descriptor)
