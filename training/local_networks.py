"""Frozen networks from local folders in Hugging Face layout: teachers of the training, and networks that measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.data.records import DataError
from training.errors import first_line
from training.model_folder import check_folder
from training.weights_file import CheckpointError


def load_from(kind: Any, folder: Path, wanted: str, **options: Any) -> Any:
    """A `transformers` class from a local folder.

    Args:
        wanted: what belongs there, for messages.

    Raises:
        DataError: nothing there that it can load.
    """
    model_type(folder)  # says that there is no config.json more plainly than the library
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, **options)
    except Exception as error:  # the library's readers raise many kinds on foreign and damaged files
        raise DataError(f"{folder} cannot be loaded: {first_line(error)}; give {wanted}") from None


def load_network(
    kind: Any,
    folder: Path,
    wanted: str,
    types: tuple[str, ...],
    answer: Callable[[Any], Tensor],
    foreign: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """A network ready for use, float32, from a local folder that holds every weight that counts.

    The library gives weights that a folder lacks random values. Here they are filled with NaN, and the network must
    answer without them: some folders rightly lack a few that are never used, as Intel/dpt-large does.

    Args:
        wanted: what belongs there, for messages.
        types: allowed `model_type` of its `config.json`; any that `kind` can load when empty.
        answer: what the network says about a picture without content.
        foreign: beginnings of names of weights that only other networks of the type have.

    Raises:
        DataError: another network, or one without all of its weights.
    """
    if types and (found := model_type(folder)) not in types:
        raise DataError(f"{folder} holds a model of the type {found}, which does not measure this; give {wanted}")
    try:
        check_folder(folder, kind)
    except CheckpointError as error:
        raise DataError(f"{error}; give {wanted}") from None
    model, told = load_from(kind, folder, wanted, dtype=torch.float32, output_loading_info=True, **options)
    others = sorted(name for name in told["unexpected_keys"] if foreign and name.startswith(foreign))
    if others:
        raise DataError(f"{folder} holds weights of another network ({others[0]}); give {wanted}")
    missing, weights = sorted(told["missing_keys"]), model.eval().state_dict()
    for name in missing:
        if name in weights and weights[name].is_floating_point():
            weights[name].fill_(float("nan"))
    try:
        with torch.inference_mode():
            whole = bool(answer(model).isfinite().all())
    except Exception as error:  # whatever a network raises that expects something else
        raise DataError(f"{folder} cannot be shown a picture: {first_line(error)}; give {wanted}") from None
    if not whole and missing:
        raise DataError(
            f"{folder} lacks weights of the network ({missing[0]} and {len(missing) - 1} more), so it would answer by "
            f"chance; give {wanted}"
        )
    if not whole:
        raise DataError(f"{folder} answers with NaN: its weights are damaged; give {wanted}")
    return model


def model_type(folder: Path) -> str:
    """The `model_type` that a folder's `config.json` tells; `unknown` where it tells none.

    Raises:
        DataError: no such file, or one that is not JSON.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} is no model folder (it has no config.json); give one in Hugging Face layout"
        ) from None
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{path} is not JSON; give a model folder in Hugging Face layout") from None
    return str(config.get("model_type", "unknown")) if isinstance(config, dict) else "unknown"


def blank(side: int) -> Tensor:
    """A picture to try a network with, float32 [1, 3, side, side]."""
    return torch.zeros(1, 3, side, side)
