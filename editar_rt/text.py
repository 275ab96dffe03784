"""Prompts to token ids, through the `tokenizers` library and the bundle's `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from editar_rt.errors import BundleError


class Encoded(NamedTuple):
    """Token ids of prompts, padded and truncated."""

    ids: NDArray[np.int32]  # [B, T]
    mask: NDArray[np.int32]  # [B, T], 1 for text and 0 for padding
    tokens: list[int]  # how many tokens each prompt has before truncation, its end token included


class TextTokenizer:
    """The tokenizer of a bundle.

    Args:
        path: `tokenizer.json`; its post-processor adds the end token.
        length: tokens of every encoded prompt.
    """

    def __init__(self, path: Path, length: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as e:  # the library raises plain Exception
            raise BundleError(f"{path} is not a tokenizer ({e}); export the bundle again") from None
        self.length = length
        pad = self._tokenizer.token_to_id("<pad>")
        self._pad_id = 0 if pad is None else pad
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, prompts: list[str]) -> Encoded:
        """Prompts as they are, to ids. A truncated one keeps its end token."""
        ids = np.full((len(prompts), self.length), self._pad_id, np.int32)
        mask = np.zeros((len(prompts), self.length), np.int32)
        counts = []
        for row, encoding in enumerate(self._tokenizer.encode_batch(prompts)):
            found = encoding.ids
            counts.append(len(found))
            if len(found) > self.length:
                found = [*found[: self.length - 1], found[-1]]
            ids[row, : len(found)] = found
            mask[row, : len(found)] = 1
        return Encoded(ids, mask, counts)
