"""Recipes as TOML files: `[recipe]` says what is learned, `[execution]` how that is carried out.

`training/recipes/` holds the published ones; a path ending in `.toml` is any other. What a file leaves out has the
dataclass's default, and an option on the command line goes before both.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from training.engine import Execution
from training.errors import TrainingError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "recipes"


def names() -> list[str]:
    """The recipes that lie in `training/recipes`."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str, model: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of a recipe and of its `Execution` as a file sets them.

    Args:
        name: of a file in `training/recipes`, or a path to one.
        model: that the recipe must be for: `vq` or `transformer`.

    Raises:
        TrainingError: no such file, one that is not TOML, or one for another model.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(names())
        raise TrainingError(f"the recipe {path} cannot be read ({error.strerror}); there are: {known}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} is not TOML: {error}") from None
    if content.get("model") != model:
        raise TrainingError(f'{path} is a recipe for model = "{content.get("model")}", this command trains {model}')
    unknown = sorted(set(content) - {"model", "recipe", "execution"})
    if unknown:
        raise TrainingError(f"{path} sets {', '.join(unknown)}; allowed: model, [recipe], [execution]")
    return content.get("recipe", {}), content.get("execution", {})


def combined(kind: type, name: str | None, model: str, given: dict[str, Any]) -> tuple[Any, Execution]:
    """A recipe and its execution: defaults, then the file's, then those of `given` that are not None.

    Args:
        kind: the recipe's dataclass.

    Raises:
        TrainingError: as `read`, and for a field that is unknown or of another type.
    """
    recipe, execution = read(name, model) if name else ({}, {})
    options = {k: v for k, v in given.items() if v is not None}
    own = {f.name for f in dataclasses.fields(kind)}
    recipe = recipe | {k: v for k, v in options.items() if k in own}
    execution = execution | {k: v for k, v in options.items() if k not in own}
    return _build(kind, recipe, name), _build(Execution, execution, name)


def _build(kind: type, values: dict[str, Any], name: str | None) -> Any:
    defaults = {f.name: f.default for f in dataclasses.fields(kind)}
    for field, table in getattr(kind, "TABLES", {}).items():
        if isinstance(tables := values.get(field), list) and all(isinstance(entry, dict) for entry in tables):
            values = values | {field: tuple(_build(table, entry, f"{name}: {field}") for entry in tables)}
    kinds: dict[type, str] = {tuple: "array of tables"}
    for field, value in values.items():
        if field not in defaults:
            raise TrainingError(f"{name}: {field!r} is none of {', '.join(defaults)}")
        wanted = type(defaults[field])
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise TrainingError(f"{name}: {field} = {value!r} must be of type {kinds.get(wanted, wanted.__name__)}")
    return kind(**{k: float(v) if isinstance(defaults[k], float) else v for k, v in values.items()})
