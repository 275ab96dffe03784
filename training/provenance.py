"""Where a checkpoint comes from: what it was trained on, by digests, and what trained it.

A digest tells whether two inputs are the same wherever they lie. That of a file is over all of it; that of token shards
over the checksums which every `.npz` holds of its arrays, so that terabytes need not be read.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editar_rt.version import __version__

if TYPE_CHECKING:
    from training.data.arrays import Shard
    from training.data.mixture import Mixture

SHOWN = 12  # hexadecimal digits of a digest in what a checkpoint says
LIBRARIES = ("torch", "numpy", "transformers")
MODEL_FILES = (".safetensors", ".bin", ".json")


def fingerprint(path: Path) -> str:
    """First half of the sha256 of a file, or of a model folder's weights and settings."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*")) if path.is_dir() else [path]:
        if file.is_file() and (not path.is_dir() or file.suffix in MODEL_FILES):
            with open(file, "rb") as content:
                while block := content.read(2**20):
                    digest.update(block)
    return digest.hexdigest()[:32]


def of_model(path: Path) -> str:
    """A weights file or a model's folder, as a checkpoint names it."""
    return f"{path.name} ({fingerprint(path)[:SHOWN]})"


def of_shards(shards: Iterable[Shard], groups: int) -> str:
    """Token shards as a checkpoint names them."""
    known = [(shard.path.name, shard.digest) for shard in shards]
    return f"{len(known)} shards of {groups} groups ({_digest(known)})"


def of_mixture(data: Mixture) -> str:
    """Data sets of pictures, by their names, sizes and shares: pictures themselves are too many to be read before."""
    known = [(d.name, size, share) for d, size, share in zip(data.datasets, data.sizes, data.shares)]
    return f"{', '.join(f'{name} ({size} records)' for name, size, _ in known)} ({_digest(known)})"


def of_files(paths: Iterable[Path]) -> str:
    """Files, by their names and sizes."""
    known = [(path.name, path.stat().st_size) for path in paths]
    return f"{len(known)} files ({_digest(known)})"


def _digest(known: Any) -> str:
    return hashlib.sha256(repr(known).encode()).hexdigest()[:SHOWN]


@functools.cache
def made_with() -> dict[str, str]:
    """Versions of what trains here, and the commit of this checkout where it is one, with `+` where files differ."""
    versions = {"editar_rt": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    if commit := _git("rev-parse", "HEAD"):
        versions["commit"] = commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    return versions


def _git(*words: str) -> str:
    """What git says of this checkout; nothing where there is no git, or no checkout."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
