"""Text states on disk: the text encoder's output, computed once for devices without room for the encoder.

A file is an `.npz` with `states` float32 [1, T, C] and `prompt`, the complete prompt that they were computed from.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from editar_rt.arguments import as_path
from editar_rt.errors import TextStatesError
from editar_rt.files import placing, read_regular
from editar_rt.npz import read_arrays

MAX_BYTES = 64 << 20  # compressed and uncompressed; T5-XL's states of 120 tokens take 1 MB


def save_states(path: Path, states: NDArray[np.float32], prompt: str) -> None:
    """Write states [1, T, C] atomically.

    Raises:
        TextStatesError: the file cannot be written.
    """
    path = as_path("where text states are written", path)
    with placing(path, TextStatesError) as partial, open(partial, "wb") as f:
        np.savez(f, states=states, prompt=np.asarray(prompt))


class TextStates(NamedTuple):
    """The text encoder's output and the prompt that it was computed from."""

    states: NDArray[np.float32]
    """[1, T, C]"""
    prompt: str
    """The complete prompt: a task's prefix and the instruction."""


def load_states(path: Path) -> TextStates:
    """Read a file that `save_states` wrote. Pickled data is rejected.

    Raises:
        TextStatesError: the file does not exist or is not a file of text states.
    """
    path = as_path("a file of text states", path)
    try:
        arrays = read_arrays(read_regular(path, MAX_BYTES), MAX_BYTES)
        states, prompt = arrays["states"], str(arrays["prompt"])
    except OSError as e:
        raise TextStatesError(f"{path} cannot be read: {e.strerror or e}") from None
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise TextStatesError(
            f"{path} is not a file of text states ({e}); make one with: editar text BUNDLE 'INSTRUCTION' -o FILE.npz"
        ) from None
    if states.dtype != np.float32 or states.ndim != 3 or len(states) != 1 or not np.isfinite(states).all():
        raise TextStatesError(
            f"{path}: states must be finite float32 [1, T, C], got {states.dtype} {list(states.shape)}; "
            "make the file with: editar text BUNDLE 'INSTRUCTION' -o FILE.npz"
        )
    return TextStates(np.asarray(states, np.float32), prompt)
