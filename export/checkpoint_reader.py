"""Checks that weights are those of a complete model.

`training.weights_file` reads checkpoints, `bundle_reader` reads bundles, and `training.sizes` infers the sizes. The
result has the official parameter names and the shapes of `training.models`; otherwise a `CheckpointError` names the
mismatches. `decoder_graph` and `module_graphs` turn models into graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from export.bundle_reader import is_bundle, transformer_tensors
from training.config import TransformerConfig, VQConfig
from training.models.transformer import Transformer
from training.models.vq import VQModel
from training.sizes import stored_config, transformer_config, vq_config
from training.weights_file import IGNORED, CheckpointError, WeightsFile, listed, read_weights, require_numbers

Config = TypeVar("Config", TransformerConfig, VQConfig)
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint(Generic[Config]):
    """The weights of one model, complete and with the correct shapes.

    They stay in the file, which is opened on demand and closed when the last tensor is released. An export thus has
    either a model or its graph in memory, not both.
    """

    path: Path
    config: Config
    shapes: dict[str, torch.Size]
    weights: str | None = None
    """The weights to use of a file that also contains a moving average; see `weights_file.read_weights`."""
    notes: tuple[str, ...] = ()
    """Choices made and tensors skipped while reading, one sentence each."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The weights as stored, of any floating type, memory-mapped if the format allows; reopened at every call."""
        return _read(self.path, self.weights)[0].tensors

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(shape.numel() for shape in self.shapes.values())


def read_transformer(
    path: Path | str, heads: int | None = None, weights: str | None = None
) -> Checkpoint[TransformerConfig]:
    """Read the transformer of a weights file or an fp32 bundle.

    Args:
        heads: number of attention heads, which the shapes do not show. None takes it from the bundle, from the file's
            own `config`, or from the table of published sizes by width.
        weights: `ema` or `model`, for a file that contains both; None means the moving average.

    Raises:
        CheckpointError: the file is not a transformer or cannot be read.
    """
    path = Path(path)
    file, own_heads = _read(path, weights)
    return _transformer(path, file, own_heads if heads is None else heads, weights)


def read_vq(path: Path | str, weights: str | None = None) -> Checkpoint[VQConfig]:
    """Read the VQ tokenizer of a weights file; `weights` as in `read_transformer`."""
    path = Path(path)
    return _vq(path, read_weights(path, weights), weights)


def read_either(
    path: Path | str, heads: int | None = None, weights: str | None = None
) -> Checkpoint[TransformerConfig] | Checkpoint[VQConfig]:
    """Read the transformer or VQ tokenizer of a weights file, distinguished by the names of the tensors."""
    path = Path(path)
    file, own_heads = _read(path, weights)
    if "tok_embeddings.weight" in file.tensors:
        return _transformer(path, file, own_heads if heads is None else heads, weights)
    if "quantize.embedding.weight" in file.tensors:
        return _vq(path, file, weights)
    raise CheckpointError(
        f"{path} is neither a transformer nor a VQ tokenizer; it contains {listed(file.tensors) or 'no tensors'}"
    )


def build_transformer(checkpoint: Checkpoint[TransformerConfig]) -> Transformer:
    """The PyTorch model with these weights, float32, for inference."""
    return _with_weights(_empty(Transformer, checkpoint.config), checkpoint.tensors)


def build_vq(checkpoint: Checkpoint[VQConfig]) -> VQModel:
    """The PyTorch model with these weights, float32, for inference."""
    return _with_weights(_empty(VQModel, checkpoint.config), checkpoint.tensors)


def _read(path: Path, weights: str | None) -> tuple[WeightsFile, int | None]:
    """A weights file or a bundle's transformer, and the number of heads that a bundle states."""
    if not is_bundle(path):
        return read_weights(path, weights), None
    tensors, heads = transformer_tensors(path)
    return WeightsFile(tensors), heads


def _transformer(
    path: Path, file: WeightsFile, heads: int | None, weights: str | None
) -> Checkpoint[TransformerConfig]:
    stored = stored_config(TransformerConfig, path, file.config, file.notes)
    config = transformer_config(path, file.tensors, stored, heads)
    shapes = _matched(path, "transformer", file.tensors, _empty(Transformer, config))
    return Checkpoint(path, config, shapes, weights, tuple(file.notes))


def _vq(path: Path, file: WeightsFile, weights: str | None) -> Checkpoint[VQConfig]:
    config = vq_config(path, file.tensors, stored_config(VQConfig, path, file.config, file.notes))
    shapes = _matched(path, "VQ tokenizer", file.tensors, _empty(VQModel, config))
    return Checkpoint(path, config, shapes, weights, tuple(file.notes))


def _matched(path: Path, kind: str, tensors: dict[str, Tensor], model: nn.Module) -> dict[str, torch.Size]:
    """The shapes of `tensors`, which must be exactly the weights of `model`."""
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
    require_numbers(path, tensors)
    return {name: tensor.shape for name, tensor in tensors.items()}


def _empty(kind: type[Model], config: TransformerConfig | VQConfig) -> Model:
    """A model whose weights have no memory."""
    with torch.device("meta"):
        return kind(config)


def _with_weights(model: Model, tensors: Mapping[str, Tensor]) -> Model:
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    # Weights that are ignored in files still exist in the model.
    weights |= {n: torch.zeros(t.shape) for n, t in model.state_dict().items() if IGNORED.match(n)}
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)
