"""Pictures that commands read and write: files, pipes and devices, stdin and stdout."""

from __future__ import annotations

import contextlib
import hashlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from editar_rt.bundle.folder import file_digest
from editar_rt.errors import OptionError, PictureError
from editar_rt.files import is_stream
from editar_rt.images.pixels import MAX_BYTES, open_picture

STREAM = Path("-")
"""Means stdin as IMAGE and stdout as OUT."""
MAX_INSTRUCTIONS_BYTES = 1 << 20


@dataclass(frozen=True)
class Given:
    """An input picture."""

    image: Image.Image
    """Upright 8-bit RGB."""
    digest: str
    """SHA-256 of its file."""


def read_given(path: Path) -> Given:
    """The picture that a name stands for.

    Raises:
        PictureError: the file does not exist or cannot be read.
    """
    if path != STREAM and not is_stream(path):
        return Given(open_picture(path), picture_digest(path))
    name = "stdin" if path == STREAM else str(path)
    try:
        with contextlib.nullcontext(_binary(sys.stdin, name)) if path == STREAM else open(path, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as e:
        raise PictureError(f"{name} cannot be read: {e.strerror or e}") from None
    if not content:
        raise PictureError(f"{name} is empty; a picture was expected")
    return given_of(content, name)


def given_of(content: bytes, name: str) -> Given:
    """The picture in a file's bytes.

    Args:
        name: the file, for messages.

    Raises:
        PictureError: it cannot be read.
    """
    whole = io.BytesIO(content)
    whole.name = name
    return Given(open_picture(whole), hashlib.sha256(content).hexdigest())


def read_instructions(file: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        OptionError: it cannot be read, is too large, or is not UTF-8 text.
    """
    try:
        with open(file, "rb") as f:
            raw = f.read(MAX_INSTRUCTIONS_BYTES + 1)
        if len(raw) > MAX_INSTRUCTIONS_BYTES:
            raise OptionError(
                f"{file} is larger than {MAX_INSTRUCTIONS_BYTES >> 20} MiB, the limit for a list of instructions"
            )
        text = raw.decode("utf-8-sig")
    except OSError as e:
        raise OptionError(f"the instructions {file} cannot be read: {e.strerror or e}") from None
    except UnicodeDecodeError:
        raise OptionError(f"the instructions {file} are not UTF-8 text") from None
    # str.splitlines would also split at characters such as U+2028, which belong to the text.
    return [line.strip() for line in text.split("\n") if line.strip()]


def picture_digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        PictureError: it cannot be read.
    """
    try:
        return file_digest(path).sha256
    except OSError as e:
        raise PictureError(f"{path} cannot be read: {e.strerror or e}") from None


def destination(path: Path) -> Path | BinaryIO:
    """The path or stream that `save_picture` writes to for a name.

    Raises:
        PictureError: stdout is closed.
    """
    return path if path != STREAM else _binary(sys.stdout, "stdout")


def _binary(stream: Any, name: str) -> BinaryIO:
    binary: BinaryIO | None = getattr(stream, "buffer", None)
    if binary is None:
        raise PictureError(f"{name} is closed, so a picture cannot pass through it; give a file")
    return binary
