"""Recipes as TOML files, and single fields on the command line.

`training/recipes/` holds the published ones; a path ending in `.toml` is any other. At the top a file says which model
it `trains`, and with `extends` which recipe it begins with, by name or by a path beside it; its tables are the recipe's
sections and `[execution]`, how that is carried out. Where nothing is said a field has its dataclass's default. An
option of the command line goes before the file, and `--set` before everything.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from training.engine import Execution
from training.errors import TrainingError
from training.recipes.fields import changed, checked, flat, nearest, types

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent
EXECUTION = "execution."


def names() -> list[str]:
    """The recipes that lie in `training/recipes`."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str, kind: type, model: str, beside: Path = Path()) -> dict[str, Any]:
    """The fields that a recipe's file sets, and those it extends, by dotted names; its execution's under `execution.`.

    Args:
        name: of a file in `training/recipes`, or a path to one.
        kind: the recipe's dataclass.
        model: that the recipe must be for: `vq` or `transformer`.
        beside: folder that a relative path is meant from.

    Raises:
        TrainingError: no such file, one that is not TOML, one for another model, one that extends itself, or one that
            sets unknown fields or values of another type.
    """
    known, chain, found = known_fields(kind), list[Path](), dict[str, Any]()
    following: str | None = name
    while following:
        path = beside / following if following.endswith(".toml") else FOLDER / f"{following}.toml"
        content = _content(path, following)
        if path.resolve() in chain:
            raise TrainingError(f"{path} extends itself; name a recipe that does not begin with this one")
        chain.append(path.resolve())
        if (trains := content.pop("trains", None)) != model:
            raise TrainingError(f"{path} is a recipe that trains {trains!r}, this command trains {model!r}")
        following, beside = content.pop("extends", None), path.parent
        if following is not None and not isinstance(following, str):
            raise TrainingError(f"{path}: extends = {following!r} must be the name of a recipe or a path")
        found = checked(flat(content), known, str(path)) | found
    return found


def known_fields(kind: type) -> dict[str, Any]:
    """The type of every field of a recipe and of its execution, by its dotted name."""
    return types(kind) | types(Execution, EXECUTION)


def _content(path: Path, name: str) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "" if name.endswith(".toml") else f"; the nearest recipe is {nearest(name, names())}"
        known = ", ".join(names())
        raise TrainingError(f"the recipe {path} cannot be read ({error.strerror}){hint}; there are: {known}") from None
    except ValueError as error:  # of TOML and of UTF-8; and of names that no disk has
        raise TrainingError(f"{path} is not TOML: {error}") from None
    except RecursionError:
        raise TrainingError(f"{path} is not TOML: its values are nested too deeply") from None
    if "recipe" in content:
        raise TrainingError(
            f"{path} has a table [recipe], as earlier versions had it; give each field in the section it belongs to, "
            f"as {FOLDER / 'editar.toml'} does"
        )
    return content


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """`section.field=value`, as `--set` takes it, by dotted name; a value is read as TOML, a word alone as text.

    Raises:
        TrainingError: a text without a name or an equals sign.
    """
    found = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not name or not equals:
            raise TrainingError(f"--set takes section.field=value, such as optimizer.lr=3e-4, got {text!r}")
        try:
            found[name] = tomllib.loads(f"value = {value}")["value"]
        except (tomllib.TOMLDecodeError, RecursionError):
            found[name] = value
    return found


def combined(kind: type, name: str, model: str, given: Mapping[str, Any], told: str = "--set") -> tuple[Any, Execution]:
    """A recipe and its execution: defaults, then the file's values, then those of `given` that are not None.

    Args:
        kind: the recipe's dataclass.
        given: by dotted names; those of the execution begin with `execution.`.
        told: where they come from, for messages.

    Raises:
        TrainingError: as `read`, and for a recipe that cannot be.
    """
    options = {name: value for name, value in given.items() if value is not None}
    values = read(name, kind, model) | checked(options, known_fields(kind), told)
    recipe = {name: value for name, value in values.items() if not name.startswith(EXECUTION)}
    execution = {name.removeprefix(EXECUTION): value for name, value in values.items() if name.startswith(EXECUTION)}
    return changed(kind(), recipe, name), changed(Execution(), execution, name)
