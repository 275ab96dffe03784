"""Rejects weights that a graph's types cannot represent, by name, before any graph is written.

NaN and infinities spoil every output of a model, and a value beyond the range of the stored type becomes an infinity.
The parity check would detect both, but only after the work, and without the weight's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from export.graph_writer import FLOAT16, TORCH_TYPES
from export.module_graphs import FLOAT32_WEIGHTS
from export.precision import Storage
from training.weights_file import CheckpointError, listed

TYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
FLOAT32_PARTS = ("cls_embedding.", "img_uncond_embedding")  # the prefix, which is float32 in every precision


def largest_values(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest magnitude of every tensor, NaN if it contains one. Tensors are read one at a time."""
    largest = {}
    for name, tensor in tensors.items():
        values = tensor if tensor.itemsize > 1 else tensor.float()  # PyTorch cannot compare 8-bit floats
        least, most = (float(value) for value in torch.aminmax(values.detach()))
        largest[name] = max(-least, most) if least == least else least
    return largest


def require_range(path: Path, largest: Mapping[str, float], stored_as: Callable[[str], torch.dtype]) -> None:
    """Check that a model's weights are finite, and remain so in the stored type.

    Args:
        path: the file of the weights, for messages.
        largest: result of `largest_values`.
        stored_as: returns the stored type of a weight, by name.

    Raises:
        CheckpointError: with the names of the weights that are not.
    """
    if broken := [name for name, value in largest.items() if value != value or value == float("inf")]:
        raise CheckpointError(f"{path} contains NaN or infinity in {listed(broken)}; its training failed")
    for name, value in largest.items():
        dtype = stored_as(name)
        if not torch.tensor(value, dtype=torch.float64).to(dtype).isfinite():
            instead = "" if dtype == torch.float32 else "; use --precision fp32"
            raise CheckpointError(
                f"{path}: {name} contains {value:g}, but the largest {TYPE_NAMES[dtype]} is "
                f"{torch.finfo(dtype).max:g}{instead}"
            )


def decoder_types(storage: Storage) -> Callable[[str], torch.dtype]:
    """Returns the type of a transformer's weight by name; for integer weights, the type of the matmul."""
    numbers = storage.numbers
    matmuls = TORCH_TYPES[numbers.stored]
    embedding = TORCH_TYPES[FLOAT16] if numbers.blocks else matmuls

    def stored_as(name: str) -> torch.dtype:
        if name.startswith(FLOAT32_PARTS) or name.endswith("norm.weight"):
            return torch.float32
        return embedding if name == "tok_embeddings.weight" else matmuls

    return stored_as


def text_types(storage: Storage) -> Callable[[str], torch.dtype]:
    """Returns the type of a text encoder's weight by name (see `module_graphs.half_copy`)."""
    halved = storage.text_precision == "fp16"
    return lambda name: torch.float16 if halved and not name.endswith(FLOAT32_WEIGHTS) else torch.float32
