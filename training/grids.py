"""Grids of sample pictures, to look at while training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.batches import Batch
from training.models.transformer import Transformer
from training.models.vq import VQModel


def save_grid(rows: list[Tensor], path: Path) -> NDArray[np.uint8]:
    """Rows of pictures [B, 3, H, W] in [-1, 1] as a PNG, written beside and renamed; returns it, uint8 [H', W', 3]."""
    whole = torch.cat([torch.cat(list(row.clamp(-1, 1)), dim=2) for row in rows], dim=1)
    picture = ((whole + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    partial = path.with_name(path.name + ".partial")
    Image.fromarray(picture).save(partial, format="PNG")
    partial.replace(path)
    return picture


@torch.no_grad()
def edit_grid(model: Transformer, vq: VQModel, batch: Batch, path: Path) -> NDArray[np.uint8]:
    """Conditions above what the model makes of them (guidance 3, seed 0) above the targets, all through the tokenizer.

    Args:
        batch: P pictures; the first example on each is shown.
    """
    assert batch.text_states is not None
    each = len(batch.target) // len(batch.condition)
    generator = torch.Generator(batch.condition.device).manual_seed(0)
    states = batch.text_states[::each].float()
    made = model.generate(states, batch.condition, top_k=min(1000, model.config.vocab_size), generator=generator)
    return save_grid([vq.decode(tokens).float() for tokens in (batch.condition, made, batch.target[::each])], path)
