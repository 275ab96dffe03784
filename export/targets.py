"""Recipes of target devices, `engines/NAME.toml`: how a decoder is stored and spelled for them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from editar_rt.errors import OptionError
from export.precision import KV_CACHES, PRECISIONS, PROVIDERS, Storage

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[1] / "engines"
SPELLINGS = ("ort", "standard", "delta")
ALLOWED: dict[str, tuple[Any, ...]] = {
    "precision": tuple(PRECISIONS),
    "spelling": SPELLINGS,
    "kv_cache": KV_CACHES,
    "provider": PROVIDERS,
    "sampling_head": (True, False),
}
READABLE = "precisions"  # those that a recipe's devices read, a list; any where it is not given


def target_names() -> list[str]:
    """The recipes that lie in `engines/`."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_target(name: str) -> dict[str, Any]:
    """Fields of `Storage` that a recipe sets, and `READABLE` where the recipe gives it.

    Args:
        name: of a recipe in `engines/`, or a path to a file.

    Raises:
        OptionError: no such recipe, or one that sets something unknown.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        recipe: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(target_names())
        raise OptionError(f"the recipe {path} cannot be read ({error.strerror}); there are: {known}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} is not TOML: {error}") from None
    fields = recipe.get("onnx", {})
    if not isinstance(fields, dict) or not fields:
        raise OptionError(f"{path} has no table [onnx], which says how the decoder is stored")
    for field, value in fields.items():
        if field == READABLE and isinstance(value, list) and value and all(v in PRECISIONS for v in value):
            continue
        choices = ALLOWED.get(field, ())
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            allowed = ", ".join(str(choice).lower() for choice in choices) or f"not among {', '.join(ALLOWED)}"
            raise OptionError(f"{path}: [onnx] {field} = {value!r}; allowed: {allowed}")
    return fields


def storage(target: str | None, **given: str | bool | None) -> Storage:
    """The recipe's storage, with the options that were given in its place.

    Raises:
        OptionError: as `read_target`, for what no provider runs, and for a precision that the devices do not read.
    """
    fields = read_target(target) if target is not None else {}
    readable = fields.pop(READABLE, None)
    fields = fields | {name: value for name, value in given.items() if value is not None}
    stored = dataclasses.replace(Storage(), **fields)
    if readable is not None and stored.precision not in readable:
        raise OptionError(
            f"the TensorRT of the recipe {target} does not read precision {stored.precision}; take --precision "
            f"{' or '.join(readable)}"
        )
    return stored
