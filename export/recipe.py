"""Recipes of target devices, `engines/NAME.toml`: the storage of the decoder, and the engines to build.

A recipe has two tables: [onnx] sets fields of `export.precision.Storage`, [tensorrt] those of `EngineRecipe`. Both are
always checked. Recipes are also read on devices, so this module needs neither torch nor ONNX.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from editar_rt.arguments import is_integer
from editar_rt.backends.engines.plan import Plan
from editar_rt.backends.engines.tensorrt_compat import LIBRARIES
from editar_rt.backends.engines.tensorrt_compat import TENSORRT as TENSORRT_LIBRARY
from editar_rt.bundle.manifest import ModelInfo
from editar_rt.bundle.words import DIALECTS, KV_CACHES, PRECISIONS
from editar_rt.errors import OptionError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[1] / "engines"
ONNX, TENSORRT = "onnx", "tensorrt"
PROVIDERS = ("cpu", "cuda")  # of ONNX Runtime
READABLE = "precisions"  # precisions that a recipe's devices can read; all if not given
PICTURE, TEXT = "picture", "text"  # stand for the bundle's own lengths
RENAMED = {"spelling": "dialect"}  # fields of [onnx] by their names before 0.2
MOST_BYTES = 1 << 20


class Rule(NamedTuple):
    """The values that a field allows."""

    allowed: str
    """As text that follows "must be"."""
    holds: Callable[[Any], bool]


def _one_of(words: Collection[str]) -> Rule:
    return Rule(f"one of {', '.join(words)}", lambda value: isinstance(value, str) and value in words)


def _integer(least: int, most: int) -> Rule:
    return Rule(
        f"an integer from {least} to {most}",
        lambda value: is_integer(value) and least <= value <= most,
    )


def _list_of(allowed: str, *rules: Rule) -> Rule:
    return Rule(
        f"a non-empty list of {allowed}",
        lambda value: (
            isinstance(value, list) and bool(value) and all(any(rule.holds(v) for rule in rules) for v in value)
        ),
    )


def _text(allowed: str, pattern: str) -> Rule:
    return Rule(allowed, lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None)


FLAG = Rule("true or false", lambda value: isinstance(value, bool))
FIELDS: dict[str, dict[str, Rule]] = {
    ONNX: {
        "precision": _one_of(PRECISIONS),
        "dialect": _one_of(DIALECTS),
        "kv_cache": _one_of(KV_CACHES),
        "provider": _one_of(PROVIDERS),
        "sampling_head": FLAG,
        READABLE: _list_of(f"{', '.join(PRECISIONS)}", _one_of(PRECISIONS)),
    },
    TENSORRT: {
        "rows": _list_of("integers from 1 to 128", _integer(1, 128)),
        "chunks": _list_of(
            f'"{PICTURE}", "{TEXT}" and integers from 2 to 8192', _one_of((PICTURE, TEXT)), _integer(2, 8192)
        ),
        "drafts": _list_of("integers from 2 to 64", _integer(2, 64)),
        "library": _one_of(LIBRARIES),
        "capabilities": _list_of('compute capabilities such as "8.6"', _text("", r"\d{1,2}\.\d")),
        "shared": FLAG,
        "dynamic": FLAG,
        "static": _list_of('shapes such as "2x1", rows and positions', _text("", r"\d{1,3}x\d{1,4}")),
        "workspace_mib": _integer(1, 1 << 20),
        "optimization_level": _integer(0, 5),
        "tf32": FLAG,
        "external": FLAG,
    },
}


@dataclass(frozen=True)
class EngineRecipe:
    """The table [tensorrt]: how engines are built."""

    rows: tuple[int, ...] = (1, 2)
    """Numbers of rows of the step engines: one without guidance, two with it, more for batches."""
    chunks: tuple[int | str, ...] = (PICTURE, TEXT)
    """Numbers of positions of the chunk engines; `picture` and `text` mean the bundle's lengths."""
    drafts: tuple[int, ...] = ()
    """Numbers of positions of engines that check drafted tokens in all rows at once."""
    library: str = TENSORRT_LIBRARY
    """A key of `LIBRARIES`."""
    capabilities: tuple[str, ...] = ()
    """The compute capabilities of the GPUs to build for, where the library builds without one."""
    shared: bool = False
    """One engine for all shapes of the decoder: the weights are stored once, but steps are slower."""
    dynamic: bool = False
    """One engine for all rows and positions up to the largest; the library compiles kernels for each shape at run
    time."""
    static: tuple[str, ...] = ()
    """Shapes of the decoder, rows x positions, that get an engine of their own beside the dynamic one."""
    workspace_mib: int = 2048
    """Scratch memory that a layer may use."""
    optimization_level: int | None = None
    """0 to 5, the builder's effort for faster code; None means the builder's default."""
    tf32: bool = False
    """Float32 matmuls with inputs of 10 bits of mantissa: faster, but outside the bounds of float32 parity."""
    external: bool = True
    """Whether cuBLAS and cuDNN may be used."""

    def plan(self, model: ModelInfo) -> Plan:
        """The engines for a bundle."""
        lengths = {PICTURE: model.picture_tokens, TEXT: model.text_tokens}
        chunks = {lengths[c] if isinstance(c, str) else c for c in self.chunks}
        return Plan(
            tuple(sorted(set(self.rows))),
            tuple(sorted(c for c in chunks if c is not None)) or (1,),
            tuple(sorted(set(self.drafts))),
        )


