"""Weights that a graph's numbers cannot hold are refused by name, before any graph is written.

NaN and infinities spoil every output of a model, and a value beyond what the stored type holds becomes an infinity.
Parity would find either, but only after the work, and without a name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from export.graph_writer import FLOAT16, TORCH_TYPES
from export.precision import Storage
from training.weights_file import CheckpointError, listed

TYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
FLOAT32_PARTS = ("cls_embedding.", "img_uncond_embedding")  # the prefix, which is float32 in every precision


def largest_values(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest magnitude in every tensor, NaN where it holds one; one tensor is read at a time."""
    found = {}
    for name, tensor in tensors.items():
        values = tensor if tensor.itemsize > 1 else tensor.float()  # PyTorch compares no numbers of 8 bits
        least, most = (float(value) for value in torch.aminmax(values))
        found[name] = max(-least, most) if least == least else least
    return found


def require_range(path: Path, largest: Mapping[str, float], stored_as: Callable[[str], torch.dtype]) -> None:
    """Make sure that a model's weights are finite, and stay so when they are stored.

    Args:
        path: where they come from, for messages.
        largest: of `largest_values`.
        stored_as: the type that the graph holds a weight in, by its name.

    Raises:
        CheckpointError: naming the weights that are not.
    """
    if broken := [name for name, value in largest.items() if value != value or value == float("inf")]:
        raise CheckpointError(f"{path} holds NaN or infinity in {listed(broken)}; its training broke down")
    for name, value in largest.items():
        dtype = stored_as(name)
        if not torch.tensor(value, dtype=torch.float64).to(dtype).isfinite():
            instead = "" if dtype == torch.float32 else "; take --precision fp32"
            raise CheckpointError(
                f"{path}: {name} holds {value:g}, beyond the {torch.finfo(dtype).max:g} that {TYPE_NAMES[dtype]} "
                f"stores{instead}"
            )


def decoder_types(storage: Storage) -> Callable[[str], torch.dtype]:
    """In which type a transformer's weights are stored, or multiplied where they are integers, by name."""
    numbers = storage.numbers
    products = TORCH_TYPES[numbers.stored]
    embedding = TORCH_TYPES[FLOAT16] if numbers.blocks else products

    def stored_as(name: str) -> torch.dtype:
        if name.startswith(FLOAT32_PARTS) or name.endswith("norm.weight"):
            return torch.float32
        return embedding if name == "tok_embeddings.weight" else products

    return stored_as


def text_types(storage: Storage) -> Callable[[str], torch.dtype]:
    """In which type a text encoder's weights are stored, by name (see `module_graphs.half_copy`)."""
    halved = storage.text_precision == "fp16"
    return lambda name: torch.float16 if halved and not name.endswith(".wo.weight") else torch.float32
