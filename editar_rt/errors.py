"""Errors that the user can fix.

Each message is one or two sentences: the value found, the values allowed and the next command to run. The command
line prints it without a traceback and exits with 1.
"""

from __future__ import annotations


class EditarError(Exception):
    """Base of all errors below."""


class BundleError(EditarError):
    """The bundle is missing, damaged, of another format, or unsafe to open."""


class MissingPartError(BundleError):
    """The bundle lacks the part that a call needs."""


class PictureError(EditarError):
    """A picture cannot be read or written, or is too large."""


class TextStatesError(EditarError):
    """Text states cannot be read or written, or do not fit."""


class OptionError(EditarError, ValueError):
    """A value is not allowed."""


class BackendError(EditarError):
    """A device or library is missing or failed."""


class BusyError(EditarError):
    """Another call is using the session."""


class NotFiniteError(BackendError):
    """The logits are not finite, so no token can be sampled."""


class TraceError(EditarError):
    """A trace cannot be read or written, or belongs to another bundle."""


class Cancelled(EditarError):
    """The caller asked to stop. A callback may raise it to end the edit, as setting `cancel` does."""


class EditarWarning(UserWarning):
    """Base of all warnings below; the work continues."""


class TruncatedTextWarning(EditarWarning):
    """The prompt is longer than the text encoder's input and was cut off."""


class EmptyMaskWarning(EditarWarning):
    """The mask leaves nothing to change."""


class ColorProfileWarning(EditarWarning):
    """The picture's colour profile cannot be used."""
