"""Writes `editar_rt/cpp/src/unicode_tables.cpp`: what the `tokenizers` library does with every code point.

The library is asked, since its parts follow different versions of Unicode: its NFKC that of 2018, its lower case a much
later one. Run `python -m tests.cpp.make_unicode_tables` when `tokenizers` has changed; `test_tokenizer.py` compares
every code point.
"""

from __future__ import annotations

import sys
import tempfile
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import normalizers

TABLES = Path(__file__).parents[2] / "editar_rt/cpp/src/unicode_tables.cpp"
HEAD = """\
// What the tokenizers library does with every code point.
// Written by `python -m tests.cpp.make_unicode_tables`; do not edit.
// clang-format off
#include "unicode_tables.h"

namespace editar::unicode {
"""
HANGUL = range(0xAC00, 0xAC00 + 11172)  # composed by arithmetic
CODE_POINTS = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF]
MARK = "\u0300"  # a grapheme's second character, of 2 bytes


def main() -> None:
    TABLES.write_text(text(), encoding="utf-8")
    print(f"wrote {TABLES}", file=sys.stderr)


def text() -> str:
    """The whole file."""
    pool: list[int] = []
    index = []
    for c, into in decompositions():
        index.append((c, len(pool), len(into)))
        pool += into
    classes = combining_classes()
    lines = [
        *_table("Decomposition", "decompositions", index),
        f"const uint32_t decomposed[] = {{\n{_wrapped(map(_number, pool))}}};",
        *_table("Range", "classes", _ranges(list(classes), classes)),
        *_table("Composition", "compositions", compositions()),
        *_table("Lower", "lowers", lower_cases()),
        *_table("Range", "spaces", _ranges(spaces())),
        *_table("Range", "controls", _ranges(controls())),
        *_table("Range", "extenders", _ranges(extenders())),
        *_table("Range", "prepended", _ranges(prepended())),
    ]
    return HEAD + "\n".join(lines) + "\n\n}  // namespace editar::unicode\n"


def decompositions() -> Iterator[tuple[int, list[int]]]:
    """Full compatibility decompositions."""
    ask = normalizers.NFKD()
    for c in CODE_POINTS:
        if c not in HANGUL and (into := ask.normalize_str(chr(c))) != chr(c):
            yield c, [ord(each) for each in into]


def combining_classes() -> dict[int, int]:
    """Classes above 0; the library's Unicode knows fewer characters than Python's, and those that both know agree."""
    ask = normalizers.NFD()

    def is_known(c: int) -> bool:
        # A mark is moved before one of a higher class, and behind one of a lower.
        before, after = chr(c) + "\u0334", "\u0345" + chr(c)  # classes 1 and 240
        return ask.normalize_str(before) != before or ask.normalize_str(after) != after

    classes = {c: unicodedata.combining(chr(c)) for c in CODE_POINTS}
    return {c: value for c, value in classes.items() if value and is_known(c)}


def compositions() -> Iterator[tuple[int, int, int]]:
    """Pairs that become one character."""
    ask = normalizers.NFC()
    pairs = {}
    for c in CODE_POINTS:
        parts = unicodedata.decomposition(chr(c)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            first, second = (int(part, 16) for part in parts)
            if ask.normalize_str(chr(first) + chr(second)) == chr(c):
                pairs[first, second] = c
    return ((*pair, c) for pair, c in sorted(pairs.items()))


def lower_cases() -> Iterator[tuple[int, int, int]]:
    """One or two characters, the second 0."""
    ask = normalizers.Lowercase()
    for c in CODE_POINTS:
        into = [ord(each) for each in ask.normalize_str(chr(c))]
        assert 1 <= len(into) <= 2, hex(c)
        if into != [c]:
            yield c, into[0], into[1] if len(into) == 2 else 0


def spaces() -> list[int]:
    ask = normalizers.Strip()
    return [c for c in CODE_POINTS if ask.normalize_str(chr(c)) == ""]


# Graphemes are seen by what a character map does: of a grapheme shorter than 6 bytes that begins with a character that
# it replaces, it drops the rest; others it replaces character by character.


def extenders() -> list[int]:
    """What is in one grapheme with the character before it."""
    ask = character_map(["a"])
    return [c for c in CODE_POINTS if ask.normalize_str(f"a{chr(c)}") == "X"]


def prepended() -> list[int]:
    """What is in one grapheme with the character behind it, unless that is a control."""
    ask = character_map(["a"])
    return [c for c in CODE_POINTS if chr(c) != "a" and ask.normalize_str(f"{chr(c)}a{MARK}") == f"{chr(c)}X{MARK}"]


def controls() -> list[int]:
    """What stands alone. Characters of 4 bytes cannot be seen so; those are format characters, of Python's Unicode."""
    candidates = [c for c in range(1, 0x10000) if c in range(0x20) or (c > 0x7E and not 0xD800 <= c <= 0xDFFF)]
    ask = character_map(list(map(chr, candidates)))
    seen = [c for c in candidates if ask.normalize_str(f"{chr(c)}{MARK}") == "XX"]
    others = {*extenders(), *prepended()}
    formats = [c for c in CODE_POINTS if c >= 0x10000 and unicodedata.category(chr(c)) == "Cf" and c not in others]
    return [0, *seen, *formats]


@cache
def _map_of(replaced: str) -> bytes:
    """A character map as sentencepiece compiles it, in which characters become X."""
    import sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.tsv"
        rules.write_text("".join(f"{ord(c):X}\t58\n" for c in replaced))
        (Path(folder) / "words.txt").write_text("some words of a few letters\n")
        sentencepiece.SentencePieceTrainer.train(
            input=f"{folder}/words.txt", model_prefix=f"{folder}/m", vocab_size=30, hard_vocab_limit=False,
            normalization_rule_tsv=str(rules), minloglevel=2,
        )  # fmt: skip
        model = sentencepiece_model_pb2.ModelProto.FromString((Path(folder) / "m.model").read_bytes())
    compiled: bytes = model.normalizer_spec.precompiled_charsmap
    return compiled


def character_map(replaced: list[str]) -> Any:
    return normalizers.Precompiled(_map_of("".join(replaced)))


# C++ from values.


def _ranges(points: list[int], classes: Mapping[int, int] | None = None) -> Iterator[tuple[int, int, int]]:
    """Ranges of neighbours of the same class."""
    start = last = -2
    of = (lambda c: 0) if classes is None else classes.__getitem__
    for c in [*sorted(points), -1]:
        if c != last + 1 or of(c) != of(start):
            if start >= 0:
                yield start, last, of(start)
            start = c
        last = c


def _table(kind: str, name: str, rows: Iterable[tuple[int, ...]]) -> Iterator[str]:
    items = [f"{{{','.join(map(_number, row))}}}" for row in rows]
    yield f"const {kind} {name}[] = {{\n{_wrapped(items)}}};"
    yield f"const size_t {name}_count = {len(items)};"


def _number(value: int) -> str:
    return str(value) if value < 256 else hex(value)


def _wrapped(items: Iterable[str]) -> str:
    return textwrap.fill(" ".join(f"{item}," for item in items), 120, break_long_words=False) + "\n"


if __name__ == "__main__":
    main()
