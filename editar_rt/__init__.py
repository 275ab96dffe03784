"""EditAR's runtime: edits pictures according to instructions, with a bundle of ONNX graphs and NumPy.

    editor = editar_rt.load("engines/demo")
    editor.edit("photo.png", "make the ball red", seed=1).save("out.png")

The import loads almost nothing: a module loads (and NumPy and Pillow with it) when one of its names is first used, and
an engine when a bundle is opened. PyTorch is never needed.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

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
from editar_rt.version import __version__

if _TYPE_CHECKING:
    from editar_rt.bundle.folder import Bundle
    from editar_rt.editor import Editor, load
    from editar_rt.generation.guidance import Schedule
    from editar_rt.generation.sampling import Sampling
    from editar_rt.images.masks import outpainted
    from editar_rt.observe.replay import Replay, replay
    from editar_rt.observe.trace import Trace
    from editar_rt.request import Request
    from editar_rt.results import Result
    from editar_rt.session import Session
    from editar_rt.text.states import TextStates, load_states, save_states

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

# Where each of the others is, below this package.
_HOMES = {
    "bundle.folder": ("Bundle",),
    "editor": ("Editor", "load"),
    "generation.guidance": ("Schedule",),
    "generation.sampling": ("Sampling",),
    "images.masks": ("outpainted",),
    "observe.replay": ("Replay", "replay"),
    "observe.trace": ("Trace",),
    "request": ("Request",),
    "results": ("Result",),
    "session": ("Session",),
    "text.states": ("TextStates", "load_states", "save_states"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in _HOME:
        value: object = getattr(_import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value  # the next time it is found without this
        return value
    if name == "EditResult":
        import warnings

        warnings.warn(
            "EditResult is deprecated and will be removed in 0.3; use Result", DeprecationWarning, stacklevel=2
        )
        return __getattr__("Result")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
