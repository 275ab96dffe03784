"""Links in a bundle: those that stay inside of it, and those of a Hugging Face cache, whose files all are links.

There a repository is a folder with `blobs`, which has the files under their hashes, and `snapshots`, which has a folder
of links for every revision. Such a link is followed into its own repository's blobs and nowhere else.
"""

from __future__ import annotations

from pathlib import Path

SNAPSHOTS, BLOBS = "snapshots", "blobs"


def is_kept_inside(path: Path, folder: Path) -> bool:
    """Whether a file of a bundle lies in the bundle's folder, or among the blobs of the cache that the folder is in."""
    try:
        target, home = path.resolve(), folder.resolve()
        blobs = _blobs(home)
        return target.is_relative_to(home) or (blobs is not None and target.parent == blobs)
    except (OSError, RuntimeError, ValueError):  # links that go round in a circle, names that no disk has
        return False


def is_blob_of_another(path: Path, sha256: str) -> bool:
    """Whether a file is a link whose target does not go by the hash that it should have.

    The cache names large files by their SHA-256. One that goes by another name says nothing of its content.
    """
    target = path.resolve()
    return target.name not in (path.name, sha256)


def _blobs(home: Path) -> Path | None:
    """The blobs of the repository in whose cache a folder lies; None where it lies in none."""
    for parent in home.parents:
        if parent.name == SNAPSHOTS:
            blobs = parent.parent / BLOBS
            return blobs if blobs.is_dir() and not blobs.is_symlink() else None
    return None