def read_storage(name: str) -> dict[str, Any]:
    """The fields of `Storage` that a recipe sets, and `READABLE` if the recipe has it.

    Args:
        name: the name of a recipe in `engines/`, or a path that ends with .toml.

    Raises:
        OptionError: the recipe is missing, has an unknown or wrong field, or lacks the table [onnx].
    """
    return _read_table(name, ONNX)


def read_engines(name: str) -> EngineRecipe:
    """The recipe for building engines.

    Args:
        name: as in `read_storage`.

    Raises:
        OptionError: as in `read_storage`, but for the table [tensorrt].
    """
    fields: dict[str, Any] = {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in _read_table(name, TENSORRT).items()
    }
    if fields.get("shared") and fields.get("dynamic"):
        raise OptionError(f"the recipe {name} sets both shared and dynamic; choose one")
    return EngineRecipe(**fields)


def recipe_names(table: str = ONNX) -> list[str]:
    """The recipes in `engines/` that have a table."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if f"[{table}]" in path.read_text(encoding="utf-8"))


def _read_table(name: str, table: str) -> dict[str, Any]:
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    recipe = _parsed(path)
    if unknown := sorted(set(recipe) - set(FIELDS)):
        raise OptionError(f"{path} sets {', '.join(unknown)}; a recipe has the tables [{ONNX}] and [{TENSORRT}]")
    recipe = {each: _renamed(values) if each == ONNX else values for each, values in recipe.items()}
    for each, values in recipe.items():
        _check_fields(path, each, values)
    if not recipe.get(table):
        raise OptionError(f"{path} has no table [{table}]; the recipes that have one: {', '.join(recipe_names(table))}")
    fields: dict[str, Any] = recipe[table]
    return fields


def _parsed(path: Path) -> dict[str, Any]:
    known = ", ".join(recipe_names())
    try:
        if not path.is_file():  # a pipe or a device could be read forever
            raise OptionError(f"there is no recipe {path}; there are: {known}")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise OptionError(
                f"{path} is larger than {MOST_BYTES >> 20} MiB, so it is not a recipe; there are: {known}"
            )
        return tomllib.loads(content.decode("utf-8"))
    except OptionError:  # which is a ValueError too
        raise
    except OSError as error:
        raise OptionError(f"the recipe {path} cannot be read ({error.strerror}); there are: {known}") from None
    except RecursionError:
        raise OptionError(f"{path} is not TOML: its values are nested too deeply") from None
    except ValueError as error:  # from TOML, from UTF-8, and for invalid names
        raise OptionError(f"{path} is not TOML: {error}") from None


def _renamed(fields: Any) -> Any:
    """A table with current field names. A field given under both names keeps the old one, which is then unknown."""
    if not isinstance(fields, Mapping):
        return fields
    return {name if RENAMED.get(name, name) in fields else RENAMED.get(name, name): v for name, v in fields.items()}


def _check_fields(path: Path, table: str, fields: object) -> None:
    if not isinstance(fields, Mapping):
        raise OptionError(f"{path}: {table} must be a table, [{table}] with fields below it, got {fields!r}")
    for field, value in fields.items():
        rule = FIELDS[table].get(field)
        if rule is None:
            raise OptionError(f"{path}: [{table}] has no field {field}; its fields: {', '.join(FIELDS[table])}")
        if not rule.holds(value):
            raise OptionError(f"{path}: [{table}] {field} must be {rule.allowed}, got {value!r}")
