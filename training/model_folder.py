"""Model folders in Hugging Face layout, looked through before the library builds what their config.json claims.

The library makes a model of any size that a configuration names, and fills what the weights lack at random. Here the
claims are held against the weights that lie in the folder.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from training.errors import first_line
from training.weights_file import CheckpointError, read_weights

MOST_BYTES = 1 << 20  # of a config.json; an index of shards names every tensor and may be larger
MOST_INDEX_BYTES = 64 << 20
LAYERS = re.compile(r"layer|block|depth|stage")  # in the names of fields that count modules
FEW_MODULES, FEW_VALUES = 1000, 100_000_000  # are built whatever the folder holds: they take a second and 400 MB
NAMES = ("model.safetensors", "pytorch_model.bin")


def read_json(path: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """A JSON object from a file of a folder.

    Raises:
        CheckpointError: no such file, one that is too large, or one that holds something else.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path.parent} is not a Hugging Face folder: it holds no readable {path.name}")
        with path.open("rb") as file:
            content = file.read(most + 1)
        found = json.loads(content) if len(content) <= most else None
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path.parent} is not a Hugging Face folder: it holds no readable {path.name}")
    return found


def check_folder(folder: Path, kind: Any) -> None:
    """Make sure that a folder's weights are of about the size that its configuration claims.

    Args:
        kind: the class of `transformers` that is to be made of it.

    Raises:
        CheckpointError: no configuration, a damaged file of weights, or a configuration that claims far more.
    """
    config = read_json(folder / "config.json")
    files = list(_weights_files(folder))
    if not files:
        return  # the library says so
    tensors = [tensor for path in files for tensor in read_weights(path).tensors.values()]
    for name, value in _integers(config):
        if LAYERS.search(name) and value > max(len(tensors), FEW_MODULES):
            raise CheckpointError(
                f"{folder} cannot be loaded: its config.json claims {name} = {value}, and its weights are "
                f"{len(tensors)} tensors"
            )
    claimed, held = _parameters(folder, kind), sum(tensor.numel() for tensor in tensors)
    if claimed > max(2 * held, FEW_VALUES):
        raise CheckpointError(
            f"{folder} cannot be loaded: its config.json claims a model of {claimed} weights, and it holds {held}"
        )


def _weights_files(folder: Path) -> Iterator[Path]:
    """The files that the library would read, in the folder itself."""
    for name in NAMES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            yield folder / name
            return
        if index.is_file():
            shards = read_json(index, MOST_INDEX_BYTES).get("weight_map")
            found = set(shards.values()) if isinstance(shards, dict) else {None}
            if not all(isinstance(shard, str) and Path(shard).name == shard for shard in found):
                raise CheckpointError(f"{index} names weights outside of its folder")
            yield from (folder / shard for shard in sorted(found))
            return


def _integers(value: object, name: str = "") -> Iterator[tuple[str, int]]:
    """Every integer in nested JSON, with the name of the field that holds it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _integers(inner, str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _integers(inner, name)
    elif isinstance(value, int):
        yield name, value


def _parameters(folder: Path, kind: Any) -> int:
    """Weights of the model that the configuration describes, which takes no memory for them."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    except Exception as error:  # whatever the library raises, the folder is not usable
        raise CheckpointError(f"{folder} cannot be loaded: {first_line(error)}") from None
    return sum(math.prod(parameter.shape) for parameter in model.parameters())
