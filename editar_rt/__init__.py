"""EditAR's runtime: edits pictures according to instructions, with a bundle of ONNX graphs and NumPy.

    editor = editar_rt.load("engines/demo")
    editor.edit("photo.png", "make the ball red", seed=1).save("out.png")

Importing it loads NumPy and Pillow; engines load when a bundle is opened. PyTorch is never needed.
"""

import warnings as _warnings

from editar_rt.bundle.folder import Bundle
from editar_rt.editor import Editor, load
from editar_rt.errors import (
    BackendError,
    BundleError,
    BusyError,
    Cancelled,
    EditarError,
    EditarWarning,
    MissingPartError,
    OptionError,
    PictureError,
    TextStatesError,
    TraceError,
)
from editar_rt.generation.guidance import Schedule
from editar_rt.generation.sampling import Sampling
from editar_rt.images.masks import outpainted
from editar_rt.observe.replay import Replay, replay
from editar_rt.observe.trace import Trace
from editar_rt.request import Request
from editar_rt.results import Result
from editar_rt.session import Session
from editar_rt.text.states import TextStates, load_states, save_states
from editar_rt.version import __version__

__all__ = [
    "load",
    "Editor",
    "Session",
    "Request",
    "Result",
    "Sampling",
    "Schedule",
    "Bundle",
    "Trace",
    "Replay",
    "replay",
    "outpainted",
    "TextStates",
    "load_states",
    "save_states",
    "EditarError",
    "BackendError",
    "BundleError",
    "BusyError",
    "Cancelled",
    "MissingPartError",
    "OptionError",
    "PictureError",
    "TextStatesError",
    "TraceError",
    "EditarWarning",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name == "EditResult":
        _warnings.warn(
            "EditResult is deprecated and will be removed in 0.3; use Result", DeprecationWarning, stacklevel=2
        )
        return Result
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
