"""Reads untrusted `.npz` files: rejects pickled data, and checks sizes before it allocates memory."""

from __future__ import annotations

import io
import math
import zipfile
from typing import IO, Any

from numpy.lib import format as npy
from numpy.typing import NDArray


def read_arrays(source: bytes, most: int) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` by name.

    Args:
        most: largest total size, bytes.

    Raises:
        ValueError, EOFError, zipfile.BadZipFile, zlib.error: the file is not an `.npz`, or too large.
    """
    try:
        return _read(io.BytesIO(source), most)
    except (RuntimeError, NotImplementedError) as e:  # encrypted, or compressed with a method that this Python lacks
        raise ValueError(str(e)) from None


def _read(source: IO[bytes], most: int) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(source) as archive:
        if sum(member.file_size for member in archive.infolist()) > most:
            raise ValueError(f"it unpacks to more than {most >> 20} MiB")
        for name in archive.namelist():
            with archive.open(name) as member:
                _check_header(member, archive.getinfo(name).file_size)
            with archive.open(name) as member:
                arrays[name.removesuffix(".npy")] = npy.read_array(member, allow_pickle=False)
    return arrays


def _check_header(member: IO[bytes], size: int) -> None:
    """Reject an array whose header claims more than its bytes: NumPy would allocate it before reading them."""
    version = npy.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it has an array of format {version}")
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(member)
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"it has an array of {dtype} {list(shape)!s:.80} in {size} bytes")
