"""Weights as a processor's kernels want them, kept on disk: a large decoder opens in seconds, its weights in files.

ONNX Runtime rearranges the weights of products when it opens a graph, which takes most of that time and puts them into
memory of the process alone. Here the rearranged graph is written once a machine, beside and renamed into place, and
opened from there ever after: its weights are mapped, so that processes share them and the system may drop them.

`EDITAR_CACHE` names the folder (`~/.cache/editar_rt` when not set); `off` refuses it. What lies there is a copy: it may
be deleted at any time. A graph takes about twice its weights as float32, the plain ones and the rearranged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from editar_rt.backends.ort.kept_folder import is_as_sealed, making, remove_abandoned
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.graph_file import read_graph
from editar_rt.errors import BackendError, BundleError

VARIABLE, OFF = "EDITAR_CACHE", "off"
PAYS_FROM = 16 << 20  # bytes of weights: below, a graph opens at once anyway and takes little memory
ROOM = 4  # times the weights that must be free on the disk
GRAPH = "graph.onnx"
log = logging.getLogger("editar_rt")


def cache_folder() -> Path | None:
    """Where graphs are kept; None where that was refused, or there is no home to keep them in."""
    named = os.environ.get(VARIABLE, "")
    if named == OFF:
        return None
    try:
        if named:
            return Path(named).absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "editar_rt"
    except (RuntimeError, OSError):  # a user whom the system does not know; a current folder that is gone
        return None


def prepacked(bundle: Bundle, part: str, ort: Any, open_session: Callable[[Path, Any], Any]) -> Path | None:
    """The graph of a part with its weights rearranged for this machine; made where there is none yet.

    Args:
        ort: the onnxruntime module.
        open_session: opens a session of a graph with `SessionOptions`.

    Returns:
        None where it does not pay, was refused, or cannot be written: the reason is logged.
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
            log.info("%s has no room for rearranged weights (%d MB); opening goes on without", root, 2 * size // 10**6)
            return None
        log.info("rearranging the weights of %s for this machine, once (%s)", part, folder)
        with making(folder) as partial:
            open_session(bundle.part_path(part), _options(ort, partial))
            _check_written(partial)
    except (OSError, BackendError, BundleError) as e:  # a full disk is ONNX Runtime's own error
        reason = getattr(e, "strerror", None) or e
        log.info("rearranged weights cannot be kept in %s (%s); opening goes on without", root, reason)
        return None
    return folder / GRAPH


def forget(graph: Path) -> None:
    """Remove a kept graph that does not open."""
    log.info("the rearranged weights in %s do not open; opening goes on without", graph.parent)
    shutil.rmtree(graph.parent, ignore_errors=True)


def _options(ort: Any, folder: Path) -> Any:
    """Of a session that writes its graph and weights, rearranged, into a folder."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / GRAPH)
    for name, value in (
        ("optimized_model_external_initializers_file_name", f"{GRAPH}.data"),
        ("optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(f"session.{name}", value)
    return options


def _check_written(folder: Path) -> None:
    """
    Raises:
        OSError, BundleError: what was written is cut off.
    """
    for each in read_graph(folder / GRAPH).external:
        if each.stop > (folder / each.location).stat().st_size:
            raise OSError(f"{each.location} is cut off")


def _processor() -> str:
    """What the arrangement depends on: the processor's instruction sets, where the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), platform.processor())
