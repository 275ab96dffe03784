"""Finds the pictures in a folder, and the files that are skipped."""

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
"""Formats whose suffixes Pillow knows, but which need another program or do not contain a picture."""
BEYOND = {".mpo": "MPO"}  # Pillow opens it as JPEG
NAMED = 5  # skipped files that are listed by name


@functools.cache
def picture_endings(formats: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The suffixes, in lower case, of the pictures that this Pillow reads.

    Args:
        formats: Pillow's names of the formats to include; None means all.
    """
    Image.init()
    known = {**Image.registered_extensions(), **BEYOND}
    readable = {*Image.OPEN, *BEYOND.values()}.difference(NO_PICTURES)
    wanted = readable if formats is None else readable.intersection(formats)
    return tuple(sorted(ending for ending, name in known.items() if name in wanted))


def is_clutter(name: str | PurePath) -> bool:
    """Whether the operating system made the file: `._NAME` and `.DS_Store` of macOS."""
    base = PurePath(name).name
    return base.startswith("._") or base in (".DS_Store", "__MACOSX")


@dataclass(frozen=True)
class Listing:
    """The files of a folder, sorted by name."""

    folder: Path
    pictures: list[Path]
    passed_over: list[Path]

    @property
    def sentence(self) -> str | None:
        """A sentence that names the skipped files; None if there are none."""
        count = len(self.passed_over)
        if not count:
            return None
        names = [str(path.relative_to(self.folder)) for path in self.passed_over[:NAMED]]
        more = f" and {count - NAMED} more" if count > NAMED else ""
        kind = "file that is not a picture" if count == 1 else "files that are not pictures"
        return f"{self.folder}: skipped {count} {kind}: {', '.join(names)}{more}"


def list_pictures(folder: Path, deep: bool = False, formats: Sequence[str] | None = None) -> Listing:
    """List the pictures in a folder, by suffix.

    Args:
        deep: include its subfolders, except links to folders.
        formats: Pillow's names of the formats to include; None means all that it reads.

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
