"""The result of an edit, and how notebooks show it."""

from __future__ import annotations

import html
import os
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from editar_rt.images.writing import picture_bytes, save_picture
from editar_rt.request import Request


@dataclass(frozen=True)
class Result:
    """An edited picture and how it was made."""

    image: Image.Image
    """The edited picture: the model's square, or with `restore` the whole picture at the size of the original."""
    tokens: NDArray[np.int32]  # [N], in raster order
    timings: dict[str, float]
    """Seconds by stage: encode (only in a session's first edit), text, prefill, decode, pixels, total; and preview, if
    previews were requested."""
    parameters: dict[str, str] = field(default_factory=dict)
    """The metadata of the saved picture."""
    finished: bool = True
    """False after cancelling: from where the edit stopped, tokens and picture are the source's."""
    seed: int = 0
    """The seed that the tokens were sampled with."""
    request: Request | None = None
    """The request that was made."""
    square: Image.Image | None = None
    """The model's square that `image` was restored from; None if it is `image` itself."""
    passes: int = 0
    """Runs of the decoder after the prefill that this picture took part in: N − 1 without `speculate` and masks."""

    def save(self, path: str | os.PathLike[str] | BinaryIO, quality: int | None = None, metadata: bool = True) -> None:
        """Write the picture with its metadata. Arguments and errors are those of `images.writing.save_picture`."""
        save_picture(self.image, path, self.parameters, quality, metadata)

    def _repr_png_(self) -> bytes:
        return picture_bytes(self.image)

    def _repr_html_(self) -> str:
        words = self.parameters.get("instruction", "")
        return figure(self.image, f"{words} (seed {self.seed}{'' if self.finished else ', not finished'})")


def figure(image: Image.Image, caption: str) -> str:
    """A picture with a caption, as self-contained HTML; at least 192 pixels wide."""
    data = b64encode(picture_bytes(image)).decode()
    return (
        f'<figure style="display:inline-block;margin:4px"><img width="{max(image.width, 192)}" '
        f'src="data:image/png;base64,{data}"><figcaption>{html.escape(caption)}</figcaption></figure>'
    )


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[stage] = time.perf_counter() - started
