"""A finished bundle as a source: the weights that lie in its transformer's graphs, by their official names.

Whoever has an fp32 bundle needs no checkpoint to store it in another way. Weights of matrix products lie transposed in
the graphs; which these are is read off the graph, not from a list. Graphs that hold less than fp32 are refused: what
rounding took away does not come back.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from editar_rt import names
from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.manifest import MANIFEST_NAME
from editar_rt.errors import MissingPartError
from training.weights_file import CheckpointError

# Beside them lie constants of the graphs' own: zero, one, rotary_cos.
WEIGHT = re.compile(r"(.+\.weight|.*uncond_embedding)$")
PARTS = (names.PREFIX_GRAPH, names.DECODER)


def is_bundle(path: Path) -> bool:
    """Whether a path is a bundle's folder."""
    return (path / MANIFEST_NAME).is_file()


def transformer_heads(path: Path) -> int | None:
    """Attention heads of a bundle's transformer."""
    return Bundle.open(path).manifest.model.heads


def transformer_tensors(path: Path) -> dict[str, Tensor]:
    """The transformer's weights in a bundle, float32, mapped from its files.

    Raises:
        MissingPartError: a bundle without a transformer.
        CheckpointError: one that holds its weights in less than fp32.
        BundleError: no bundle, or a damaged one.
    """
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    if missing := [part for part in PARTS if part not in manifest.parts]:
        raise MissingPartError(f"the bundle {path} has no part {missing[0]}, so no transformer to take weights from")
    if manifest.precision != "fp32":
        raise CheckpointError(
            f"the bundle {path} holds its weights in {manifest.precision}; only an fp32 bundle still has them all: "
            "take that, or the checkpoint"
        )
    return {name: tensor for part in PARTS for name, tensor in _weights(bundle.part_path(part)).items()}


def _weights(path: Path) -> dict[str, Tensor]:
    """Every float32 constant of a graph that has a weight's name."""
    found = {}
    for name, value in ir.load(path).graph.initializers.items():
        if not WEIGHT.match(name) or value.dtype != ir.DataType.FLOAT:
            continue
        tensor = torch.from_numpy(_values(value.const_value))
        transposed = any(use.node.op_type == "MatMul" and use.idx == 1 for use in value.uses())
        found[name] = tensor.t() if transposed else tensor
    return found


def _values(stored: ir.TensorProtocol | None) -> np.ndarray:
    """An initializer's values in memory that may be written to, as PyTorch wants: the file's pages, copied on write."""
    assert stored is not None  # an initializer has values
    if not isinstance(stored, ir.ExternalTensor):
        return np.array(stored.numpy())
    shape = tuple(stored.shape.numpy())
    return np.memmap(stored.path, stored.dtype.numpy(), mode="c", offset=stored.offset or 0, shape=shape)
