"""Small vision encoders of DINOv2's and CLIP's architectures, from `transformers`, for the demo's distillation."""

from __future__ import annotations

from typing import Any

from torch import nn


def build_vision_encoder(preset: dict[str, Any]) -> nn.Module:
    """A new encoder: pictures [B, 3, H, W] → `last_hidden_state`, a class token and one state a patch [B, 1 + P, C]."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model

    sizes = {name: value for name, value in preset.items() if name != "model_type"}
    if learns_from_captions(preset):
        return CLIPVisionModel(CLIPVisionConfig(**sizes))
    return Dinov2Model(Dinov2Config(**sizes))


def learns_from_captions(preset: dict[str, Any]) -> bool:
    """Whether it is CLIP, which learns which caption belongs to a picture."""
    return preset.get("model_type") == "clip_vision_model"
