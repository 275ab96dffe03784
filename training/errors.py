"""What can go wrong while training, each said in one sentence. Imports nothing heavy."""

from __future__ import annotations

from editar_rt.errors import EditarError


class TrainingError(EditarError):
    """A recipe that cannot be carried out: parts that do not fit, or a library or file that is missing."""


class NotFinite(TrainingError):
    """A loss or gradient that is not a number; nothing of that step entered the weights."""


class OutOfMemory(TrainingError):
    """A step that needs more memory than there is."""


def first_line(error: BaseException) -> str:
    """What a library's error says, without its advice and traceback."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
