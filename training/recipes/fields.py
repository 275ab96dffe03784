"""Fields of nested recipes by their dotted names: listed, checked, and set one by one.

A recipe is a frozen dataclass whose fields are values or further such dataclasses, its sections; `optimizer.lr` is the
field `lr` of the section `optimizer`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from training.errors import TrainingError


@dataclasses.dataclass(frozen=True)
class Ema:
    """The exponential moving average of the weights, which is exported where there is one."""

    decay: float = 0.0  # of one step; 0 keeps no average
    warmup: bool = False  # begin with an average over the last tenth of the steps so far, until the decay is reached

    def __post_init__(self) -> None:
        check_fields(self, "ema.")
        if self.decay >= 1:
            raise TrainingError(f"ema.decay must be below 1, got {self.decay}; 0 keeps no average")


def check_fields(
    section: Any,
    prefix: str = "",
    choices: Mapping[str, Collection[str]] = {},
    at_least_one: Collection[str] = (),
    shares: Collection[str] = (),
    any_sign: Collection[str] = (),
) -> None:
    """Names are among their choices, counts and rates are finite and not negative.

    Args:
        section: a dataclass; fields that are sections of their own are passed over.
        prefix: of its fields' dotted names, for messages.
        choices: the values that a field of text may have, by its name.
        at_least_one: fields that count something without which nothing is trained.
        shares: fields of at most 1.
        any_sign: fields that may be negative.

    Raises:
        TrainingError: naming the field, what is allowed and what was found.
    """
    for name, values in choices.items():
        if getattr(section, name) not in values:
            raise TrainingError(f"{prefix}{name} is one of {', '.join(values)}, got {getattr(section, name)!r}")
    for field in dataclasses.fields(section):
        name, value = field.name, getattr(section, field.name)
        if not isinstance(value, int | float) or name in any_sign:
            continue
        least = int(name in at_least_one)
        if not least <= value < math.inf:  # which NaN is not
            raise TrainingError(f"{prefix}{name} must be at least {least}, got {value}")
        if name in shares and value > 1:
            raise TrainingError(f"{prefix}{name} is a share, from 0 to 1, got {value}")


def types(kind: type, prefix: str = "") -> dict[str, Any]:
    """The type of every field of a dataclass, by its dotted name."""
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        found |= (
            types(hint, f"{prefix}{field.name}.") if dataclasses.is_dataclass(hint) else {prefix + field.name: hint}
        )
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like another, compared whole and without its section."""

    def likeness(candidate: str) -> float:
        pairs = ((name, candidate), (name.rpartition(".")[2], candidate.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return max(known, key=likeness)


def checked(values: Mapping[str, Any], known: Mapping[str, Any], told: str) -> dict[str, Any]:
    """Values by dotted names, each of its field's type; tables of an array become the dataclass that the field holds.

    Args:
        known: the type of every field, as `types` gives it.
        told: where the values come from, for messages.

    Raises:
        TrainingError: a name that is not known, with the nearest one that is, or a value of another type.
    """
    unknown = [name for name in values if name not in known]
    if unknown:
        raise TrainingError(
            f"{told}: {unknown[0]} is not a field of this recipe; the nearest one is {nearest(unknown[0], known)}"
        )
    return {name: _checked(name, value, known[name], told) for name, value in values.items()}


def _checked(name: str, value: Any, kind: Any, told: str) -> Any:
    if typing.get_origin(kind) is tuple:  # of dataclasses, any number
        table = typing.get_args(kind)[0]
        if not (isinstance(value, list | tuple) and all(isinstance(entry, dict | table) for entry in value)):
            raise TrainingError(f"{told}: {name} = {value!r} must be of type array of tables")
        given = (vars(entry) if isinstance(entry, table) else entry for entry in value)
        return tuple(table(**checked(entry, types(table), f"{told}: {name}")) for entry in given)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise TrainingError(f"{told}: {name} = {value!r} must be of type {kind.__name__}")
    return float(value) if kind is float else value


def changed(recipe: Any, values: Mapping[str, Any], told: str = "recipe") -> Any:
    """A recipe with other values, by dotted names.

    Raises:
        TrainingError: as `checked`, and for a recipe that cannot be.
    """
    found = checked(values, types(type(recipe)), told)
    return _replaced(recipe, {tuple(name.split(".")): value for name, value in found.items()})


def _replaced(section: Any, values: dict[tuple[str, ...], Any]) -> Any:
    own = {path[0]: value for path, value in values.items() if len(path) == 1}
    for name in {path[0] for path in values if len(path) > 1}:
        inner = {path[1:]: value for path, value in values.items() if path[0] == name}
        own[name] = _replaced(getattr(section, name), inner)
    return dataclasses.replace(section, **own)


def of_checkpoint(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe that a checkpoint holds, by dotted names.

    A recipe written before a field existed has that field's default; one written before recipes had sections is read
    by the dataclass's `from_earlier`.
    """
    found = flat(values)
    if hasattr(kind, "from_earlier") and not any(isinstance(value, Mapping) for value in values.values()):
        found = kind.from_earlier(values)
    return flat(dataclasses.asdict(kind())) | found
