"""Small files of kinds that Pillow reads but does not write: PNGs, TIFFs and others bit by bit, EXIF, ICC profiles."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

Codes = np.ndarray  # whole numbers as they stand in the file, [H, W] or [H, W, C]

GREY, RGB, GREY_ALPHA, RGB_ALPHA = 0, 2, 4, 6  # PNG's colour types
SHORT, LONG = 3, 4  # TIFF's types


def packed(codes: Codes, bits: int, order: str = ">") -> bytes:
    """Rows of samples; below 8 bits (and for 12) packed from the high bit, each row filled up to a byte."""
    if bits in (8, 16, 32):
        return codes.astype(f"{order}u{bits // 8}").tobytes()
    rows = codes.reshape(len(codes), -1)
    single = (rows[..., None] >> np.arange(bits)[::-1]) & 1
    return np.packbits(single.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def png(
    codes: Codes, bits: int, colour: int, transparent: Sequence[int] | None = None, icc: bytes | None = None
) -> bytes:
    """A PNG.

    Args:
        transparent: the value or the colour of a tRNS chunk.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = codes.shape[:2]
    rows = packed(codes, bits)
    stride = len(rows) // height
    lines = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))]
    if icc is not None:
        parts.append(chunk(b"iCCP", b"profile\0\0" + zlib.compress(icc)))
    if transparent is not None:
        parts.append(chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    parts += [chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(
    codes: Codes,
    bits: int,
    photometric: int,
    order: str = "<",
    sample_format: int = 1,
    extra: int | None = None,
    planes: bool = False,
    more: Sequence[tuple[int, list[int]]] = (),
) -> bytes:
    """An uncompressed TIFF of one strip (a strip a plane).

    Args:
        codes: floats for sample format 3.
        extra: what the last channel is (0 anything, 1 premultiplied alpha, 2 alpha).
        more: tags of 16-bit numbers.
    """
    samples = 1 if codes.ndim == 2 else codes.shape[2]
    height, width = codes.shape[:2]
    layers = [codes[..., c] for c in range(samples)] if planes else [codes]
    strips = [
        c.astype(f"{order}f{bits // 8}").tobytes() if sample_format == 3 else packed(c, bits, order) for c in layers
    ]
    places = [8 + sum(map(len, strips[:n])) for n in range(len(strips))]
    tags: list[tuple[int, int, list[int]]] = [
        (256, LONG, [width]),
        (257, LONG, [height]),
        (258, SHORT, [bits] * samples),
        (259, SHORT, [1]),
        (262, SHORT, [photometric]),
        (273, LONG, places),
        (277, SHORT, [samples]),
        (278, LONG, [height]),
        (279, LONG, list(map(len, strips))),
        (284, SHORT, [2 if planes else 1]),
    ]
    if extra is not None:
        tags.append((338, SHORT, [extra]))
    tags.append((339, SHORT, [sample_format] * samples))
    tags = sorted([*tags, *((tag, SHORT, values) for tag, values in more)])
    body = b"".join(strips)
    body += b"\0" * (len(body) % 2)
    directory = directory_of(tags, 8 + len(body), order)
    return {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(body)) + body + directory


def directory_of(tags: Sequence[tuple[int, int, list[int]]], start: int, order: str) -> bytes:
    """A TIFF directory that stands at `start`, with the values that do not fit into it behind it."""
    entries, behind = b"", b""
    after = start + 2 + 12 * len(tags) + 4
    for tag, kind, values in tags:
        data = struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'I'}", *values)
        if len(data) > 4:
            place = struct.pack(f"{order}I", after + len(behind))
            behind += data
        else:
            place = data.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + place
    return struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + behind


def exif(orientation: int, tag: int | None = None, kind: int = 7, count: int = 1, value: bytes = b"\1\2\3\4") -> bytes:
    """EXIF with an orientation, and one more tag of any type with any four bytes."""
    entries = [(0x0112, struct.pack("<HHIHH", 0x0112, SHORT, 1, orientation, 0))]
    if tag is not None:
        entries.append((tag, struct.pack("<HHI", tag, kind, count) + value))
    entries.sort()
    body = b"".join(entry for _, entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(64)


# ICC profiles (ICC.1:2001, version 2).


def _s15(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + _s15(*values)


def _curve(gamma: float) -> bytes:
    """A tone curve: linear for 1."""
    return b"curv\0\0\0\0" + (struct.pack(">I", 0) if gamma == 1 else struct.pack(">IH", 1, round(gamma * 256)))


def srgb_curve() -> bytes:
    """sRGB's tone curve, in 1,024 steps."""
    x = np.linspace(0, 1, 1024)
    light = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return b"curv\0\0\0\0" + struct.pack(">I", 1024) + np.round(light * 65535).astype(">u2").tobytes()


def icc(space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """A profile of a monitor or a printer."""
    tags = {b"desc": b"desc\0\0\0\0\0\0\0\5test\0" + bytes(78), b"wtpt": _xyz(0.9642, 1, 0.8249), **tags}
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4xI", size, 0x02100000) + kind + space + connection + bytes(12) + b"acsp"
    head = head.ljust(68, b"\0") + _s15(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + table + body


def rgb_profile(primaries: Sequence[Sequence[float]], curve: bytes) -> bytes:
    """A display's profile, of the XYZ of its primaries under D50."""
    columns = {name: _xyz(*primary) for name, primary in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    return icc(b"RGB ", columns | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


SRGB = rgb_profile([(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)], srgb_curve())
P3_PRIMARIES = [(0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)]
DISPLAY_P3 = rgb_profile(P3_PRIMARIES, srgb_curve())
P3_GAMMA_22 = rgb_profile(P3_PRIMARIES, _curve(2.2))
ADOBE_RGB = rgb_profile(
    [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)], _curve(563 / 256)
)
LINEAR_GREY = icc(b"GRAY", {b"kTRC": _curve(1)})
SRGB_GREY = icc(b"GRAY", {b"kTRC": srgb_curve()})


def cmyk_profile(lightness: Sequence[float]) -> bytes:
    """A printer in whose inks everything is grey: Lab's L (0 to 100) falls with each ink by its own amount."""
    inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1).reshape(16, 4)
    light = np.clip(100 - inks @ np.array(lightness), 0, 100)
    lab = np.stack([np.round(light * 2.55), np.full(16, 128), np.full(16, 128)], axis=1).astype(np.uint8)
    straight = bytes(range(256))
    head = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + _s15(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return icc(b"CMYK", {b"A2B0": head + straight * 4 + lab.tobytes() + straight * 3}, b"Lab ")
