"""Small vision encoders of DINOv2's and CLIP's architectures, from `transformers`, for the demo's distillation."""

from __future__ import annotations

from typing import Any

from torch import nn

# Arguments of transformers.Dinov2Config, or of CLIPVisionConfig where `model_type` says so.
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
    "CLIP-demo": {
        "model_type": "clip_vision_model",
        "image_size": 128,
        "patch_size": 16,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
    },
}


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
