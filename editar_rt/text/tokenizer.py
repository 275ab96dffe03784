"""Prompts to token ids, through the `tokenizers` library and the bundle's `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from editar_rt.errors import BundleError
from editar_rt.text.prompts import as_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Encoded(NamedTuple):
    """Token ids of prompts, padded and truncated."""

    ids: NDArray[np.int32]  # [B, T]
    mask: NDArray[np.int32]  # [B, T], 1 for text and 0 for padding
    tokens: list[int]  # how many tokens each prompt has before truncation, its end token included

    @property
    def truncated(self) -> list[bool]:
        """Whether each prompt lost its end."""
        return [count > self.ids.shape[1] for count in self.tokens]


class TextTokenizer:
    """The tokenizer of a bundle.

    Args:
        tokenizer: its post-processor adds the end token.
        length: T, tokens of every encoded prompt.
    """

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self._tokenizer = tokenizer
        self.length = length
        padding = self._tokenizer.padding or {}
        pad = padding.get("pad_id", self._tokenizer.token_to_id("<pad>"))
        self._pad_id = 0 if pad is None else int(pad)  # T5's
        # Both are done here: the file's own settings are those of whoever saved it, not of the exported graph.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @classmethod
    def read(cls, path: Path, length: int) -> TextTokenizer:
        """From a `tokenizer.json`.

        Raises:
            BundleError: the file is missing or no tokenizer.
        """
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_file(str(path)), length)
        except Exception as e:  # the library raises plain Exception
            raise BundleError(f"{path} is not a tokenizer ({e}); export the bundle again") from None

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """Prompts as they are, without cleaning or lower-casing. A truncated one keeps its end token."""
        ids = np.full((len(prompts), self.length), self._pad_id, np.int32)
        mask = np.zeros((len(prompts), self.length), np.int32)
        counts = []
        readable = [as_text(prompt) for prompt in prompts]
        for row, encoding in enumerate(self._tokenizer.encode_batch(readable)):
            found = encoding.ids
            counts.append(len(found))
            if len(found) > self.length:
                end = [found[-1]] if encoding.special_tokens_mask[-1] else []
                found = found[: self.length - len(end)] + end
            ids[row, : len(found)] = found
            mask[row, : len(found)] = 1
        return Encoded(ids, mask, counts)
