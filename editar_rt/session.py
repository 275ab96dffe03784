"""One picture and its edits: what does not depend on the instruction is computed once."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from editar_rt.decoding import Prefix, collect, decode, picture_chunk
from editar_rt.editor import progress_watcher, timed
from editar_rt.errors import EmptyMaskWarning, OptionError
from editar_rt.masks import composite, dilate, feather, read_mask, touched_cells
from editar_rt.pixels import Picture, fit_square, open_picture, to_pictures, to_pixels
from editar_rt.prompts import build_prompt
from editar_rt.results import EditOptions, EditResult, Progress
from editar_rt.sampling import Sampling

if TYPE_CHECKING:
    from editar_rt.editor import Editor

MAX_VARIANTS = 64


@dataclass(frozen=True)
class Request:
    """What was asked for, but for the picture."""

    instruction: str
    task: str
    sampling: Sampling
    seeds: tuple[int, ...]  # of the variants
    text_states: NDArray[np.float32] | None
    options: EditOptions


@dataclass
class State:
    """Where the last edit stands."""

    request: Request
    tokens: NDArray[np.int32]  # [variants, N]; the source's from `done` on
    done: int  # target tokens


class Session:
    """A picture's tokens, and the decoder's cache of it.

    The first edit runs the picture and the text through the decoder, each later one the text alone, with the same
    tokens as a fresh `Editor.edit`. Made by `Editor.open`. Edits of one editor's sessions must not overlap.
    """

    def __init__(self, editor: Editor, image: Picture) -> None:
        started = time.perf_counter()
        self.editor = editor
        opened = open_picture(image)
        self.size = opened.size
        """Width and height of the picture as given, pixels."""
        self.source = fit_square(opened, editor.image_size)
        """The square of it that the model sees."""
        self.condition_tokens = editor.encode_pixels(to_pixels(np.asarray(self.source)[None]))  # [1, N]
        self.seconds = time.perf_counter() - started
        """What reading and encoding the picture took."""
        self._prefix: Prefix | None = None
        self._text: tuple[str, NDArray[np.float32]] | None = None  # the last prompt and its states
        self._state: State | None = None

    @overload
    def edit(
        self,
        instruction: str,
        task: str = "edit",
        sampling: Sampling | None = None,
        on_progress: Progress | None = None,
        text_states: NDArray[np.float32] | None = None,
        n: None = None,
        **options: Any,
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
        **options: Any,
    ) -> list[EditResult]: ...

    def edit(
        self,
        instruction: str,
        task: str = "edit",
        sampling: Sampling | None = None,
        on_progress: Progress | None = None,
        text_states: NDArray[np.float32] | None = None,
        n: int | None = None,
        **options: Any,
    ) -> EditResult | list[EditResult]:
        """Edit the picture; arguments as `Editor.edit` has them."""
        results = self.run(instruction, task, sampling, on_progress, text_states, n, EditOptions(**options))
        return results if n is not None else results[0]

    def run(
        self,
        instruction: str,
        task: str,
        sampling: Sampling | None,
        on_progress: Progress | None,
        text_states: NDArray[np.float32] | None,
        n: int | None,
        options: EditOptions,
    ) -> list[EditResult]:
        """`edit` with its options in one object, always as a list."""
        sampling = sampling or self.editor.default_sampling
        if n is not None and not 1 <= n <= MAX_VARIANTS:
            raise OptionError(f"n must be 1 to {MAX_VARIANTS}, got {n}")
        if options.mask is not None and task != "edit":
            raise OptionError(f"a mask keeps parts of the picture, which task {task} does not; masks are for task edit")
        seeds = tuple((sampling.seed + i) % 2**64 for i in range(n or 1))
        return self._run(Request(instruction, task, sampling, seeds, text_states, options), on_progress)

    def _run(self, request: Request, on_progress: Progress | None, kept: int = 0) -> list[EditResult]:
        """Do what is asked for, the first `kept` tokens being those of the state."""
        editor, options, sampling = self.editor, request.options, request.sampling
        prompt = build_prompt(request.task, request.instruction)
        timings = dict.fromkeys(("text", "prefill", "decode", "pixels"), 0.0)
        started = time.perf_counter()
        tokens = np.repeat(self.condition_tokens, len(request.seeds), axis=0)
        mask = None if options.mask is None else read_mask(options.mask, self.size, editor.image_size)
        known = self._known(mask, options.mask_margin, tokens)
        if kept and self._state is not None:
            known[:, :kept] = self._state.tokens[:, :kept]
        done, count = 0, tokens.shape[1]
        if mask is not None and not mask.any():
            message = "the mask has no white within the picture's middle square: nothing may change, the picture stays"
            warnings.warn(message, EmptyMaskWarning, stacklevel=4)
        if (known >= 0).all():
            tokens, done = known, count
        elif not _is_set(options):
            with timed(timings, "text"):
                states = self._states(prompt, request.text_states)
            with timed(timings, "prefill"):
                text, null_text, null_picture = editor.project(states)
                prefix = self._prefix_for(len(tokens), sampling.guided, null_picture)
                first = prefix.read(text, null_text)
            with timed(timings, "decode"):
                if not _is_set(options):
                    steps = decode(prefix, first, count, sampling, request.seeds, known)
                    done = collect(steps, tokens, progress_watcher(on_progress), options.cancel)
        self._state = State(request, tokens, done)
        with timed(timings, "pixels"):
            pictures = self._pictures(tokens, mask if options.composite else None)
        timings["total"] = time.perf_counter() - started
        free = int((known[0] < 0).sum())
        return [
            EditResult(
                Image.fromarray(picture),
                own,
                dict(timings),
                self._parameters(request, seed, free),
                finished=done == count,
            )
            for picture, own, seed in zip(pictures, tokens, request.seeds, strict=True)
        ]

    def _known(self, mask: NDArray[np.bool_] | None, margin: int, source: NDArray[np.int32]) -> NDArray[np.int32]:
        """The source's tokens [B, N] outside of the mask, and -1 where tokens are to be drawn."""
        if mask is None:
            return np.full_like(source, -1)
        cells = dilate(touched_cells(mask, self.editor.grid), margin)
        return np.where(cells.ravel(), np.int32(-1), source)

    def _states(self, prompt: str, given: NDArray[np.float32] | None) -> NDArray[np.float32]:
        if given is not None:
            return given
        if self._text is None or self._text[0] != prompt:
            self._text = prompt, self.editor.encode_prompts([prompt])
        return self._text[1]

    def _prefix_for(self, rows: int, guided: bool, null_picture: NDArray[np.float32]) -> Prefix:
        kept = self._prefix
        if kept is None or kept.rows != rows or kept.guided != guided:
            self._prefix = None  # free its memory before the next one is made
            picture = picture_chunk(self.condition_tokens, null_picture)
            self._prefix = kept = self.editor.make_prefix(picture, [0] * rows, guided)
        return kept

    def _pictures(self, tokens: NDArray[np.int32], mask: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
        """Tokens [B, N] as pictures [B, H, W, 3], put into the source where a mask is given."""
        source = np.asarray(self.source)
        if mask is not None and not mask.any():
            return np.repeat(source[None], len(tokens), axis=0)
        pictures = to_pictures(self.editor.decode_tokens(tokens))
        if mask is None:
            return pictures
        # The seam lies inside the mask, and a quarter of a token's cell is enough to hide it.
        return composite(pictures, source, feather(mask, self.editor.image_size // self.editor.grid // 4))

    def _parameters(self, request: Request, seed: int, free: int) -> dict[str, str]:
        sampling = replace(request.sampling, seed=seed)
        own = self.editor.parameters(request.instruction, request.task, sampling)
        if request.options.mask is None:
            return own
        return own | {"mask": f"{free} of {self.editor.picture_tokens} tokens drawn"}


def _is_set(options: EditOptions) -> bool:
    return options.cancel is not None and options.cancel.is_set()
