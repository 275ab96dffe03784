"""JSON, SHA-256 and numbers are read as Python reads them."""

from __future__ import annotations

import ctypes
import hashlib
import json
import random

import pytest

from tests.cpp.inside import BAD_BUNDLE, Failed, Inside

VALUES = [
    "{}", "[]", '""', "0", "-0", "1.5e-7", "true", "false", "null", ' [ 1 , { "a" : [ ] } ] ', "NaN",
    "-Infinity", "Infinity", '{"b": 1, "a": 2, "b": {"c": 3}}', '"\\u00e4\\ud83d\\ude00\\n\\/\\b\\f\\r\\t\\\\\\""',
    '"\\ud800\\u0041"', '"\\ude00\\ud83d"', '"\\ud83d\\ud83d\\ude00"', '"ä\U0001f600\x7f"',
    "123456789012345678901234567890", "9" * 4300, "-" + "9" * 4299, "1e400", "[" * 31 + "]" * 31,
]  # fmt: skip
NO_VALUES = [
    "", " ", "{", "[", "[1", "[1,]", "{,}", '{"a"}', '{"a":}', '{"a":1,}', "{a:1}", "{'a':1}", "tru", "nul", "nan",
    "+1", "01", "1.", ".5", "1e", "1e+", "-", "--1", "0x1", '"', '"\\', '"\\x41"', '"\\u12"', '"\\u12g4"', '"a\nb"',
    '"\x00"', "1 2", "[1 2]", "\ufeff{}", "/**/1", "9" * 4301, "[]]", "{}}", '"\\ud800',
]  # fmt: skip


def read(inside: Inside, text: bytes) -> str:
    """What the library read, as JSON."""
    return inside.call("json", text, ctypes.c_size_t(len(text))).decode()


def same(text: str) -> str:
    """What Python reads, in the library's writing: without spaces, numbers as they stand there."""

    def number(written: str) -> str:
        json.loads(written)  # refuses an integer of too many digits
        return f"#{written}#"

    value = json.loads(text, parse_int=number, parse_float=number, parse_constant=number)
    return json.dumps(value, separators=(",", ":")).replace('"#', "").replace('#"', "")


@pytest.mark.parametrize("text", VALUES)
def test_a_value_is_the_one_that_python_reads(inside: Inside, text: str) -> None:
    assert read(inside, text.encode()) == same(text)


@pytest.mark.parametrize("text", NO_VALUES)
def test_what_python_does_not_read_is_refused(inside: Inside, text: str) -> None:
    with pytest.raises(ValueError, match="."):
        json.loads(text)
    with pytest.raises(Failed, match=r"bundle\.json is not JSON \(.*line \d+ column \d+\)") as refused:
        read(inside, text.encode())
    assert refused.value.status == BAD_BUNDLE


@pytest.mark.parametrize(
    "text", ['"\xe4"', '"\xc0\x80"', '"\xed\xa0\x80"', '"\xf4\x90\x80\x80"', '"\xe2\x82"', '"\x80"']
)
def test_bytes_that_are_not_utf8_are_refused(inside: Inside, text: str) -> None:
    with pytest.raises(Failed, match=r"bundle\.json is not UTF-8 text"):
        read(inside, text.encode("latin-1"))


@pytest.mark.parametrize("text", ["[" * 33, "[" * 100_000, '{"a":' * 33 + "0" + "}" * 33, "[" * 32 + "0" + "]" * 32])
def test_deep_nesting_is_refused_without_deep_recursion(inside: Inside, text: str) -> None:
    with pytest.raises(Failed, match="nested more than 32 levels deep"):
        read(inside, text.encode())


def test_mutated_manifests_are_read_alike_or_refused_by_both(inside: Inside) -> None:
    good = b'{"x": [1.25e3, {"y": "\\u00e4\\n"}, null, true], "z": -0.5, "model": {"image_size": 128, "grid": 8}}'
    rng, alike = random.Random(0), 0
    for _ in range(3000):
        text = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            text[rng.randrange(len(text))] = rng.choice(b'{}[]",:\\u0e-+. \ntfn\x80')
        try:
            expected = same(bytes(text).decode())
        except ValueError:
            with pytest.raises(Failed):
                read(inside, bytes(text))
        else:
            assert read(inside, bytes(text)) == expected
            alike += 1
    assert 200 < alike < 2800  # both happened


@pytest.mark.parametrize(
    "text", ["0.1", "-0.0", "1e400", "-1e400", "1e-400", "5e-324", "2.2250738585072011e-308", "9007199254740993", "NaN"]
)
def test_numbers_are_rounded_correctly(inside: Inside, text: str) -> None:
    number = ctypes.c_double()
    inside.call("number", text.encode(), ctypes.byref(number))
    assert repr(number.value) == repr(float(text))


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000])
@pytest.mark.parametrize("piece", [1, 7, 64, 1000])
def test_sha256_is_the_standards(inside: Inside, size: int, piece: int) -> None:
    """By plain arithmetic, and by the processor's instructions where it has them."""
    data = random.Random(size).randbytes(size)
    for portable in (0, 1):
        digest = inside.call("sha256", data, ctypes.c_size_t(size), ctypes.c_size_t(piece), portable)
        assert digest.decode() == hashlib.sha256(data).hexdigest()
