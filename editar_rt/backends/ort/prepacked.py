"""Weights prepacked for a CPU's kernels and stored on disk, so that a large decoder opens in seconds.

ONNX Runtime prepacks the weights of matmuls when it opens a graph. This takes most of the loading time, and the result
is private memory of the process. Here, the prepacked graph is written once per machine and then always opened from
disk: its weights are mapped, so that processes share them and the system may drop them.

`kept_folder` says where. A graph takes about twice the size of its float32 weights: original and prepacked ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from editar_rt.backends.kept_folder import cache_folder, is_as_sealed, making, remove_abandoned
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.graph_file import read_graph
from editar_rt.errors import BackendError, BundleError

PAYS_FROM = 16 << 20  # size of weights in bytes; smaller graphs open quickly and take little memory anyway
ROOM = 4  # required free disk space, as a multiple of the weights
GRAPH = "graph.onnx"
log = logging.getLogger("editar_rt")


def prepacked(bundle: Bundle, part: str, ort: Any, open_session: Callable[[Path, Any], Any]) -> Path | None:
    """The graph of a part with weights prepacked for this machine; it is written if it does not exist yet.

    Args:
        ort: the onnxruntime module.
        open_session: opens a session of a graph with given `SessionOptions`.

    Returns:
        None if it is not worthwhile, disabled, or cannot be written (the reason is logged).
    """
    root = cache_folder()
    files = [bundle.manifest.files[name] for name in bundle.part_files(part)]
    size = sum(f.bytes for f in files)
    if root is None or size < PAYS_FROM:
        return None
    identity = [sorted(f.sha256 for f in files), ort.__version__, platform.machine(), _processor()]
    folder = root / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    remove_abandoned(root)
    if is_as_sealed(folder):
        return folder / GRAPH
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if shutil.disk_usage(root).free < ROOM * size:
            log.info("%s has no room for prepacked weights (%d MB); continuing without them", root, 2 * size // 10**6)
            return None
        log.info("prepacking the weights of %s for this machine, once (%s)", part, folder)
        with making(folder) as partial:
            open_session(bundle.part_path(part), _options(ort, partial))
            _check_written(partial)
    except (OSError, BackendError, BundleError) as e:  # a full disk is ONNX Runtime's own error
        reason = getattr(e, "strerror", None) or e
        log.info("prepacked weights cannot be stored in %s (%s); continuing without them", root, reason)
        return None
    return folder / GRAPH


def weights_of(graph: Path) -> Path:
    """The file with a stored graph's weights."""
    return graph.with_name(f"{graph.name}.data")


def forget(graph: Path) -> None:
    """Remove a stored graph that does not open."""
    log.info("the prepacked weights in %s cannot be opened; continuing without them", graph.parent)
    shutil.rmtree(graph.parent, ignore_errors=True)


def _options(ort: Any, folder: Path) -> Any:
    """Options of a session that writes its graph and its prepacked weights to a folder."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / GRAPH)
    for name, value in (
        ("optimized_model_external_initializers_file_name", weights_of(folder / GRAPH).name),
        ("optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(f"session.{name}", value)
    return options


def _check_written(folder: Path) -> None:
    """
    Raises:
        OSError, BundleError: a written file is truncated.
    """
    for each in read_graph(folder / GRAPH).external:
        if each.stop > (folder / each.location).stat().st_size:
            raise OSError(f"{each.location} is truncated")


def _processor() -> str:
    """The CPU's instruction sets, on which prepacking depends, if the system reports them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), platform.processor())
