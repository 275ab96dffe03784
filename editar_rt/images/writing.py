"""Writes pictures in the format of the file's suffix, with metadata about how they were made.

A PNG stores it as text chunks `editar:NAME`. The other formats use EXIF: the image description is a JSON
object `{"editar": {NAME: VALUE}}` in ASCII, which every metadata viewer shows.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, PngImagePlugin

from editar_rt.arguments import as_instance, as_integer, as_path
from editar_rt.errors import EditarWarning, OptionError, PictureError
from editar_rt.files import is_folder, is_stream, placing

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
"""By suffix, in upper or lower case."""
LOSSY = ("JPEG", "WEBP", "AVIF")
DEFAULT_QUALITY = 95
PREFIX = "editar:"  # of text chunks
DESCRIPTION = 0x010E  # EXIF's ImageDescription
MAX_EXIF_BYTES = 65_000  # a JPEG's segment holds 64 KiB

Parameters = Mapping[str, str]


def save_picture(
    image: Image.Image,
    path: str | os.PathLike[str] | BinaryIO,
    parameters: Parameters | None = None,
    quality: int | None = None,
    metadata: bool = True,
) -> None:
    """Write a picture with metadata. Files are written atomically.

    Args:
        path: its suffix determines the format, see `FORMATS`. A device or FIFO without suffix gets a PNG, and so does a
            binary file object.
        parameters: the metadata, by name.
        quality: 1 to 100, for lossy formats; None means `DEFAULT_QUALITY`.
        metadata: False leaves the parameters out.

    Raises:
        OptionError: an unknown suffix, a format that this Pillow cannot write, or a quality that it does not accept.
        PictureError: the file cannot be written.
    """
    as_instance("image", image, Image.Image, "a Pillow image")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise OptionError(f"parameters must be a mapping of names to values, got {type(parameters).__name__}")
    written = parameters if metadata else None
    if not isinstance(path, str | os.PathLike) and hasattr(path, "write"):
        path.write(picture_bytes(image, "PNG", written))
        return
    final = as_path("where a picture is written", path)
    content = picture_bytes(image, check_picture_name(final, quality), written, quality)
    with placing(final, PictureError) as partial:
        partial.write_bytes(content)


def check_picture_name(path: Path, quality: int | None = None) -> str:
    """The format that belongs to a file's name.

    Raises:
        OptionError: as `save_picture`.
    """
    suffix = path.suffix.lower()
    name = FORMATS.get(suffix) or ("PNG" if is_stream(path) and not suffix else None)
    if name is None:
        if is_folder(path):
            raise PictureError(f"cannot write {path}: it is a folder")
        raise OptionError(f"a picture's name must end with {', '.join(FORMATS)}, got {path.name!r}")
    if not _is_written(name):
        raise OptionError(f"this version of Pillow cannot write {name} ({path.name!r}); choose .png, or update Pillow")
    if quality is not None:
        if not 1 <= as_integer("quality", quality) <= 100:
            raise OptionError(f"quality must be 1 to 100, got {quality!r}")
        if name not in LOSSY:
            raise OptionError(f"{name} is lossless and has no quality; leave it out, or choose .jpg, .webp or .avif")
    return name


def _is_written(name: str) -> bool:
    if name not in Image.SAVE:
        Image.init()  # loads the less common plugins
    return name in Image.SAVE


def picture_bytes(
    image: Image.Image, name: str = "PNG", parameters: Parameters | None = None, quality: int | None = None
) -> bytes:
    """Encode a picture.

    Args:
        name: of the format, one of `FORMATS`.
        parameters: the metadata; None writes none.

    Raises:
        PictureError: the picture is too large for the format.
    """
    options: dict[str, Any] = {}
    if name in LOSSY:
        options["quality"] = DEFAULT_QUALITY if quality is None else quality
    if name == "JPEG":
        options["subsampling"] = "4:4:4"  # subsampled colours are visible at edges before the quality is
    if parameters and name == "PNG":
        options["pnginfo"] = chunks = PngImagePlugin.PngInfo()
        for key, value in parameters.items():
            chunks.add_itxt(f"{PREFIX}{key}", str(value))
    elif parameters:
        options["exif"] = _exif(parameters, name)
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=name, **options)
    except (ValueError, OSError) as e:  # a side that is too long for the format
        size = f"{image.width}×{image.height}"
        raise PictureError(f"a picture of {size} pixels cannot be written as {name} ({e}); choose .png") from None
    return buffer.getvalue()


def _exif(parameters: Parameters, name: str) -> bytes:
    exif = Image.Exif()
    exif[DESCRIPTION] = json.dumps({"editar": {key: str(value) for key, value in parameters.items()}})
    raw = exif.tobytes()
    if name == "JPEG" and len(raw) > MAX_EXIF_BYTES:
        message = f"the picture's metadata has {len(raw)} bytes, more than a JPEG can store, and is left out"
        warnings.warn(message, EditarWarning, stacklevel=4)
        return b""
    return raw


def read_parameters(path: str | os.PathLike[str]) -> dict[str, str] | None:
    """Read the metadata that `save_picture` wrote; None if there is none. No pixels are decoded."""
    Image.init()
    try:
        with Image.open(path, formats=sorted(set(FORMATS.values()) & set(Image.OPEN))) as image:
            if image.format == "PNG":
                texts = {str(key): str(value) for key, value in image.info.items()}
                return {k.removeprefix(PREFIX): v for k, v in texts.items() if k.startswith(PREFIX)} or None
            document = json.loads(image.getexif().get(DESCRIPTION, ""))
    except Exception:  # Pillow's readers raise many kinds on damaged files
        return None
    metadata = document.get("editar") if isinstance(document, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        return None
    return metadata
