"""Weights files, ours and published ones, in any layout, read safely.

A file is a `torch.save` dict (weights under `model`, `module` or `state_dict`, or the dict itself; their moving average
beside them under `ema`) or safetensors; keys may carry `module.` and `_orig_mod.` prefixes.

Files come from strangers. Nothing pickled is ever executed: PyTorch's unpickler builds tensors and plain containers
alone, and an object of any other class that lies beside the weights becomes an empty `_PassedOver`. What a file claims
is held against its size before memory is taken for it.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from editar_rt.errors import EditarError
from training.errors import first_line

WEIGHT_KEYS = ("model", "module", "state_dict")
AVERAGE_KEY = "ema"
WEIGHTS = (AVERAGE_KEY, "model")  # which of the two a file is read for
PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.)+")
# The distillation head of EditAR's training, and usage statistics of the codebook: neither is used at inference.
IGNORED = re.compile(r"^(?:alignment\.|quantize\.codebook_used$)")
NAMES_SHOWN, NAME_SHOWN = 12, 80  # of tensors in one message, and characters of each
MOST_CLASSES = 64  # that a file may hold objects of
# Of the standard library these hold data; a file that names anything else of it means to do something.
RECORDS = ("argparse", "collections", "copyreg", "datetime", "decimal", "enum", "fractions", "pathlib", "types", "uuid")
HARMLESS_BUILTINS = (
    "bool", "bytes", "dict", "float", "frozenset", "int", "list", "object", "range", "slice", "str", "tuple",
)  # fmt: skip


class CheckpointError(EditarError):
    """A weights file that cannot be read, or whose tensors do not make up the model."""


@dataclass(frozen=True)
class WeightsFile:
    """What was read of a file."""

    tensors: dict[str, Tensor]
    """By official name, as stored; memory-mapped where the format allows."""
    config: dict[str, Any] | None = None
    """The dictionary stored beside them under `config`, whoever wrote it; None without one."""
    notes: list[str] = field(default_factory=list)
    """What a user should know: which weights were taken, and what was passed over."""


def read_weights(path: Path, weights: str | None = None) -> WeightsFile:
    """Read a weights file.

    Args:
        weights: one of `WEIGHTS`, of a file that holds both: the moving average, or what was trained. None takes the
            average where there is one.

    Raises:
        CheckpointError: a file that cannot be read, or that lacks the weights asked for.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give a .pt, .pth or .safetensors file")
    content, notes = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    config = content.get("config")
    if config is not None and not isinstance(config, dict):
        notes.append(f"{path}: config is not a dictionary and was passed over")
    found = _chosen(path, content, weights, notes)
    tensors = {PREFIXES.sub("", key): value for key, value in found.items() if isinstance(key, str)}
    return WeightsFile(
        {name: value for name, value in tensors.items() if isinstance(value, Tensor) and not IGNORED.match(name)},
        config if isinstance(config, dict) else None,
        notes,
    )


def listed(names: Iterable[str]) -> str:
    """Names for a message, not more than fit in one."""
    found = list(names)
    shown = ", ".join(_short(name) for name in found[:NAMES_SHOWN])
    return shown + (f" and {len(found) - NAMES_SHOWN} more" if len(found) > NAMES_SHOWN else "")


def _short(name: str) -> str:
    """A name as a stranger gave it, so that a terminal shows it as text."""
    plain = name if name.isprintable() else ascii(name)
    return plain if len(plain) <= NAME_SHOWN else f"{plain[:NAME_SHOWN]}…"


