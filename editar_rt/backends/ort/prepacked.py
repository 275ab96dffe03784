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
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from editar_rt.bundle.folder import Bundle

VARIABLE, OFF = "EDITAR_CACHE", "off"
PAYS_FROM = 16 << 20  # bytes of weights: below, a graph opens at once anyway and takes little memory
ROOM = 4  # times the weights that must be free on the disk
GRAPH, SIZES = "graph.onnx", "sizes.json"
log = logging.getLogger("editar_rt")


def cache_folder() -> Path | None:
    """Where graphs are kept; None where that was refused."""
    named = os.environ.get(VARIABLE, "")
    if named == OFF:
        return None
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "editar_rt"


def prepacked(bundle: Bundle, part: str, ort: Any, open_session: Callable[[Path, Any], Any]) -> Path | None:
    """The graph of a part with its weights rearranged for this machine; made where there is none yet.

    Args:
        ort: the onnxruntime module.
        open_session: opens a session of a graph with `SessionOptions`.

    Returns:
        None where it does not pay, was refused, or cannot be written: the reason is logged.
    """
    root, file = cache_folder(), bundle.manifest.parts[part].file
    files = {n: f for n, f in bundle.manifest.files.items() if n == file or n.startswith(f"{file}.")}
    size = sum(f.bytes for f in files.values())
    if root is None or size < PAYS_FROM:
        return None
    identity = [sorted(f.sha256 for f in files.values()), ort.__version__, platform.machine(), _processor()]
    folder = root / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    if _is_whole(folder):
        return folder / GRAPH
    partial = root / f"{folder.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        partial.mkdir(mode=0o700, parents=True)
        if shutil.disk_usage(root).free < ROOM * size:
            log.info("%s has no room for rearranged weights (%d MB); opening goes on without", root, 2 * size // 10**6)
            return None
        log.info("rearranging the weights of %s for this machine, once (%s)", part, folder)
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(partial / GRAPH)
        for name, value in (
            ("optimized_model_external_initializers_file_name", f"{GRAPH}.data"),
            ("optimized_model_external_initializers_min_size_in_bytes", "1024"),
            ("save_external_prepacked_constant_initializers", "1"),
        ):
            options.add_session_config_entry(f"session.{name}", value)
        open_session(bundle.part_path(part), options)
        sizes = {path.name: path.stat().st_size for path in partial.iterdir()}
        (partial / SIZES).write_text(json.dumps(sizes), encoding="utf-8")
        if folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)  # damaged
        try:
            partial.rename(folder)
        except OSError:
            if not _is_whole(folder):  # else another process was faster, with the same result
                raise
    except OSError as e:
        log.info("rearranged weights cannot be kept in %s (%s); opening goes on without", root, e.strerror or e)
        return None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / GRAPH


def _is_whole(folder: Path) -> bool:
    """Whether a kept graph has the files that were written, in their sizes."""
    try:
        sizes = json.loads((folder / SIZES).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _processor() -> str:
    """What the arrangement depends on: the processor's instruction sets, where the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), platform.processor())
