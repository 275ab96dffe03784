"""Prompts to token ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from editar_rt.errors import BundleError
from editar_rt.text.tokenizer import TextTokenizer

WORDS = {"<pad>": 0, "</s>": 1, "<unk>": 2, "make": 3, "the": 4, "ball": 5, "red": 6, "Red": 7, "<void>": 8}


def plain_tokenizer() -> Tokenizer:
    """Whole words, and an end token after them as T5 has it."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def opened(tokenizer: Tokenizer, folder: Path, length: int) -> TextTokenizer:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return TextTokenizer.read(path, length)


def test_prompts_are_padded_behind_their_end_token(tmp_path: Path) -> None:
    encoded = opened(plain_tokenizer(), tmp_path, 6).encode(["make the ball red", "red"])
    assert encoded.ids.dtype == encoded.mask.dtype == np.int32
    assert encoded.ids.tolist() == [[3, 4, 5, 6, 1, 0], [6, 1, 0, 0, 0, 0]]
    assert encoded.mask.tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]
    assert encoded.truncated == [False, False]


def test_a_truncated_prompt_keeps_its_end_token_and_says_its_length(tmp_path: Path) -> None:
    encoded = opened(plain_tokenizer(), tmp_path, 4).encode(["make the ball red", "the ball red"])
    assert encoded.ids.tolist() == [[3, 4, 5, 1], [4, 5, 6, 1]]
    assert encoded.tokens == [5, 4]
    assert encoded.truncated == [True, False]


def test_without_an_end_token_only_the_words_are_cut(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert opened(tokenizer, tmp_path, 2).encode(["make the red"]).ids.tolist() == [[3, 4]]


def test_an_empty_prompt_is_its_end_token_alone(tmp_path: Path) -> None:
    encoded = opened(plain_tokenizer(), tmp_path, 3).encode([""])
    assert encoded.ids.tolist() == [[1, 0, 0]] and encoded.mask.tolist() == [[1, 0, 0]]


def test_five_thousand_words_are_cut(tmp_path: Path) -> None:
    encoded = opened(plain_tokenizer(), tmp_path, 120).encode(["red " * 5000])
    assert encoded.tokens == [5001]
    assert encoded.ids[0, :119].tolist() == [6] * 119 and encoded.ids[0, 119] == 1


def test_prompts_are_taken_as_they_are(tmp_path: Path) -> None:
    """Red is not red: nothing is lower-cased."""
    assert opened(plain_tokenizer(), tmp_path, 3).encode(["Red red"]).ids.tolist() == [[7, 6, 1]]


def test_what_is_no_character_becomes_an_unknown_one(tmp_path: Path) -> None:
    """A command line that is not UTF-8 reaches Python as lone surrogates."""
    assert opened(plain_tokenizer(), tmp_path, 3).encode(["red \udc80"]).ids.tolist() == [[6, 2, 1]]


def test_the_files_own_padding_and_truncation_give_the_pad_id_alone(tmp_path: Path) -> None:
    tokenizer = plain_tokenizer()
    tokenizer.enable_padding(direction="left", pad_id=8, pad_token="<void>", length=9)
    tokenizer.enable_truncation(2)
    encoded = opened(tokenizer, tmp_path, 5).encode(["the ball red"])
    assert encoded.ids.tolist() == [[4, 5, 6, 1, 8]] and encoded.mask.tolist() == [[1, 1, 1, 1, 0]]


def test_a_prompt_has_the_same_ids_alone_and_in_a_batch(tmp_path: Path) -> None:
    tokenizer = opened(plain_tokenizer(), tmp_path, 6)
    prompts = ["make the ball red", "", "red " * 50]
    together = tokenizer.encode(prompts)
    for row, prompt in enumerate(prompts):
        assert tokenizer.encode([prompt]).ids[0].tolist() == together.ids[row].tolist()


@pytest.mark.parametrize("content", [None, "", "{}", "no json"])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BundleError, match="is not a tokenizer"):
        TextTokenizer.read(path, 5)
