"""The table [tensorrt] of a recipe, `engines/NAME.toml`: which engines are built for a device, and how.

Read on the device, so it needs neither torch nor ONNX.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from editar_rt.backends.engines.plan import Plan
from editar_rt.bundle.manifest import ModelInfo
from editar_rt.errors import OptionError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[1] / "engines"
TABLE = "tensorrt"
PICTURE, TEXT = "picture", "text"  # stand for the bundle's own lengths


@dataclass(frozen=True)
class Recipe:
    """How engines are built."""

    rows: tuple[int, ...] = (1, 2)
    """Rows of the steps' engines: one without guidance, two with it, more for batches."""
    chunks: tuple[int | str, ...] = (PICTURE, TEXT)
    """Positions of the chunks' engines; `picture` and `text` are the bundle's lengths."""
    shared: bool = False
    """One engine for all of the decoder's shapes: its weights once, its steps slower."""
    workspace_mib: int = 2048
    """Scratch memory that a layer may use."""
    optimization_level: int | None = None
    """0 to 5: how long the builder looks for faster code; its own choice when absent."""
    tf32: bool = False
    """Float32 products with factors of 10 bits: faster, and outside of float32's parity."""
    external: bool = True
    """Whether cuBLAS and cuDNN may be used."""

    def plan(self, model: ModelInfo) -> Plan:
        """The engines for a bundle."""
        lengths = {PICTURE: model.picture_tokens, TEXT: model.text_tokens}
        chunks = {lengths[c] if isinstance(c, str) else c for c in self.chunks}
        return Plan(tuple(sorted(set(self.rows))), tuple(sorted(c for c in chunks if c is not None)) or (1,))


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rows": (
        lambda value: isinstance(value, list) and bool(value) and all(map(_whole(1, 128), value)),
        "a list of whole numbers, 1 to 128",
    ),
    "chunks": (
        lambda value: (
            isinstance(value, list) and bool(value) and all(c in (PICTURE, TEXT) or _whole(2, 8192)(c) for c in value)
        ),
        f'a list of "{PICTURE}", "{TEXT}" and whole numbers, 2 to 8192',
    ),
    "shared": (_is_flag, "true or false"),
    "workspace_mib": (_whole(1, 1 << 20), "a whole number, 1 or more"),
    "optimization_level": (_whole(0, 5), "0 to 5"),
    "tf32": (_is_flag, "true or false"),
    "external": (_is_flag, "true or false"),
}


def read_recipe(name: str) -> Recipe:
    """A recipe by its name in `engines/`, or a path to a .toml file.

    Raises:
        OptionError: no such recipe, none for TensorRT, or one that sets something unknown.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get(TABLE)
    except OSError as error:
        raise OptionError(
            f"the recipe {path} cannot be read ({error.strerror}); for TensorRT there are: {', '.join(recipe_names())}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} is not TOML: {error}") from None
    if not isinstance(table, dict):
        raise OptionError(
            f"{path} has no table [{TABLE}]: it is not for TensorRT; there are: {', '.join(recipe_names())}"
        )
    for field, value in table.items():
        if field not in ALLOWED:
            raise OptionError(f"{path}: [{TABLE}] {field}: unknown; known are {', '.join(ALLOWED)}")
        good, allowed = ALLOWED[field]
        if not good(value):
            raise OptionError(f"{path}: [{TABLE}] {field} must be {allowed}, got {value!r}")
    assert set(ALLOWED) == {field.name for field in fields(Recipe)}
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
    return Recipe(**given)


def recipe_names() -> list[str]:
    """The recipes in `engines/` that are for TensorRT."""
    return sorted(path.stem for path in FOLDER.glob("*.toml") if f"[{TABLE}]" in path.read_text(encoding="utf-8"))