def require_numbers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Make sure that tensors hold real numbers, as many as their shapes say.

    Raises:
        CheckpointError: naming the tensors that do not.
    """
    wrong = [f"{_short(name)} {fault}" for name, tensor in tensors.items() if (fault := _fault(tensor)) is not None]
    if wrong:
        raise CheckpointError(f"{path} holds what are no weights: {listed(wrong)}; save them as real numbers")


def _fault(tensor: Tensor) -> str | None:
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_nested or tensor.layout != torch.strided:
        return "is not a plain tensor"
    if tensor.is_complex():
        return f"is complex ({str(tensor.dtype).removeprefix('torch.')})"
    if tensor.is_quantized or not tensor.is_floating_point():
        return f"is of the type {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.device.type != "cpu":
        return "has no values"
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        return f"has the shape {list(tensor.shape)}, and fewer values than that"
    return None


def _chosen(path: Path, content: Mapping[str, Any], weights: str | None, notes: list[str]) -> Mapping[str, Any]:
    """The weights that were asked for, of those that a file holds."""
    trained = next((key for key in WEIGHT_KEYS if isinstance(content.get(key), Mapping)), None)
    averaged = isinstance(content.get(AVERAGE_KEY), Mapping)
    if weights == AVERAGE_KEY and not averaged:
        raise CheckpointError(f"{path} holds no averaged weights; take those that it has, with --weights model")
    if averaged and weights != "model":
        if trained is not None and weights is None:
            notes.append(
                f"{path} holds {trained} and {AVERAGE_KEY}: {AVERAGE_KEY}, the moving average, is taken (--weights "
                "model takes the other)"
            )
        return content[AVERAGE_KEY]
    return content if trained is None else content[trained]


def _read_safetensors(path: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
            stored = (file.metadata() or {}).get("config")
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {first_line(error)}") from None
    try:
        return {"model": tensors, "config": json.loads(stored) if stored else None}, []
    except (ValueError, RecursionError):
        return {"model": tensors}, [f"{path}: its metadata's config is not JSON and was passed over"]


def _read_pickle(path: Path) -> tuple[Mapping[str, Any], list[str]]:
    _check_archive(path)
    # Official files hold their training arguments as argparse.Namespace.
    passed_over: dict[str, type] = {"argparse.Namespace": argparse.Namespace}
    while True:
        try:
            content = _load(path, passed_over)
            break
        except pickle.UnpicklingError as error:
            _pass_over(path, error, passed_over)
        except Exception as error:  # of a damaged file's opcodes the unpickler raises whatever Python does
            raise CheckpointError(f"{path} is not a whole PyTorch file: {first_line(error)}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    del passed_over["argparse.Namespace"]
    return content, [f"{path}: objects of {listed(passed_over)} were passed over"] if passed_over else []


def _check_archive(path: Path) -> None:
    """Archives are stored as they are; a compressed one may unpack to any size."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is not a whole PyTorch file: {first_line(error)}") from None
    stored = sum(member.file_size for member in members)
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or stored > path.stat().st_size:
        raise CheckpointError(
            f"{path} is a compressed archive of {stored} bytes, which torch.save does not write; unpack it, or save "
            "the weights again"
        )


def _load(path: Path, passed_over: Mapping[str, type]) -> Any:
    allowed: list[Any] = [(kind, name) for name, kind in passed_over.items()]
    with torch.serialization.safe_globals(allowed):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # The format before PyTorch 1.6 cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True)


class _PassedOver:
    """Stands for an object of another program: takes what was stored of it, keeps nothing and does nothing."""

    made_as: type = object  # or what the unpickler fills item by item: OrderedDict, list

    def __new__(cls, *_: Any) -> Any:
        return object.__new__(cls) if cls.made_as is object else cls.made_as()

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def _pass_over(path: Path, error: pickle.UnpicklingError, passed_over: dict[str, type]) -> None:
    """Let objects of the class that stopped PyTorch's unpickler stand aside when the file is read again.

    Raises:
        CheckpointError: where that would not help, or where the name is one that nobody stores as data.
    """
    needed = re.search(r"GLOBAL (\S+)", str(error))
    filled = re.search(r"Can only (\w+) .* got <class '([^']+)'>", str(error))
    if needed and _is_data(needed[1]) and len(passed_over) < MOST_CLASSES:
        module, _, name = (needed[1] if "." in needed[1] else f"builtins.{needed[1]}").rpartition(".")
        if f"{module}.{name}" not in passed_over:
            passed_over[f"{module}.{name}"] = type(name, (_PassedOver,), {"__module__": module})
            return
    if filled and (kind := passed_over.get(filled[2])) and getattr(kind, "made_as", None) is object:
        kind.made_as = list if filled[1] in ("append", "extend") else OrderedDict  # type: ignore[attr-defined]
        return
    what = f"it needs {_short(needed[1])}" if needed else "it is not a plain dictionary of tensors"
    raise CheckpointError(
        f"{path} is refused: {what}, and loading that could run code of whoever wrote the file; "
        "save the weights alone, or as safetensors"
    ) from None


def _is_data(name: str) -> bool:
    """Whether a class or function may be one that a training script stores beside its weights."""
    package = name.partition(".")[0]
    if not all(each.isidentifier() for each in name.split(".")):
        return False
    if "." not in name:
        return name in HARMLESS_BUILTINS
    return package in RECORDS or package not in sys.stdlib_module_names
