"""Ids are those of the `tokenizers` library: for the demo's tokenizer, and for one like T5's."""

from __future__ import annotations

import base64
import ctypes
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.cpp.inside import BAD_BUNDLE, UNSUPPORTED, Failed, Inside
from tests.export.test_text_reader import awkward_strings

DEMO = Path("engines/demo/tokenizer.json")
# Planes 4 to 13 have no characters, 15 and 16 private ones: one in a hundred is tried, or all of them with
# EDITAR_TEST_CODE_POINTS=all (passed on 2026-11-28).
STEP = 1 if os.environ.get("EDITAR_TEST_CODE_POINTS") == "all" else 101
CODE_POINTS = [
    chr(c)
    for points in (range(1, 0xD800), range(0xE000, 0x40000), range(0x40000, 0xE0000, STEP), range(0xE0000, 0xE1000),
                   range(0xE1000, sys.maxunicode + 1, STEP))
    for c in points
]  # fmt: skip


@pytest.fixture(scope="session")
def t5_like(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Unigram tokenizer as the exporter converts T5's, trained on the documentation with sentencepiece's nmt_nfkc."""
    import sentencepiece

    from export.text_reader import _read_tokenizer

    folder = tmp_path_factory.mktemp("t5")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(path.read_text(encoding="utf-8") for path in sorted(Path("docs").glob("*.md"))))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "spiece"), vocab_size=2000, hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, num_threads=1,
    )  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 100}))
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    return _read_tokenizer(folder).to_str()


@pytest.fixture(params=["demo", "t5_like"])
def file(request: pytest.FixtureRequest) -> str:
    """The text of a tokenizer's file."""
    if request.param == "demo":
        return DEMO.read_text(encoding="utf-8")
    text: str = request.getfixturevalue("t5_like")
    return text


def read(inside: Inside, file: str) -> None:
    inside.call("tokenizer", file.encode(), ctypes.c_size_t(len(file.encode())))


def encoded(inside: Inside, texts: Sequence[bytes]) -> list[list[int]]:
    """Ids of texts, by the tokenizer that was read last."""
    stops = np.cumsum([len(text) for text in texts], dtype=np.int64)
    room = np.zeros(8 * int(stops[-1]) + 8 * len(texts), np.int32)
    counts = np.zeros(len(texts), np.int32)
    arrays = [each.ctypes.data_as(ctypes.c_void_p) for each in (stops, room, counts)]
    inside.call("encode", b"".join(texts), arrays[0], ctypes.c_int64(len(texts)), *arrays[1:])
    return [ids.tolist() for ids in np.split(room[: counts.sum()], np.cumsum(counts)[:-1])]


def assert_same(inside: Inside, file: str, texts: Sequence[str]) -> None:
    read(inside, file)
    found = encoded(inside, [text.encode() for text in texts])
    expected = [each.ids for each in Tokenizer.from_str(file).encode_batch(texts)]
    different = [text for text, a, b in zip(texts, found, expected, strict=True) if a != b]
    assert not different, f"{len(different)} of {len(texts)} differ: {different[:5]!a}"


def test_awkward_strings(inside: Inside, file: str) -> None:
    assert_same(inside, file, awkward_strings())


def test_every_code_point_alone(inside: Inside, file: str) -> None:
    assert_same(inside, file, CODE_POINTS)


def test_every_code_point_between_letters(inside: Inside, file: str) -> None:
    assert_same(inside, file, [f"a{c}b" for c in CODE_POINTS])


def test_marks_and_what_they_stand_on(inside: Inside, file: str) -> None:
    """Characters in graphemes with others: marks of many classes in any order, jamo, joiners, controls, prefixes."""
    rng = random.Random(0)
    bases = "aZeéª™ﬁ①가ᄀᄒんガｶﾞ한डಕ©"
    marks = "\u0300\u0301\u0323\u0327\u0334\u0345\u05b4\u064b\u0903\u0c4d\u1161\u11a8\u200d\ufe0f\u3099\U000110ba"
    others = "\r\n\t \u00a0\u00ad\u0600\u070f\u200b\u2028\ufeff\x00\x7f<\u0130\u03a3\u1e9e"
    texts = [
        "".join(rng.choice(rng.choice((bases, marks, others))) for _ in range(rng.randint(1, 12))) for _ in range(20000)
    ]
    assert_same(inside, file, texts)


def test_added_tokens_that_users_type(inside: Inside, file: str) -> None:
    pieces = ["</s>", "<pad>", "<unk>", "<extra_id_0>", "<extra_id_10>", "<extra_id_1", "<", " ", "a", "É", "</s", ">"]
    rng = random.Random(0)
    assert_same(inside, file, ["".join(rng.choices(pieces, k=rng.randint(1, 8))) for _ in range(2000)])


def test_words_of_many_merges(inside: Inside, file: str) -> None:
    rng = random.Random(0)
    letters = "aaabbthethe ing. make the ball red"
    assert_same(inside, file, ["".join(rng.choices(letters, k=rng.randint(1, 200))) for _ in range(2000)])


@pytest.mark.parametrize("text", [b"a\xffb", b"\xe2\x82", b"\xf0\x9f\x98\xe2\x82\xac", b"\xc0\x80", b"\xed\xa0\x80"])
def test_bytes_that_are_not_utf8_become_replacement_characters(inside: Inside, file: str, text: bytes) -> None:
    from editar_rt.text.prompts import as_text

    read(inside, file)
    expected = Tokenizer.from_str(file).encode(as_text(text.decode(errors="surrogateescape"))).ids
    assert encoded(inside, [text]) == [expected]


@pytest.mark.parametrize(("padding", "expected"), [(None, 0), ({"pad_id": 7}, 7)])
def test_the_padding_is_the_files(inside: Inside, padding: Any, expected: int) -> None:
    content = json.loads(DEMO.read_text(encoding="utf-8"))
    read(inside, json.dumps(content | {"padding": padding}))
    pad = ctypes.c_int32(-1)
    inside.call("pad_id", ctypes.byref(pad))
    assert pad.value == expected


Change = Callable[[dict[str, Any]], object]


def in_model(**values: object) -> Change:
    return lambda file: file["model"].update(values)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.update(normalizer={"type": "BertNormalizer"}), "the normalizer 'BertNormalizer'"),
        (lambda f: f.update(pre_tokenizer={"type": "ByteLevel"}), "the pre-tokenizer 'ByteLevel'"),
        (lambda f: f.update(post_processor={"type": "RobertaProcessing"}), "the post-processor 'RobertaProcessing'"),
        (in_model(type="WordPiece"), "a model of type 'WordPiece'"),
        (in_model(byte_fallback=True), "BPE with byte_fallback True"),
        (in_model(dropout=0.1), r"BPE with dropout 0\.1"),
        (in_model(end_of_word_suffix="</w>"), "BPE with end_of_word_suffix '</w>'"),
        (lambda f: f["pre_tokenizer"].update(prepend_scheme="first"), "Metaspace with prepend_scheme 'first'"),
        (lambda f: f["added_tokens"][0].update(lstrip=True), "the added token '<pad>' with lstrip True"),
    ],
)
def test_what_the_library_does_not_know_is_refused_by_name(inside: Inside, change: Change, says: str) -> None:
    content = json.loads(DEMO.read_text(encoding="utf-8"))
    change(content)
    with pytest.raises(Failed, match=f"tokenizer.json has {says}, which this library does not know; give") as failed:
        read(inside, json.dumps(content))
    assert failed.value.status == UNSUPPORTED


