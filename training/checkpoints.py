"""Reading weights: ours and published ones, in any layout, safely.

A file is a `torch.save` dict (weights under `model`, `module` or `state_dict`, or the dict itself; their moving average
beside them under `ema`) or safetensors; keys may carry `module.` and `_orig_mod.` prefixes. Files come from strangers,
so nothing pickled is ever executed.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from editar_rt.errors import EditarError
from training.config import VQ_PRESETS, TransformerConfig, VQConfig
from training.errors import first_line
from training.models.transformer import Transformer
from training.models.vq import VQModel

WEIGHT_KEYS = ("model", "module", "state_dict")
AVERAGE_KEY = "ema"
WEIGHTS = (AVERAGE_KEY, "model")  # which of the two a file is read for
PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.)+")
# The distillation head of EditAR's training, and usage statistics of the codebook: neither is used at inference.
IGNORED = re.compile(r"^(?:alignment\.|quantize\.codebook_used$)")
NAMES_SHOWN = 12  # of tensors in one message


class CheckpointError(EditarError):
    """A weights file that cannot be read, or whose tensors do not make up the model."""


def open_vq(path: Path, preset: str | None = None) -> VQModel:
    """A VQ tokenizer ready to encode: one of ours, which says its sizes, or an official one.

    Its memory is channels-last, the fast one on a CPU.

    Args:
        preset: sizes of a file that does not say them; VQ-16 when None.

    Raises:
        CheckpointError: no tokenizer, or one of other sizes.
    """
    tensors, config = read_tensors(path)
    try:
        sizes = VQConfig.from_dict(config) if config else VQ_PRESETS[preset or "VQ-16"]
    except (ValueError, TypeError):
        raise CheckpointError(f"{path} holds another model than a VQ tokenizer: its configuration says so") from None
    model = VQModel(sizes)
    own = {name: tensor.shape for name, tensor in model.state_dict().items() if not IGNORED.match(name)}
    if own != {name: tensor.shape for name, tensor in tensors.items()}:
        raise CheckpointError(f"{path} is no VQ tokenizer of the sizes {sizes}; choose its --vq-preset")
    model.load_state_dict(tensors, strict=False)
    return model.to(memory_format=torch.channels_last).eval()


def load_transformer(path: Path | str) -> Transformer:
    """A transformer written by `training.train_transformer`, in evaluation mode; averaged weights where it has them."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    model = Transformer(TransformerConfig.from_dict(state["config"]))
    model.load_state_dict(state.get(AVERAGE_KEY) or state["model"])
    return model.eval()


def initialize_from(model: Transformer, path: Path) -> list[str]:
    """Start a transformer from other weights of its size, such as LlamaGen's for text to image.

    Returns:
        names of the parameters that the file lacks; they stay as they were.

    Raises:
        CheckpointError: a file that cannot be read, that holds no transformer, or one of other sizes.
    """
    tensors, _ = read_tensors(path)
    own = model.state_dict()
    shared = {name: tensor for name, tensor in tensors.items() if name in own}
    if "tok_embeddings.weight" not in shared:
        raise CheckpointError(f"{path} holds no transformer; it holds {listed(tensors) or 'no tensors'}")
    wrong = [
        f"{name} has shape {list(tensor.shape)} instead of {list(own[name].shape)}"
        for name, tensor in shared.items()
        if tensor.shape != own[name].shape
    ]
    if wrong:
        raise CheckpointError(f"{path} does not fit this transformer: {listed(wrong)}; choose the preset of its size")
    model.load_state_dict(shared, strict=False)
    return [name for name in own if name not in shared]


def read_tensors(path: Path, weights: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Tensors by official name, and the configuration stored beside them, if any.

    Args:
        weights: one of `WEIGHTS`, of a file that holds both: the moving average, or what was trained. None takes the
            average where there is one.

    Raises:
        CheckpointError: a file that cannot be read, or that lacks the weights asked for.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give a .pt, .pth or .safetensors file")
    if path.suffix == ".safetensors":
        found, config = _read_safetensors(path)
    else:
        found, config = _read_pickle(path, weights)
    tensors: dict[str, Tensor] = {}
    for key, value in found.items():
        name = PREFIXES.sub("", key)
        if isinstance(value, Tensor) and not IGNORED.match(name):
            tensors[name] = value
    return tensors, config


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], dict[str, Any] | None]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            config = (file.metadata() or {}).get("config")
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, json.loads(config) if config else None
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {first_line(error)}") from None


def _read_pickle(path: Path, weights: str | None) -> tuple[Mapping[str, Any], dict[str, Any] | None]:
    # Official files hold their training arguments as argparse.Namespace: a plain record, safe to allow.
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                # The format before PyTorch 1.6 cannot be mapped.
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needed = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it needs {needed[1]}" if needed else "it is not a plain dictionary of tensors"
        raise CheckpointError(
            f"{path} is refused: {what}, and loading that could run code of whoever wrote the file; "
            "save the weights alone, or as safetensors"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a whole PyTorch file: {first_line(error)}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    config = content.get("config")
    averaged = isinstance(content.get(AVERAGE_KEY), Mapping)
    if weights == AVERAGE_KEY and not averaged:
        raise CheckpointError(f"{path} holds no averaged weights; take those that it has, with --weights model")
    for key in WEIGHT_KEYS if weights == "model" else (AVERAGE_KEY, *WEIGHT_KEYS):
        if isinstance(content.get(key), Mapping):
            return content[key], config if isinstance(config, dict) else None
    return content, None


def listed(names: Iterable[str]) -> str:
    """Names for a message, not more than fit in one."""
    found = list(names)
    shown = ", ".join(found[:NAMES_SHOWN])
    return shown + (f" and {len(found) - NAMES_SHOWN} more" if len(found) > NAMES_SHOWN else "")
