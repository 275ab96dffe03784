"""Reading `.npz` files of strangers: nothing pickled is read, and no array takes memory before its size is known."""

from __future__ import annotations

import io
import math
import os
import zipfile
from typing import IO, Any

from numpy.lib import format as npy
from numpy.typing import NDArray


def read_arrays(source: bytes | str | os.PathLike[str], most: int) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz` by name.

    Args:
        most: bytes that all of them may take together.

    Raises:
        ValueError, EOFError, zipfile.BadZipFile, zlib.error: not such a file, or a larger one.
        OSError: it cannot be read.
    """
    try:
        return _read(io.BytesIO(source) if isinstance(source, bytes) else source, most)
    except (RuntimeError, NotImplementedError) as e:  # encrypted, or packed as this Python cannot unpack
        raise ValueError(str(e)) from None


def _read(source: IO[bytes] | str | os.PathLike[str], most: int) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(source) as archive:
        if sum(member.file_size for member in archive.infolist()) > most:
            raise ValueError(f"it unpacks to more than {most >> 20} MiB")
        for name in archive.namelist():
            with archive.open(name) as member:
                _check_header(member, archive.getinfo(name).file_size)
            with archive.open(name) as member:
                found[name.removesuffix(".npy")] = npy.read_array(member, allow_pickle=False)
    return found


def _check_header(member: IO[bytes], size: int) -> None:
    """Refuse an array that says it is larger than its bytes: NumPy makes it before it reads them."""
    version = npy.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it has an array of format {version}")
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(member)
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"it has an array of {dtype} {list(shape)!s:.80} in {size} bytes")
