"""The kernels that TensorRT for RTX has compiled for a machine, kept on disk so that engines open faster next time.

They lie in the folder of `kept_folder`, one file for each set of engines, GPU, driver and version. The library checks
that they fit the machine, and ignores them otherwise.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from editar_rt.backends.engines.tensorrt_compat import Kernels
from editar_rt.backends.kept_folder import cache_folder, is_as_sealed, making, remove_abandoned
from editar_rt.errors import EditarError
from editar_rt.files import read_regular

FILE, MAX_BYTES = "kernels", 1 << 30
log = logging.getLogger("editar_rt")


def place(identity: Sequence[str]) -> Path | None:
    """The folder for kernels, from what they depend on; None if nothing is kept on this machine."""
    root = cache_folder()
    name = hashlib.sha256(json.dumps(list(identity)).encode()).hexdigest()[:32]
    return None if root is None else root / f"kernels-{name}"


def read(folder: Path | None) -> bytes:
    """What was kept; empty if there is nothing."""
    try:
        if folder is not None and is_as_sealed(folder):
            return read_regular(folder / FILE, MAX_BYTES)
    except OSError as error:
        log.info("the compiled kernels in %s cannot be read (%s)", folder, error)
    return b""


def keep(folder: Path | None, kernels: Kernels, known: int) -> int:
    """Keep kernels if there are more than before.

    Args:
        known: size of what is kept already.

    Returns:
        the size of what is kept now.
    """
    if folder is None:
        return known
    content = kernels.serialize()
    if len(content) <= known:
        return known
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_abandoned(folder.parent)
        shutil.rmtree(folder, ignore_errors=True)
        with making(folder) as partial:
            (partial / FILE).write_bytes(content)
    except (OSError, EditarError) as error:
        log.info("compiled kernels cannot be stored in %s (%s); continuing without them", folder, error)
        return known
    return len(content)
