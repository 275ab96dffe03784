"""The text encoder: the encoder half of a T5, from the `transformers` library.

EditAR reads Flan-T5-XL; the demo has a small one of the same kind. Here is only what training and export need: build
one, load one, run one, and make ids of text for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from training.checkpoints import CheckpointError
from training.errors import first_line
from training.model_folder import check_folder

PAD = "<pad>"  # id 0

# Arguments of transformers.T5Config; the vocabulary's size comes from the tokenizer.
T5_PRESETS: dict[str, dict[str, Any]] = {
    "T5-demo": {"d_model": 128, "d_kv": 32, "d_ff": 320, "num_layers": 3, "num_heads": 4},
}


def build_text_encoder(preset: dict[str, Any], vocab_size: int) -> nn.Module:
    """A new encoder of the Flan-T5 kind (gated GELU), ids 0 and 1 being padding and end."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=vocab_size,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        **preset,
    )
    model: nn.Module = T5EncoderModel(config)
    return model


def load_text_encoder(folder: Path | str) -> nn.Module:
    """An encoder from a Hugging Face folder, float32. Only safetensors and `weights_only` files are read.

    Raises:
        CheckpointError: no weights there, or none of such a model.
    """
    from transformers import T5EncoderModel

    check_folder(Path(folder), T5EncoderModel)
    try:
        model: nn.Module = T5EncoderModel.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
    except Exception as error:  # whatever the library raises, the folder is not usable
        raise CheckpointError(
            f"{folder} cannot be loaded: {first_line(error)}; give the folder of a T5 in Hugging Face layout"
        ) from None
    return model.eval()


def encode(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Token ids and attention mask [B, T] → states [B, T, C] float32, those of the padding too."""
    states: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return states.float()


def tokenize(tokenizer: Tokenizer, texts: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Texts → ids and attention mask, int64 [B, length] each, truncated and padded."""
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=0, pad_token=PAD)
    encodings = tokenizer.encode_batch(texts)
    return torch.tensor([e.ids for e in encodings]), torch.tensor([e.attention_mask for e in encodings])
