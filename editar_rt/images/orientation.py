"""Which way a picture is turned: one tag of EXIF, whatever else stands there and however damaged that is."""

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
    """What makes a decoded picture upright; None where it is, or where nothing readable says otherwise.

    Not `ImageOps.exif_transpose`: that one writes all of EXIF anew, and fails at tags which Pillow reads but cannot
    write.
    """
    content = image.info.get("exif")
    value = exif_orientation(content) if isinstance(content, bytes) else None
    return _TURNS.get(_pillows(image) if value is None else value)


def exif_orientation(content: bytes) -> int | None:
    """The orientation in EXIF's first directory, read without its other tags; None where there is none."""
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
    except struct.error:  # cut off
        pass
    return None


def _pillows(image: Image.Image) -> int:
    """The orientation of files that have it in XMP or elsewhere; decoded TIFFs are turned already and say 1."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # of damaged metadata, of which Pillow raises many kinds; the picture itself is whole
        return 1
    return value if isinstance(value, int) else 1
