"""Graphs of feed-forward parts, traced once for all tests that export the same model.

PyTorch takes seconds to trace a model however small it is, and the tests export a few of them many times over. A trace
is kept by all that it follows from: the module's structure, settings and weights, and the inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import onnx_ir as ir
import torch
from torch import Tensor, nn

from export import module_graphs


@cache
def share_traces() -> None:
    """From now on, in this process."""
    trace, kept = module_graphs._traced, dict[str, ir.Model]()

    def traced(module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str]) -> ir.Model:
        key = _digest(module, inputs, outputs)
        if key not in kept:
            kept[key] = trace(module, inputs, outputs)
        return kept[key].clone()  # what is written of it is edited first

    module_graphs._traced = traced


def _digest(module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str]) -> str:
    found = hashlib.sha256(repr((module, {n: (t.shape, t.dtype) for n, t in inputs.items()}, list(outputs))).encode())
    for name, part in module.named_modules():
        settings = {k: v for k, v in vars(part).items() if isinstance(v, bool | int | float | str) and k != "training"}
        found.update(repr((name, type(part), settings)).encode())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        found.update(repr((name, tensor.shape, tensor.dtype)).encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
