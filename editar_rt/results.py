"""What an edit takes besides its instruction, and what comes out of it."""

from __future__ import annotations

import html
import io
import os
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from editar_rt.errors import OptionError, PictureError
from editar_rt.files import placing
from editar_rt.generation.decoding import Cancel
from editar_rt.images.masks import Mask

MAX_VARIANTS = 64

Preview = Callable[[Image.Image, int, int], None]  # (the picture so far, tokens done, tokens in all)


@dataclass(frozen=True)
class EditOptions:
    """The keywords of `Editor.edit` and `Session.edit` beyond the usual ones.

    Raises:
        OptionError: for a value outside of what the field allows.
    """

    mask: Mask | None = None
    """Where the picture may change: white in a picture of the same aspect, True in an array, or a box (x, y, width,
    height) in the picture's pixels. For task `edit` alone."""
    mask_margin: int = 1
    """Tokens around those that the mask touches that are drawn too; 0 or more."""
    composite: bool = True
    """Put the result back into the picture: outside the mask its pixels stay exactly."""
    cancel: Cancel | None = None
    """Anything with `is_set()`, such as a `threading.Event`: when it is set, the edit stops within one step."""

    on_preview: Preview | None = None
    """Called after rows of tokens with the picture so far, the source's rows below; of variants with the first."""
    preview_share: float = 0.1
    """Previews may take this share of the time spent on steps; rows are skipped to keep it. 0 to 1."""
    trace: str | os.PathLike[str] | None = None
    """Write a trace here, `.jsonl` or `.npz`: see `editar_rt.observe.trace`."""

    def __post_init__(self) -> None:
        if self.mask_margin < 0:
            raise OptionError(f"mask_margin must be 0 or more, got {self.mask_margin}")
        if not 0 <= self.preview_share <= 1:
            raise OptionError(f"preview_share must be 0 to 1, got {self.preview_share}")


@dataclass(frozen=True)
class EditResult:
    """An edited picture and how it came about."""

    image: Image.Image
    tokens: NDArray[np.int32]  # [N], row order
    timings: dict[str, float]
    """Seconds by stage: encode (of a session's first edit), text, prefill, decode, pixels, total. Where previews were
    asked for, `preview`, and `preview_share`, which is what they took over what the steps took."""
    parameters: dict[str, str] = field(default_factory=dict)
    """What the PNG's text chunks say."""
    finished: bool = True
    """False after cancelling: tokens and picture are then the source's from where it stopped."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG that carries its parameters as text chunks; beside and renamed into place.

        Raises:
            PictureError: where the file cannot be written.
        """
        chunks = PngImagePlugin.PngInfo()
        for name, value in self.parameters.items():
            chunks.add_itxt(f"editar:{name}", value)
        with placing(Path(path), PictureError) as partial:
            self.image.save(partial, format="PNG", pnginfo=chunks)

    def _repr_png_(self) -> bytes:
        return png_bytes(self.image)

    def _repr_html_(self) -> str:
        words, seed = (self.parameters.get(name, "") for name in ("instruction", "seed"))
        return figure(self.image, f"{words} (seed {seed})" if self.finished else f"{words} (seed {seed}, not finished)")


def png_bytes(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def figure(image: Image.Image, caption: str) -> str:
    """A picture with words below, as HTML that needs no files; at least 192 pixels wide."""
    data = b64encode(png_bytes(image)).decode()
    return (
        f'<figure style="display:inline-block;margin:4px"><img width="{max(image.width, 192)}" '
        f'src="data:image/png;base64,{data}"><figcaption>{html.escape(caption)}</figcaption></figure>'
    )


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - started