def damaged_map(charsmap: bytes) -> Change:
    return lambda file: file["normalizer"].update(precompiled_charsmap=base64.b64encode(charsmap).decode())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.pop("model"), "it lacks model"),
        (in_model(vocab=[]), "it lacks vocab"),
        (in_model(vocab={"a": -1}), "a token has the id -1"),
        (in_model(vocab={"a": 1e3}), r"a token has the id 1000\.0"),
        (in_model(unk_token="none"), "lacks the unknown token 'none'"),
        (in_model(merges=["a"]), "a merge is 'a'"),
        (in_model(merges=[[1, 2]]), r"a merge is \[1, 2\]"),
        (in_model(merges=[["t", "zzz"]]), "lacks a token of the merge"),
        (lambda f: f["added_tokens"][0].update(id=5), "the added token '<pad>' has the id 5"),
        (lambda f: f["added_tokens"].append({"content": "new", "id": 999}), "the added token 'new' has the id 999"),
        (lambda f: f["post_processor"].update(single=[]), "its template lacks the text"),
        (lambda f: f["post_processor"].update(special_tokens={}), "it lacks </s>"),
    ],
)
def test_a_damaged_file_is_one_sentence(inside: Inside, change: Change, says: str) -> None:
    content = json.loads(DEMO.read_text(encoding="utf-8"))
    change(content)
    with pytest.raises(Failed, match=rf"tokenizer\.json is not a tokenizer \(.*{says}") as failed:
        read(inside, json.dumps(content))
    assert failed.value.status == BAD_BUNDLE


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (damaged_map(b""), "its character map is too short"),
        (damaged_map(b"\xff\xff\xff\xff" * 3), "its character map is damaged"),
        (in_model(unk_id=10**6), "its unknown token has the id 1000000"),
        (in_model(vocab=[["a", "b"]]), "a token has the score 'b'"),
        (in_model(vocab=[["a", float("nan")]]), "a token has the score NaN"),
        (in_model(vocab=[["a"]]), r"a token is \['a'\]"),
    ],
)
def test_a_damaged_unigram_file_is_one_sentence(inside: Inside, t5_like: str, change: Change, says: str) -> None:
    content = json.loads(t5_like)
    change(content)
    with pytest.raises(Failed, match=rf"is not a tokenizer \(.*{says}"):
        read(inside, json.dumps(content))


@pytest.mark.parametrize(
    "charsmap", [b"\4\0\0\0" + b"\xff" * 4, b"\x10\0\0\0" + b"\0\xff\0\4" * 4 + b"a", b"\4\0\0\0\0\0\0\0"]
)
def test_a_map_that_leads_beyond_its_end_replaces_nothing(inside: Inside, t5_like: str, charsmap: bytes) -> None:
    content = json.loads(t5_like)
    damaged_map(charsmap)(content)
    read(inside, json.dumps(content))
    assert encoded(inside, ["aé\u00aa\u0300".encode()])
