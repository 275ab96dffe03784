"""Reads a text encoder and its tokenizer from a Hugging Face T5 folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from torch import nn

from export.weight_ranges import largest_values
from training.errors import first_line
from training.model_folder import check_folder, read_json
from training.weights_file import CheckpointError, listed


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder in its folder, and its tokenizer."""

    folder: Path
    dim: int
    """Width of the states."""
    parameters: int
    """Number of weights."""
    tokenizer: Tokenizer
    """Adds the end token; neither pads nor truncates."""
    largest: Mapping[str, float]
    """The largest magnitude of every weight, by name."""

    def build(self) -> nn.Module:
        """transformers.T5EncoderModel, float32; loaded at every call, so that it can be released after use."""
        return _read_model(self.folder)


def read_text_encoder(folder: Path | str) -> TextEncoder:
    """Read the encoder of a T5 folder (safetensors or .bin, single file or sharded) and its tokenizer.

    Raises:
        CheckpointError: the folder is missing, is another kind of model, lacks weights, or its tokenizer does not fit.
    """
    folder = Path(folder)
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "t5":
        raise CheckpointError(f"{folder} contains a model of type {kind!r}; the text encoder must be a T5")
    check_folder(folder, transformers.T5EncoderModel)
    model = _read_model(folder)
    tokenizer = _read_tokenizer(folder)
    rows = int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    if tokenizer.get_vocab_size() > rows:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.get_vocab_size()} tokens, but the encoder embeds only {rows}"
        )
    end = model.config.eos_token_id  # type: ignore[union-attr]
    if tokenizer.encode("a").ids[-1:] != [end]:
        raise CheckpointError(f"{folder}: the tokenizer does not end texts with the end token, id {end}")
    parameters = sum(p.numel() for p in model.parameters())
    width = int(model.config.d_model)  # type: ignore[union-attr, arg-type]
    return TextEncoder(folder, width, parameters, tokenizer, largest_values(dict(model.named_parameters())))


def _read_model(folder: Path) -> nn.Module:
    transformers.utils.logging.disable_progress_bar()
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # its report on weights becomes an error below
    try:
        found: Any = transformers.T5EncoderModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # whatever the library raises, the folder is not usable
        raise CheckpointError(f"{folder}: the text encoder cannot be loaded: {first_line(error)}") from None
    finally:
        transformers.utils.logging.set_verbosity(level)
    encoder, loading = found
    if missing := sorted(loading["missing_keys"]):
        raise CheckpointError(f"{folder} lacks weights of the text encoder: {listed(missing)}")
    return encoder.eval().requires_grad_(False)


def _read_tokenizer(folder: Path) -> Tokenizer:
    whole, sentencepiece = folder / "tokenizer.json", folder / "spiece.model"
    if not whole.is_file() and not sentencepiece.is_file():
        raise CheckpointError(f"{folder} contains no tokenizer: neither {whole.name} nor {sentencepiece.name}")
    try:
        if whole.is_file():
            tokenizer = Tokenizer.from_file(str(whole))
        else:
            fast = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            tokenizer = Tokenizer.from_str(fast.backend_tokenizer.to_str())
    except Exception as error:  # both libraries raise plain Exception
        raise CheckpointError(f"{folder}: the tokenizer cannot be read: {first_line(error)}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
