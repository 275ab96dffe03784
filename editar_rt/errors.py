"""Everything that can go wrong for a reason the user can mend.

Each message is one sentence or two: what was found, what is allowed, what to run next. The command line prints it
without a traceback and exits 1.
"""

from __future__ import annotations


class EditarError(Exception):
    """Base of all errors below."""


class BundleError(EditarError):
    """A bundle that is missing, damaged, of another format, or unsafe to open."""


class MissingPartError(BundleError):
    """A bundle without the part that a call needs."""


class PictureError(EditarError):
    """A picture that cannot be read, or is too large."""


class TextStatesError(EditarError):
    """A file of text states that cannot be read or written."""


class OptionError(EditarError, ValueError):
    """A value outside of what is allowed."""


class BackendError(EditarError):
    """A device or library that is not there, or failed."""


class BusyError(EditarError):
    """A session that another call is using."""


class NotFiniteError(BackendError):
    """Logits that are not numbers, so that no token can be drawn."""


class TraceError(EditarError):
    """A trace that cannot be read or written, or belongs to another bundle."""


class Cancelled(EditarError):
    """The caller asked to stop. Raised in a callback of an edit, it ends the edit as a set `cancel` does."""


class EditarWarning(UserWarning):
    """Base of what is said while the work goes on."""


class TruncatedTextWarning(EditarWarning):
    """A prompt longer than the text encoder reads."""


class EmptyMaskWarning(EditarWarning):
    """A mask that leaves nothing to change."""


class ColorProfileWarning(EditarWarning):
    """A picture whose colour profile cannot be used."""
