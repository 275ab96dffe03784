"""What a recipe's fields may hold, whether a file or a program sets them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from training.errors import TrainingError


def check_fields(recipe: Any, choices: Mapping[str, Collection[str]], at_least_one: Collection[str]) -> None:
    """Names are among their choices, counts and rates are not negative.

    Args:
        recipe: a dataclass.
        choices: the values that a field of text may have, by its name.
        at_least_one: fields that count something without which nothing is trained.

    Raises:
        TrainingError: naming the field, what is allowed and what was found.
    """
    for name, values in choices.items():
        if getattr(recipe, name) not in values:
            raise TrainingError(f"{name} is one of {', '.join(values)}, got {getattr(recipe, name)!r}")
    for field in dataclasses.fields(recipe):
        value, least = getattr(recipe, field.name), int(field.name in at_least_one)
        if isinstance(value, int | float) and not value >= least:  # which NaN is not
            raise TrainingError(f"{field.name} must be at least {least}, got {value}")
