"""A small vision encoder of DINOv2's architecture, from the `transformers` library, for the demo's distillation."""

from __future__ import annotations

from typing import Any

from torch import nn

# Arguments of transformers.Dinov2Config.
VISION_PRESETS: dict[str, dict[str, Any]] = {
    # One patch a token of the demo's pictures.
    "DINOv2-demo": {
        "image_size": 128,
        "patch_size": 16,
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "mlp_ratio": 2,
    },
}


def build_vision_encoder(preset: dict[str, Any]) -> nn.Module:
    """A new encoder: pictures [B, 3, H, W] → `last_hidden_state`, a class token and one state a patch [B, 1 + P, C]."""
    from transformers import Dinov2Config, Dinov2Model

    model: nn.Module = Dinov2Model(Dinov2Config(**preset))
    return model
