"""Models from weights files: a VQ tokenizer to encode with, a trained transformer, or a beginning for one.

`weights_file` reads the files, `sizes` reads the models' sizes off their tensors.
"""

from __future__ import annotations

from pathlib import Path

import torch

from training.config import VQ_PRESETS, TransformerConfig, VQConfig
from training.models.transformer import Transformer
from training.models.vq import VQModel
from training.sizes import stored_config, transformer_config, vq_config
from training.weights_file import IGNORED, CheckpointError, listed, read_weights, require_numbers


def open_vq(path: Path, preset: str | None = None) -> VQModel:
    """A VQ tokenizer ready to encode: one of ours, which says its sizes, or an official one.

    Its memory is channels-last, the fast one on a CPU.

    Args:
        preset: sizes of a file that does not say them; VQ-16 when None.

    Raises:
        CheckpointError: no tokenizer, or one of other sizes.
    """
    file = read_weights(path)
    require_numbers(path, file.tensors)
    stored = stored_config(VQConfig, path, file.config, file.notes)
    name = preset or "VQ-16"
    told_by = "its config says" if stored else f"{name} has; choose its --vq-preset"
    model = VQModel(vq_config(path, file.tensors, stored or VQ_PRESETS[name], told_by))
    own = {name: tensor.shape for name, tensor in model.state_dict().items() if not IGNORED.match(name)}
    if own != {name: tensor.shape for name, tensor in file.tensors.items()}:
        raise CheckpointError(f"{path} is not a whole VQ tokenizer, or holds more than one")
    model.load_state_dict(file.tensors, strict=False)
    return model.to(memory_format=torch.channels_last).eval()


def load_transformer(path: Path | str) -> Transformer:
    """A transformer written by `training.train_transformer`, in evaluation mode; averaged weights where it has them."""
    path = Path(path)
    file = read_weights(path)
    require_numbers(path, file.tensors)
    stored = stored_config(TransformerConfig, path, file.config, file.notes)
    model = Transformer(transformer_config(path, file.tensors, stored))
    model.load_state_dict(file.tensors)
    return model.eval()


def initialize_from(model: Transformer, path: Path) -> list[str]:
    """Start a transformer from other weights of its size, such as LlamaGen's for text to image.

    Returns:
        names of the parameters that the file lacks; they stay as they were.

    Raises:
        CheckpointError: a file that cannot be read, that holds no transformer, or one of other sizes.
    """
    tensors = read_weights(path).tensors
    own = model.state_dict()
    shared = {name: tensor for name, tensor in tensors.items() if name in own}
    if "tok_embeddings.weight" not in shared:
        raise CheckpointError(f"{path} holds no transformer; it holds {listed(tensors) or 'no tensors'}")
    wrong = [
        f"{name} has shape {list(tensor.shape)} instead of {list(own[name].shape)}"
        for name, tensor in shared.items()
        if tensor.shape != own[name].shape
    ]
    if wrong:
        raise CheckpointError(f"{path} does not fit this transformer: {listed(wrong)}; choose the preset of its size")
    require_numbers(path, shared)
    model.load_state_dict(shared, strict=False)
    return [name for name in own if name not in shared]
