"""Reading our own checkpoints back into models. Nothing pickled is ever executed (`weights_only`)."""

from __future__ import annotations

from pathlib import Path

import torch

from training.config import TransformerConfig, VQConfig
from training.models.transformer import Transformer
from training.models.vq import VQModel


def load_vq(path: Path | str) -> VQModel:
    """A tokenizer written by `training.train_vq`, ready to encode, in channels-last memory (the fast one on CPU)."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    model = VQModel(VQConfig.from_dict(state["config"]))
    model.load_state_dict(state["model"])
    return model.to(memory_format=torch.channels_last).eval()


def load_transformer(path: Path | str) -> Transformer:
    """A transformer written by `training.train_transformer`, in evaluation mode."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    model = Transformer(TransformerConfig.from_dict(state["config"]))
    model.load_state_dict(state["model"])
    return model.eval()
