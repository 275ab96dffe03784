"""What ONNX Runtime raises while it runs, as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from editar_rt.errors import BackendError, EditarError


@contextmanager
def running(part: str) -> Iterator[None]:
    """Turn a failure inside the block, or the function that it decorates, into a BackendError.

    The binding raises its own classes, all of them direct Exceptions, and ValueError and RuntimeError besides.
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
