"""Reads a transformer's weights from the graphs of a bundle, by their official names.

An fp32 bundle can be converted without its checkpoints. The weights of matmuls are stored transposed; the graph itself
tells which. Bundles of a lower precision are rejected, because rounding cannot be undone.
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

# Other constants belong to the graph: zero, one, rotary_cos.
WEIGHT = re.compile(r"(.+\.weight|.*uncond_embedding)$")
PARTS = (names.PREFIX_GRAPH, names.DECODER)


def is_bundle(path: Path) -> bool:
    """Whether a path is a bundle's folder."""
    return (path / MANIFEST_NAME).is_file()


def transformer_tensors(path: Path) -> tuple[dict[str, Tensor], int | None]:
    """The transformer's weights in a bundle, float32, mapped from its files, and its number of attention heads.

    Raises:
        MissingPartError: the bundle has no transformer.
        CheckpointError: the weights are stored in less than fp32.
        BundleError: the path is not a bundle, or the bundle is damaged.
    """
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    if missing := [part for part in PARTS if part not in manifest.parts]:
        raise MissingPartError(f"the bundle {path} has no part {missing[0]}, so it has no transformer to read")
    if manifest.precision != "fp32":
        raise CheckpointError(
            f"the bundle {path} stores its weights in {manifest.precision}; only an fp32 bundle can be converted: use "
            "one, or the checkpoint"
        )
    tensors = {name: tensor for part in PARTS for name, tensor in _weights(bundle.part_path(part)).items()}
    return tensors, manifest.model.heads


def _weights(path: Path) -> dict[str, Tensor]:
    """Every float32 constant of a graph with the name of a weight."""
    weights = {}
    for name, value in ir.load(path).graph.initializers.items():
        if not WEIGHT.match(name) or value.dtype != ir.DataType.FLOAT:
            continue
        tensor = torch.from_numpy(_values(value.const_value))
        transposed = any(use.node.op_type == "MatMul" and use.idx == 1 for use in value.uses())
        weights[name] = tensor.t() if transposed else tensor
    return weights


def _values(stored: ir.TensorProtocol | None) -> np.ndarray:
    """An initializer's values in writable memory, as PyTorch requires: the file's pages, mapped copy-on-write."""
    assert stored is not None  # an initializer has values
    if not isinstance(stored, ir.ExternalTensor):
        return np.array(stored.numpy())
    shape = tuple(stored.shape.numpy())
    return np.memmap(stored.path, stored.dtype.numpy(), mode="c", offset=stored.offset or 0, shape=shape)
