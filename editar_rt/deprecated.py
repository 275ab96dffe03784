"""The API of version 0.1, which still works in 0.2 with a warning that names the replacement."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from editar_rt.errors import OptionError
from editar_rt.request import Request

F = TypeVar("F", bound=Callable[..., Any])
AFTER_INSTRUCTION = ("task", "sampling", "on_progress", "text_states", "n")


def warn(old: str, new: str, level: int = 3) -> None:
    """Warn that a call uses the API of version 0.1."""
    warnings.warn(f"{old} is deprecated and will be removed in 0.3; use {new}", DeprecationWarning, stacklevel=level)


def takes_old_arguments(leading: int) -> Callable[[F], F]:
    """Let an `edit` method accept positional options, and `n` for variants.

    Args:
        leading: number of positional arguments of the method itself.
    """

    def decorate(edit: F) -> F:
        @functools.wraps(edit)
        def method(self: Any, *given: Any, **options: Any) -> Any:
            more, given = given[leading:], given[:leading]
            if len(more) > len(AFTER_INSTRUCTION):
                raise TypeError(f"edit takes {leading} positional arguments, got {leading + len(more)}")
            if more:
                words = ", ".join(f"{name}=" for name in AFTER_INSTRUCTION[: len(more)])
                warn("a positional option of edit", words)
                options |= dict(zip(AFTER_INSTRUCTION, more))
            n = options.pop("n", None)
            if n is not None:
                warn("edit(..., n=)", "variants(..., n)")
                return self.variants(*given, n=n, **options)
            return edit(self, *given, **options)

        return method  # type: ignore[return-value]

    return decorate


def batch_requests(edit_batch: F) -> F:
    """Let `edit_batch` accept pictures and instructions as two lists."""

    @functools.wraps(edit_batch)
    def method(self: Any, requests: Any, *given: Any, **options: Any) -> Any:
        if not given and not options:
            return edit_batch(self, requests)
        warn("edit_batch(images, instructions)", "edit_batch([editar_rt.Request(image, instruction), ...])")
        names = ("instructions", "task", "sampling", "on_progress")
        options |= dict(zip(names, given))
        images, instructions = list(requests), options.pop("instructions")
        if isinstance(instructions, str) or len(images) != len(list(instructions)):
            raise OptionError("give a list of instructions, one for each picture")
        return edit_batch(self, [Request(image, words, **options) for image, words in zip(images, instructions)])

    return method  # type: ignore[return-value]
