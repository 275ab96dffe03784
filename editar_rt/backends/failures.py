"""Converts ONNX Runtime's exceptions to one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from editar_rt.errors import BackendError, EditarError


@contextmanager
def running(part: str) -> Iterator[None]:
    """Convert a failure inside the block, or in the decorated function, to a BackendError.

    The binding raises its own classes, which derive directly from Exception, and also ValueError and RuntimeError.
    """
    try:
        yield
    except EditarError:
        raise
    except Exception as e:
        said = " ".join(str(e).split()) or type(e).__name__
        raise BackendError(
            f"ONNX Runtime failed in the part {part} ({said:.300}); check the bundle with: editar info --check BUNDLE"
        ) from None
