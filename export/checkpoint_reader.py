"""Infers the sizes of the model that weights belong to, and checks that they make it up.

`training.checkpoints` reads the files, `bundle_reader` the bundles that are sources. What comes out has the official
parameter names and the shapes of `training.models`, or a `CheckpointError` names what does not fit. Turning models into
graphs is `decoder_graph` and `module_graphs`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from export.bundle_reader import is_bundle, transformer_heads, transformer_tensors
from training.checkpoints import IGNORED, CheckpointError, listed, read_tensors
from training.config import TRANSFORMER_PRESETS, TransformerConfig, VQConfig
from training.models.transformer import Transformer
from training.models.vq import VQModel

HEADS_BY_DIM = {c.dim: c.n_head for c in TRANSFORMER_PRESETS.values()}

Config = TypeVar("Config", TransformerConfig, VQConfig)
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint(Generic[Config]):
    """The weights of one model, complete and of the right shapes.

    They stay in the file: who needs them opens it, and when the last of them is let go it is closed again, so that an
    export holds a model or the graph made of it, not both.
    """

    path: Path
    config: Config
    shapes: dict[str, torch.Size]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """As stored: of any floating type, memory-mapped where the format allows; opened anew at every call."""
        return _read(self.path)[0]

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(shape.numel() for shape in self.shapes.values())


def read_transformer(path: Path | str, heads: int | None = None) -> Checkpoint[TransformerConfig]:
    """The transformer in a weights file or an fp32 bundle.

    Args:
        heads: attention heads. They leave no trace in the shapes: without this they come from the file's own `config`,
            else from the table of published sizes by width; a bundle says them.
    """
    path = Path(path)
    tensors, config = _read(path)
    if heads is None and is_bundle(path):
        heads = transformer_heads(path)
    try:
        if config is not None:
            found = TransformerConfig.from_dict(config)
            if heads is not None:
                found = dataclasses.replace(found, n_head=heads)
        else:
            found = _infer_transformer(path, tensors, heads)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is no transformer that can be exported: {error}") from None
    return Checkpoint(path, found, _matched(path, "transformer", tensors, _empty(Transformer, found)))


def read_vq(path: Path | str) -> Checkpoint[VQConfig]:
    """The VQ tokenizer in a weights file."""
    path = Path(path)
    tensors, config = read_tensors(path)
    try:
        found = VQConfig.from_dict(config) if config is not None else _infer_vq(path, tensors)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is no VQ tokenizer that can be exported: {error}") from None
    return Checkpoint(path, found, _matched(path, "VQ tokenizer", tensors, _empty(VQModel, found)))


def read_either(path: Path | str, heads: int | None = None) -> Checkpoint[TransformerConfig] | Checkpoint[VQConfig]:
    """The transformer or VQ tokenizer in a weights file, told apart by the names of the tensors."""
    tensors, _ = _read(Path(path))
    if "tok_embeddings.weight" in tensors:
        return read_transformer(path, heads)
    if "quantize.embedding.weight" in tensors:
        return read_vq(path)
    raise CheckpointError(
        f"{path} is neither a transformer nor a VQ tokenizer; it holds {listed(tensors) or 'no tensors'}"
    )


def build_transformer(checkpoint: Checkpoint[TransformerConfig]) -> Transformer:
    """The PyTorch model with these weights, float32, for inference."""
    return _with_weights(_empty(Transformer, checkpoint.config), checkpoint.tensors)


def build_vq(checkpoint: Checkpoint[VQConfig]) -> VQModel:
    """The PyTorch model with these weights, float32, for inference."""
    return _with_weights(_empty(VQModel, checkpoint.config), checkpoint.tensors)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors by official name, and the configuration stored beside them, if any."""
    return (transformer_tensors(path), None) if is_bundle(path) else read_tensors(path)


