"""Reads a picture's orientation from EXIF, even if other tags are damaged."""

from __future__ import annotations

import struct

from PIL import Image

ORIENTATION = 0x0112
_FORMS = {1: "B", 3: "H", 4: "I"}  # types in which cameras write it: BYTE, SHORT, LONG

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """The transposition that makes a decoded picture upright; None if it is upright or has no readable orientation.

    `ImageOps.exif_transpose` is not used: it writes all of EXIF again, and fails at tags that Pillow can read but not
    write.
    """
    content = image.info.get("exif")
    value = exif_orientation(content) if isinstance(content, bytes) else None
    return _TURNS.get(_pillows(image) if value is None else value)


def exif_orientation(content: bytes) -> int | None:
    """The orientation in EXIF's first directory, read without the other tags; None if there is none."""
    content = content.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _ = struct.unpack_from(f"{order}HHI", content, place)
            if tag == ORIENTATION:
                form = _FORMS.get(kind)
                return None if form is None else int(struct.unpack_from(f"{order}{form}", content, place + 8)[0])
    except struct.error:  # truncated
        pass
    return None


def _pillows(image: Image.Image) -> int:
    """The orientation of files that store it in XMP or elsewhere; 1 for decoded TIFFs, which are upright already."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # Pillow raises many kinds on damaged metadata, although the picture is intact
        return 1
    return value if isinstance(value, int) else 1
