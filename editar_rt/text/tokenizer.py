"""Prompts to token ids, with the `tokenizers` library and the bundle's `tokenizer.json`."""

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
    tokens: list[int]  # number of tokens of each prompt before truncation, including its end token

    @property
    def truncated(self) -> list[bool]:
        """Whether each prompt lost its end."""
        return [count > self.ids.shape[1] for count in self.tokens]


class TextTokenizer:
    """The tokenizer of a bundle.

    Args:
        tokenizer: its post-processor must add the end token.
        length: T, the number of tokens of every encoded prompt.
    """

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self._tokenizer = tokenizer
        self.length = length
        padding = self._tokenizer.padding or {}
        pad = padding.get("pad_id", self._tokenizer.token_to_id("<pad>"))
        self._pad_id = 0 if pad is None else int(pad)  # T5's
        # Both are done here, because the file's settings may differ from those of the exported graph.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @classmethod
    def read(cls, path: Path, length: int) -> TextTokenizer:
        """From a `tokenizer.json`.

        Raises:
            BundleError: the file is missing or is not a tokenizer.
        """
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_file(str(path)), length)
        except Exception as e:  # the library raises plain Exception
            raise BundleError(f"{path} is not a tokenizer ({e}); export the bundle again") from None

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """Encode prompts as they are, without cleaning or lower-casing. A truncated prompt keeps its end token."""
        ids = np.full((len(prompts), self.length), self._pad_id, np.int32)
        mask = np.zeros((len(prompts), self.length), np.int32)
        counts = []
        readable = [as_text(prompt) for prompt in prompts]
        for row, encoding in enumerate(self._tokenizer.encode_batch(readable)):
            token_ids = encoding.ids
            counts.append(len(token_ids))
            if len(token_ids) > self.length:
                end = [token_ids[-1]] if encoding.special_tokens_mask[-1] else []
                token_ids = token_ids[: self.length - len(end)] + end
            ids[row, : len(token_ids)] = token_ids
            mask[row, : len(token_ids)] = 1
        return Encoded(ids, mask, counts)
