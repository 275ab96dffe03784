"""Reads the wire format of Protocol Buffers, field by field.

Files are untrusted. Every length is compared with the message that contains it, the number of fields is bounded, and
encodings that parsers read differently (groups, numbers with excess bits) are rejected.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4 were groups
TAG_BYTES, VARINT_BYTES = 5, 10
MAX_FIELDS = 1 << 20  # a decoder of 36 layers has about 30,000


class DamagedError(ValueError):
    """A file that is not of this format."""


class Span(NamedTuple):
    """The location of a message, a string or packed numbers."""

    start: int
    stop: int


class Reader:
    """Iterates over the fields of messages.

    Args:
        data: a complete file; only `text` copies parts of it.
    """

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data = data
        self._fields = 0
        self.whole = Span(0, len(data))

    def fields(self, message: Span) -> Iterator[tuple[int, int | Span]]:
        """The fields of a message in order, as (number, value); values of fixed width are skipped.

        Raises:
            DamagedError: the message is malformed, or there are more than `MAX_FIELDS` fields in total.
        """
        at, stop = message
        while at < stop:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise DamagedError(f"it has more than {MAX_FIELDS} fields")
            tag, at = self._number(at, stop, TAG_BYTES)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:
                raise DamagedError(f"it has a field of number {number}")
            if wire == VARINT:
                value, at = self._number(at, stop)
                yield number, value
            elif wire == BYTES:
                size, at = self._number(at, stop)
                if size > stop - at:
                    raise DamagedError("a length in it exceeds its message")
                yield number, Span(at, at + size)
                at += size
            elif wire in (FIXED32, FIXED64):
                at += 4 if wire == FIXED32 else 8
            else:
                raise DamagedError(f"it has a field of wire type {wire}")
        if at != stop:
            raise DamagedError("it is truncated")

    def numbers(self, packed: Span) -> Iterator[int]:
        """Packed numbers, as unsigned integers."""
        at, stop = packed
        while at < stop:
            value, at = self._number(at, stop)
            yield value

    def text(self, span: Span, most: int) -> str:
        """A string of at most `most` bytes.

        Raises:
            DamagedError: the string is longer, or is not UTF-8.
        """
        if span.stop - span.start > most:
            raise DamagedError(f"it has a name of more than {most} bytes")
        try:
            return self._data[span.start : span.stop].decode()
        except UnicodeDecodeError:
            raise DamagedError("it has a name that is not UTF-8") from None

    def _number(self, at: int, stop: int, most: int = VARINT_BYTES) -> tuple[int, int]:
        """A number of variable length, and the position after it."""
        data, value = self._data, 0
        for shift in range(0, 7 * most, 7):
            if at >= stop:
                raise DamagedError("it is truncated")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    break
                return value, at
        raise DamagedError("it has a number of too many bytes")


def signed(value: int) -> int:
    """A 64-bit number as a signed integer."""
    return value - (1 << 64) if value >> 63 else value
