"""The sizes of a model, read off the names and shapes of its weights.

Shapes are what a file holds; a configuration beside them only says what they do not tell, such as the number of
attention heads, and is refused where it claims anything else. So no file makes a model larger than itself.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from training.config import TRANSFORMER_PRESETS, AnyConfig, TransformerConfig, VQConfig
from training.weights_file import CheckpointError, listed

HEADS_BY_DIM = {c.dim: c.n_head for c in TRANSFORMER_PRESETS.values()}


def transformer_config(
    path: Path, tensors: Mapping[str, Tensor], stored: TransformerConfig | None = None, heads: int | None = None
) -> TransformerConfig:
    """The sizes of a transformer.

    Args:
        stored: the configuration beside the weights.
        heads: attention heads, which shapes do not tell; else `stored`'s, else those of the published width.

    Raises:
        CheckpointError: no transformer, one of sizes that cannot be, or a configuration of another one.
    """
    vocab_size, dim = _shape(path, tensors, "tok_embeddings.weight", 2)
    block_size, _ = _shape(path, tensors, "img_uncond_embedding", 2)
    text_tokens, caption_dim = _shape(path, tensors, "cls_embedding.uncond_embedding", 2)
    hidden_dim, _ = _shape(path, tensors, "layers.0.feed_forward.w1.weight", 2)
    told = {
        "dim": dim,
        "n_layer": _count(path, tensors, "layers"),
        "vocab_size": vocab_size,
        "block_size": block_size,
        "cls_token_num": text_tokens,
        "caption_dim": caption_dim,
    }
    try:
        if stored is not None:
            _require_equal(path, stored, told | {"hidden_dim": hidden_dim})
            return stored if heads is None else dataclasses.replace(stored, n_head=heads)
        heads = heads or HEADS_BY_DIM.get(dim)
        if heads is None:
            known = ", ".join(f"{d}: {h}" for d, h in sorted(HEADS_BY_DIM.items()))
            raise CheckpointError(
                f"{path}: the number of attention heads cannot be read off the weights, and width {dim} is not among "
                f"the known sizes (width: heads {known}); give --heads N"
            )
        for power in range(8, -1, -1):
            config = TransformerConfig(n_head=heads, multiple_of=2**power, **told)
            if config.hidden_dim == hidden_dim:
                return config
    except ValueError as error:
        raise CheckpointError(f"{path} is not a transformer that can be exported: {error}") from None
    raise CheckpointError(f"{path}: a feed-forward width of {hidden_dim} is not 8/3 of {dim} rounded up")


def vq_config(
    path: Path, tensors: Mapping[str, Tensor], stored: VQConfig | None = None, told_by: str = "its config says"
) -> VQConfig:
    """The sizes of a VQ tokenizer.

    Args:
        stored: the configuration beside the weights.
        told_by: where that comes from, for messages.

    Raises:
        CheckpointError: no VQ tokenizer, one of sizes that cannot be, or a configuration of another one.
    """
    channels = _shape(path, tensors, "encoder.conv_in.weight", 4)[0]
    levels = _count(path, tensors, "encoder.conv_blocks")
    widths = [_shape(path, tensors, f"encoder.conv_blocks.{i}.res.0.conv1.weight", 4)[0] for i in range(levels)]
    if any(width % channels for width in widths):
        raise CheckpointError(f"{path}: level widths {widths} are not multiples of the first width {channels}")
    codebook_size, codebook_dim = _shape(path, tensors, "quantize.embedding.weight", 2)
    told: dict[str, Any] = {
        "channels": channels,
        "channel_multipliers": tuple(width // channels for width in widths),
        "res_blocks": _count(path, tensors, "encoder.conv_blocks.0.res"),
        "z_channels": _shape(path, tensors, "encoder.conv_out.weight", 4)[0],
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
    }
    if stored is not None:
        _require_equal(path, stored, told, told_by)
        return stored
    try:
        return VQConfig(**told)
    except ValueError as error:
        raise CheckpointError(f"{path} is not a VQ tokenizer that can be exported: {error}") from None


def stored_config(
    kind: type[AnyConfig], path: Path, config: dict[str, Any] | None, notes: list[str]
) -> AnyConfig | None:
    """The configuration beside weights, where it is one of ours; another program's is passed over, and noted.

    Raises:
        CheckpointError: one of ours with values that cannot be.
    """
    if not config:
        return None
    allowed = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not config.keys() <= allowed or not all(_is_plain(value) for value in config.values()):
        notes.append(f"{path}: config is another program's and was passed over; sizes are read off the weights")
        return None
    try:
        return kind.from_dict(config)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: its config cannot be: {error}") from None


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(entry, int | float | str) for entry in value)
    return isinstance(value, int | float | str)


def _require_equal(path: Path, stored: object, told: Mapping[str, Any], told_by: str = "its config says") -> None:
    differ = [
        f"{name} {v} instead of {getattr(stored, name)}" for name, v in told.items() if getattr(stored, name) != v
    ]
    if differ:
        raise CheckpointError(f"{path} holds a model of other sizes than {told_by}: {', '.join(differ)}")


def _shape(path: Path, tensors: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"{path} lacks {name}; it holds {listed(tensors) or 'no tensors'}")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise CheckpointError(f"{path}: {name} must have {dimensions} dimensions, none of them 0, got {list(shape)}")
    return shape


def _count(path: Path, tensors: Iterable[str], prefix: str) -> int:
    """Length of the module list `prefix`, whose tensors are named prefix.0.…, prefix.1.…"""
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,9})\.")
    numbers = {int(match[1]) for name in tensors if (match := pattern.match(name))}
    if lacking := set(range(len(numbers))) - numbers:
        raise CheckpointError(f"{path} holds {prefix} up to number {max(numbers)} and lacks number {min(lacking)}")
    return len(numbers)
