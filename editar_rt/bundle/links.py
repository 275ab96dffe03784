"""Links in a bundle: those inside it, and those of a Hugging Face cache, in which all files are links.

In such a cache, a repository is a folder with `blobs`, which contains files named by their hashes, and `snapshots`,
which contains a folder of links for every revision. A link is followed only into the blobs of its own repository.
"""

from __future__ import annotations

from pathlib import Path

SNAPSHOTS, BLOBS = "snapshots", "blobs"


def is_kept_inside(path: Path, folder: Path) -> bool:
    """Whether a bundle's file is in the bundle's folder or among the blobs of the cache that contains the folder."""
    try:
        target, home = path.resolve(), folder.resolve()
        blobs = _blobs(home)
        return target.is_relative_to(home) or (blobs is not None and target.parent == blobs)
    except (OSError, RuntimeError, ValueError):  # links in a circle, invalid names
        return False


def is_blob_of_another(path: Path, sha256: str) -> bool:
    """Whether a file is a link whose target is not named by the expected hash.

    The cache names large files by their SHA-256. Any other name says nothing about the content.
    """
    target = path.resolve()
    return target.name not in (path.name, sha256)


def _blobs(home: Path) -> Path | None:
    """The blobs of the cached repository that contains a folder; None outside a cache."""
    for parent in home.parents:
        if parent.name == SNAPSHOTS:
            blobs = parent.parent / BLOBS
            return blobs if blobs.is_dir() and not blobs.is_symlink() else None
    return None