def _infer_transformer(path: Path, tensors: Mapping[str, Tensor], heads: int | None) -> TransformerConfig:
    vocab_size, dim = _shape(path, tensors, "tok_embeddings.weight", 2)
    block_size, _ = _shape(path, tensors, "img_uncond_embedding", 2)
    text_tokens, caption_dim = _shape(path, tensors, "cls_embedding.uncond_embedding", 2)
    hidden_dim, _ = _shape(path, tensors, "layers.0.feed_forward.w1.weight", 2)
    if heads is None:
        heads = HEADS_BY_DIM.get(dim)
    if heads is None:
        known = ", ".join(f"{d}: {h}" for d, h in sorted(HEADS_BY_DIM.items()))
        raise CheckpointError(
            f"{path}: the number of attention heads cannot be read off the weights, and width {dim} is not among the "
            f"known sizes (width: heads {known}); give --heads N"
        )
    for power in range(8, -1, -1):
        config = TransformerConfig(
            dim=dim,
            n_layer=_count(tensors, "layers"),
            n_head=heads,
            vocab_size=vocab_size,
            block_size=block_size,
            cls_token_num=text_tokens,
            caption_dim=caption_dim,
            multiple_of=2**power,
        )
        if config.hidden_dim == hidden_dim:
            return config
    raise CheckpointError(f"{path}: a feed-forward width of {hidden_dim} is not 8/3 of {dim} rounded up")


def _infer_vq(path: Path, tensors: Mapping[str, Tensor]) -> VQConfig:
    channels = _shape(path, tensors, "encoder.conv_in.weight", 4)[0]
    levels = _count(tensors, "encoder.conv_blocks")
    widths = [_shape(path, tensors, f"encoder.conv_blocks.{i}.res.0.conv1.weight", 4)[0] for i in range(levels)]
    if any(width % channels for width in widths):
        raise CheckpointError(f"{path}: level widths {widths} are no multiples of the first width {channels}")
    codebook_size, codebook_dim = _shape(path, tensors, "quantize.embedding.weight", 2)
    return VQConfig(
        channels=channels,
        channel_multipliers=tuple(width // channels for width in widths),
        res_blocks=_count(tensors, "encoder.conv_blocks.0.res"),
        z_channels=_shape(path, tensors, "encoder.conv_out.weight", 4)[0],
        codebook_size=codebook_size,
        codebook_dim=codebook_dim,
    )


def _shape(path: Path, tensors: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"{path} lacks {name}; it holds {listed(tensors) or 'no tensors'}")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions:
        raise CheckpointError(f"{path}: {name} must have {dimensions} dimensions, got {list(shape)}")
    return shape


def _count(tensors: Iterable[str], prefix: str) -> int:
    """Length of the module list `prefix`, whose tensors are named prefix.0.…, prefix.1.…"""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return 1 + max((int(match[1]) for name in tensors if (match := pattern.match(name))), default=-1)


def _matched(path: Path, kind: str, tensors: dict[str, Tensor], model: nn.Module) -> dict[str, torch.Size]:
    """Shapes of `tensors`, if they are exactly the weights of `model`."""
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items() if not IGNORED.match(name)}
    wrong = [
        f"{name} has shape {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    faults = [
        f"{label}: {listed(found)}"
        for label, found in (
            ("missing", [name for name in expected if name not in tensors]),
            ("unexpected", [name for name in tensors if name not in expected]),
            ("mis-shaped", wrong),
        )
        if found
    ]
    if faults:
        raise CheckpointError(f"{path} does not fit a {kind} of its sizes; {'; '.join(faults)}")
    return {name: tensor.shape for name, tensor in tensors.items()}


def _empty(kind: type[Model], config: TransformerConfig | VQConfig) -> Model:
    """A model without memory behind its weights."""
    with torch.device("meta"):
        return kind(config)


def _with_weights(model: Model, tensors: Mapping[str, Tensor]) -> Model:
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    # What is ignored in files still has a place in the model.
    weights |= {n: torch.zeros(t.shape) for n, t in model.state_dict().items() if IGNORED.match(n)}
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)
