"""Which files of a folder are pictures, and which are passed over."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image

from editar_rt.arguments import as_path
from editar_rt.errors import PictureError
from editar_rt.images.pixels import DATA_FORMATS, VECTOR_FORMATS

NO_PICTURES = ("IPTC", "MPEG", *DATA_FORMATS, *VECTOR_FORMATS)
"""Pillow knows their endings, but needs another program to read them, or reads no picture from them."""
BEYOND = {".mpo": "MPO"}  # which Pillow opens as JPEG
NAMED = 5  # of the files that are passed over


@functools.cache
def picture_endings(formats: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The endings, in small letters, of the pictures that this Pillow reads.

    Args:
        formats: Pillow's names of those that count; all when None.
    """
    Image.init()
    known = {**Image.registered_extensions(), **BEYOND}
    readable = {*Image.OPEN, *BEYOND.values()}.difference(NO_PICTURES)
    wanted = readable if formats is None else readable.intersection(formats)
    return tuple(sorted(ending for ending, name in known.items() if name in wanted))


def is_clutter(name: str | PurePath) -> bool:
    """Whether a system keeps a file of this name beside those of users: macOS `._NAME` and `.DS_Store`."""
    base = PurePath(name).name
    return base.startswith("._") or base in (".DS_Store", "__MACOSX")


@dataclass(frozen=True)
class Listing:
    """A folder's files, each list in the order of names."""

    folder: Path
    pictures: list[Path]
    passed_over: list[Path]

    @property
    def sentence(self) -> str | None:
        """Which files are passed over, for people; None where there are none."""
        count = len(self.passed_over)
        if not count:
            return None
        names = [str(path.relative_to(self.folder)) for path in self.passed_over[:NAMED]]
        more = f" and {count - NAMED} more" if count > NAMED else ""
        return f"{self.folder}: passed over {count} that {'is no picture' if count == 1 else 'are no pictures'}: " + (
            ", ".join(names) + more
        )


def list_pictures(folder: Path, deep: bool = False, formats: Sequence[str] | None = None) -> Listing:
    """The pictures that lie in a folder, by their endings.

    Args:
        deep: those of its folders too, links to folders apart; else folders are passed over.
        formats: Pillow's names of those that count; all that it reads when None.

    Raises:
        PictureError: the folder cannot be read.
    """
    endings = picture_endings(None if formats is None else tuple(formats))
    folder, pictures, passed_over = as_path("a folder of pictures", folder), [], []
    try:
        for path in sorted(folder.rglob("*") if deep else folder.iterdir()):
            if path.is_file() and path.suffix.lower() in endings and not is_clutter(path):
                pictures.append(path)
            elif not (deep and path.is_dir()):
                passed_over.append(path)
    except OSError as e:
        raise PictureError(f"the folder {folder} cannot be read: {e.strerror or e}") from None
    return Listing(folder, pictures, passed_over)
