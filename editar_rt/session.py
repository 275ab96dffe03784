"""One picture and its edits: what does not depend on the instruction is computed once."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from editar_rt.decoding import Prefix, decode, picture_chunk
from editar_rt.editor import EditResult, Progress, timed
from editar_rt.errors import OptionError
from editar_rt.pixels import Picture, read_pixels, to_pictures
from editar_rt.prompts import build_prompt
from editar_rt.sampling import Sampling

if TYPE_CHECKING:
    from editar_rt.editor import Editor

MAX_VARIANTS = 64


class Session:
    """A picture's tokens, and the decoder's cache of it.

    The first edit runs the picture and the text through the decoder, each later one the text alone, with the same
    tokens as a fresh `Editor.edit`. Made by `Editor.open`. Edits of one editor's sessions must not overlap.
    """

    def __init__(self, editor: Editor, image: Picture) -> None:
        started = time.perf_counter()
        self.editor = editor
        self.condition_tokens = editor.encode_pixels(read_pixels(image, editor.image_size))  # [1, N]
        self.seconds = time.perf_counter() - started
        """What reading and encoding the picture took."""
        self._prefix: Prefix | None = None

    @overload
    def edit(
        self,
        instruction: str,
        task: str = "edit",
        sampling: Sampling | None = None,
        on_progress: Progress | None = None,
        text_states: NDArray[np.float32] | None = None,
        n: None = None,
    ) -> EditResult: ...

    @overload
    def edit(
        self,
        instruction: str,
        task: str = "edit",
        sampling: Sampling | None = None,
        on_progress: Progress | None = None,
        text_states: NDArray[np.float32] | None = None,
        *,
        n: int,
    ) -> list[EditResult]: ...

    def edit(
        self,
        instruction: str,
        task: str = "edit",
        sampling: Sampling | None = None,
        on_progress: Progress | None = None,
        text_states: NDArray[np.float32] | None = None,
        n: int | None = None,
    ) -> EditResult | list[EditResult]:
        """Edit the picture; arguments as `Editor.edit` has them.

        Args:
            n: make this many variants at once, with the seeds seed, seed + 1, …; a list is returned then.
        """
        editor = self.editor
        sampling = sampling or editor.default_sampling
        if n is not None and not 1 <= n <= MAX_VARIANTS:
            raise OptionError(f"n must be 1 to {MAX_VARIANTS}, got {n}")
        samplings = [replace_seed(sampling, i) for i in range(n or 1)]
        timings: dict[str, float] = {}
        started = time.perf_counter()
        with timed(timings, "text"):
            prompt = build_prompt(task, instruction)
            states = editor.encode_prompts([prompt]) if text_states is None else text_states
        with timed(timings, "prefill"):
            text, null_text, null_picture = editor.project(states)
            prefix = self._prefix_for(len(samplings), sampling.guided, null_picture)
            first = prefix.read(text, null_text)
        tokens = np.empty((len(samplings), editor.picture_tokens), np.int32)
        with timed(timings, "decode"):
            seeds = [each.seed for each in samplings]
            for position, drawn in decode(prefix, first, tokens.shape[1], sampling, seeds):
                tokens[:, position] = drawn
                if on_progress is not None:
                    on_progress(position + 1, tokens.shape[1])
        with timed(timings, "pixels"):
            pictures = to_pictures(editor.decode_tokens(tokens))
        timings["total"] = time.perf_counter() - started
        results = [
            EditResult(Image.fromarray(picture), own, dict(timings), editor.parameters(instruction, task, each))
            for picture, own, each in zip(pictures, tokens, samplings, strict=True)
        ]
        return results if n is not None else results[0]

    def _prefix_for(self, rows: int, guided: bool, null_picture: NDArray[np.float32]) -> Prefix:
        kept = self._prefix
        if kept is None or kept.rows != rows or kept.guided != guided:
            self._prefix = None  # free its memory before the next one is made
            picture = picture_chunk(self.condition_tokens, null_picture)
            self._prefix = kept = self.editor.make_prefix(picture, [0] * rows, guided)
        return kept


def replace_seed(sampling: Sampling, offset: int) -> Sampling:
    """The sampling of a variant; seeds wrap around at 2⁶⁴."""
    return replace(sampling, seed=(sampling.seed + offset) % 2**64) if offset else sampling
