"""Sizes of every model, as frozen dataclasses with tables of presets.

Only what decides the shapes and the mathematics of a model is here; how it is trained is not.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

AnyConfig = TypeVar("AnyConfig", bound="JsonConfig")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST


MOST = 2**31 - 1  # of any size: what a tensor's dimension may be where it is exported
MOST_LEVELS = 16  # of a tokenizer; each halves the side of the picture


class JsonConfig:
    """A config dataclass of sizes: checked, and converted to and from a plain dict, as JSON holds it."""

    def __post_init__(self) -> None:
        """Refuse what is not a size.

        Raises:
            ValueError: naming the field, what it must be and what was found.
        """
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.type == "float":
                if not (_is_number(value) and 0 < value < math.inf):
                    raise ValueError(f"{field.name} must be a number above 0, got {value!r}")
            elif field.type == "int":
                if not _is_size(value):
                    raise ValueError(f"{field.name} must be an integer from 1 to {MOST}, got {value!r}")
            elif not (isinstance(value, tuple) and 0 < len(value) <= MOST_LEVELS and all(map(_is_size, value))):
                raise ValueError(f"{field.name} must be 1 to {MOST_LEVELS} integers from 1 to {MOST}, got {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """All fields by name; tuples become lists, so that the result equals what JSON gives back."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls: type[AnyConfig], values: dict[str, Any]) -> AnyConfig:
        """The config that `to_dict` was called on. Fields left out take their defaults.

        Raises:
            ValueError: for keys that are not fields of this config, and for values that are not sizes.
        """
        allowed = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        unknown = sorted(set(values) - set(allowed))
        if unknown:
            raise ValueError(f"unknown keys in {cls.__name__}: {', '.join(unknown)}; allowed: {', '.join(allowed)}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


@dataclass(frozen=True)
class VQConfig(JsonConfig):
    """Sizes of a VQ tokenizer (`training.models.vq.VQModel`)."""

    channels: int = 128
    """Width of the full-resolution level."""
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Width of each level over `channels`, from full resolution down; every level but the last halves the side."""
    res_blocks: int = 2
    """Residual blocks a level in the encoder; the decoder has one more."""
    z_channels: int = 256
    """Width between the convolution stacks and the projections to and from the codebook."""
    codebook_size: int = 16384
    """Number of tokens."""
    codebook_dim: int = 8
    """Width of a codebook row."""
    norm_groups: int = 32
    """Groups of every GroupNorm; divides every level's width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        uneven = [m * self.channels for m in self.channel_multipliers if m * self.channels % self.norm_groups]
        if uneven:
            raise ValueError(f"norm_groups must divide every level's width, got {self.norm_groups} for {uneven}")

    @property
    def downsampling(self) -> int:
        """Pixels a token spans along one side."""
        return 2 ** (len(self.channel_multipliers) - 1)


@dataclass(frozen=True)
class TransformerConfig(JsonConfig):
    """Sizes of the transformer (`training.models.transformer.Transformer`)."""

    dim: int
    """Width of the residual stream."""
    n_layer: int
    """Number of layers."""
    n_head: int
    """Attention heads; a head's width must be a multiple of 4 (two axes, two elements a rotation)."""
    vocab_size: int = 16384
    """Picture tokens: the VQ codebook's size."""
    block_size: int = 1024
    """Tokens of one picture: a square grid."""
    cls_token_num: int = 120
    """Text positions, padding included."""
    caption_dim: int = 2048
    """Width of the text encoder's output."""
    multiple_of: int = 256
    """The SwiGLU width is rounded up to a multiple of this."""
    norm_eps: float = 1e-5
    """Added to the mean square in every RMSNorm."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.n_head or self.head_dim % 4:
            raise ValueError(f"dim / n_head must be a multiple of 4, got {self.dim} / {self.n_head}")
        if self.grid**2 != self.block_size:
            raise ValueError(f"block_size must be a square number, got {self.block_size}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_head

    @property
    def hidden_dim(self) -> int:
        """Width inside the SwiGLU: 8/3 of `dim`, rounded up to a multiple of `multiple_of`."""
        return -(-(8 * self.dim // 3) // self.multiple_of) * self.multiple_of

    @property
    def grid(self) -> int:
        """Tokens along one side of a picture."""
        return math.isqrt(self.block_size)

    @property
    def max_positions(self) -> int:
        """Length of a whole sequence: condition picture, text, target picture."""
        return 2 * self.block_size + self.cls_token_num


VQ_PRESETS: dict[str, VQConfig] = {
    "VQ-16": VQConfig(),
    "VQ-8": VQConfig(channel_multipliers=(1, 2, 2, 4)),
    # Small enough to train on two CPU cores in half an hour; 128x128 pixels are 8x8 tokens.
    "VQ-16-demo": VQConfig(
        channels=16,
        channel_multipliers=(1, 1, 2, 4, 6),
        res_blocks=1,
        z_channels=96,
        codebook_size=2048,
        codebook_dim=8,
        norm_groups=8,
    ),
}

TRANSFORMER_PRESETS: dict[str, TransformerConfig] = {
    "GPT-B": TransformerConfig(dim=768, n_layer=12, n_head=12),
    "GPT-L": TransformerConfig(dim=1024, n_layer=24, n_head=16),
    "GPT-XL": TransformerConfig(dim=1280, n_layer=36, n_head=20),  # the released EditAR
    "GPT-XXL": TransformerConfig(dim=1536, n_layer=48, n_head=24),
    "GPT-3B": TransformerConfig(dim=3200, n_layer=24, n_head=32),
    # Fits VQ-16-demo and T5-demo.
    "GPT-demo": TransformerConfig(
        dim=192,
        n_layer=6,
        n_head=6,
        vocab_size=2048,
        block_size=64,
        cls_token_num=40,
        caption_dim=128,
        multiple_of=32,
    ),
}

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
