"""One picture and its edits: what does not depend on the instruction is computed once."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from editar_rt.errors import EmptyMaskWarning, OptionError
from editar_rt.generation.decoding import Prefix, Progress, Watcher, collect, decode, picture_chunk, progress_watcher
from editar_rt.generation.sampling import Sampling, is_whole
from editar_rt.images.masks import composite, dilate, feather, read_mask, touched_cells
from editar_rt.images.pixels import Picture, fit_square, open_picture, to_pictures, to_pixels
from editar_rt.model import Model
from editar_rt.observe.preview import Previewer
from editar_rt.observe.trace import Header, Recorder, Trace, check_name, states_digest
from editar_rt.results import MAX_VARIANTS, EditOptions, EditResult, figure, timed
from editar_rt.text.prompts import as_text, build_prompt
from editar_rt.version import __version__


@dataclass(frozen=True)
class Request:
    """What was asked for, but for the picture."""

    instruction: str
    task: str
    sampling: Sampling
    seeds: tuple[int, ...]  # of the variants
    text_states: NDArray[np.float32] | None
    options: EditOptions

    def __post_init__(self) -> None:
        object.__setattr__(self, "instruction", as_text(self.instruction))


@dataclass
class State:
    """Where the last edit stands."""

    request: Request
    tokens: NDArray[np.int32]  # [variants, N]; the source's from `done` on
    done: int  # target tokens
    mask: NDArray[np.bool_] | None  # [H, W], what the result was put back by
    results: list[EditResult]


class Session:
    """A picture's tokens, and the decoder's cache of it.

    The first edit runs the picture and the text through the decoder, each later one the text alone, with the same
    tokens as a fresh `Editor.edit`. Made by `Editor.open`. Edits of one editor's sessions must not overlap.
    """

    def __init__(self, editor: Model, image: Picture) -> None:
        started = time.perf_counter()
        self.editor = editor
        opened = open_picture(image)
        self.size = opened.size
        """Width and height of the picture as given, pixels."""
        self.source = fit_square(opened, editor.image_size)
        """The square of it that the model sees."""
        self.condition_tokens = editor.encode_pixels(to_pixels(np.asarray(self.source)[None]))  # [1, N]
        self._encode_seconds = time.perf_counter() - started  # counted by the first edit
        self._prefix: Prefix | None = None
        self._text: tuple[str, NDArray[np.float32]] | None = None  # the last prompt and its states
        self._state: State | None = None
        # Of a picture's decoding, until one was timed: usual VQ decoders do about twice the encoder's work.
        self._pixel_seconds = 2 * self._encode_seconds
        self._kept: NDArray[np.int32] | None = None  # the last edit's first tokens, after rewinding

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
        sampling = Sampling.checked(sampling, self.editor.default_sampling)
        if options.mask is not None and task != "edit":
            raise OptionError(f"a mask keeps parts of the picture, which task {task} does not; masks are for task edit")
        request = Request(instruction, task, sampling, variant_seeds(sampling.seed, n), text_states, options)
        return self._run(request, on_progress, None)

    def rewind(self, row: int | None = None, variant: int = 0) -> Session:
        """Go back to the beginning of a row of tokens of the last edit, for `reroll` to go on from there.

        Args:
            row: what lies above it stays, token for token; 0 to the rows done. None is where the edit stopped, in
                the middle of a row after cancelling.
            variant: which one of several to go on with.

        Raises:
            OptionError: no edit yet, or a row or variant that there is not.
        """
        state = self._state
        if state is None:
            raise OptionError("there is nothing to rewind: this session has edited nothing yet")
        rows = state.done // self.editor.grid
        if row is not None and not 0 <= row <= rows:
            raise OptionError(f"row must be 0 to {rows}, which is what the last edit has done, got {row}")
        if not 0 <= variant < len(state.tokens):
            raise OptionError(f"variant must be 0 to {len(state.tokens) - 1}, got {variant}")
        self._kept = state.tokens[variant, : state.done if row is None else row * self.editor.grid]
        return self

    @overload
    def reroll(
        self,
        instruction: str | None = None,
        seed: int | None = None,
        on_progress: Progress | None = None,
        text_states: NDArray[np.float32] | None = None,
        n: None = None,
        **options: Any,
    ) -> EditResult: ...

    @overload
    def reroll(
        self,
        instruction: str | None = None,
        seed: int | None = None,
        on_progress: Progress | None = None,
        text_states: NDArray[np.float32] | None = None,
        *,
        n: int,
        **options: Any,
    ) -> list[EditResult]: ...

    def reroll(
        self,
        instruction: str | None = None,
        seed: int | None = None,
        on_progress: Progress | None = None,
        text_states: NDArray[np.float32] | None = None,
        n: int | None = None,
        **options: Any,
    ) -> EditResult | list[EditResult]:
        """Go on from where `rewind` went back to, with another seed or instruction; the rest as in the last edit.

        The tokens drawn are those that an edit with these arguments would draw behind the ones that stay. With the
        same instruction nothing is run again; another one is read, and then the kept tokens as one chunk.

        Args:
            instruction: the last one when None.
            seed: the last one when None: what was cancelled goes on as if it had not been.
            n: make this many variants of what follows, with the seeds seed, seed + 1, …; a list is returned then.
            options: fields of `EditOptions` that differ from the last edit's; `cancel` and `trace` start anew.

        Raises:
            as `edit`, and OptionError where nothing was rewound.
        """
        state, kept = self._state, self._kept
        if state is None or kept is None:
            raise OptionError("there is nothing to go on from: call rewind(row) after an edit")
        last = state.request
        if instruction is None:
            instruction, text_states = last.instruction, last.text_states if text_states is None else text_states
        sampling = last.sampling if seed is None else replace(last.sampling, seed=seed)
        changed = replace(last.options, **{"cancel": None, "trace": None} | options)
        seeds = variant_seeds(sampling.seed, n)
        results = self._run(Request(instruction, last.task, sampling, seeds, text_states, changed), on_progress, kept)
        return results if n is not None else results[0]

    def frames(self, variant: int = 0) -> list[Image.Image]:
        """The last edit appearing row by row: the source, then a picture for every row of tokens that changed.

        Each is decoded for this, whatever previews there were.

        Raises:
            OptionError: no edit yet, or a variant that there is not.
        """
        state = self._state
        if state is None or not 0 <= variant < len(state.tokens):
            raise OptionError("there is no such edit to show: edit first, and take a variant of it")
        final, shown = state.tokens[variant], self.condition_tokens[0].copy()
        frames = [self.source]
        for row in range(self.editor.grid):
            part = slice(row * self.editor.grid, (row + 1) * self.editor.grid)
            if not np.array_equal(shown[part], final[part]):
                shown[part] = final[part]
                frames.append(Image.fromarray(self._pictures(shown[None], state.mask)[0]))
        return frames

    def close(self) -> None:
        """Free the decoder's cache; the next edit makes it again."""
        self._prefix = None

    def _repr_html_(self) -> str:
        made = self._state.results if self._state is not None else []
        return figure(self.source, "source") + "".join(result._repr_html_() for result in made)

    def _run(self, request: Request, on_progress: Progress | None, kept: NDArray[np.int32] | None) -> list[EditResult]:
        """Do what is asked for, behind the tokens that are kept."""
        editor, options, sampling = self.editor, request.options, request.sampling
        prompt = build_prompt(request.task, request.instruction)
        if options.trace is not None:
            check_name(Path(options.trace))
        timings = {"encode": self._encode_seconds, **dict.fromkeys(("text", "prefill", "decode", "pixels"), 0.0)}
        started = time.perf_counter() - self._encode_seconds
        mask = None if options.mask is None else read_mask(options.mask, self.size, editor.image_size)
        if mask is not None and not mask.any():
            message = "the mask has no white within the picture's middle square: nothing may change, the picture stays"
            warnings.warn(message, EmptyMaskWarning, stacklevel=4)
        shown_mask = mask if options.composite else None
        tokens = np.repeat(self.condition_tokens, len(request.seeds), axis=0)
        known = self._known(mask, options.mask_margin, tokens)
        rows, count = tokens.shape
        done = 0 if kept is None else len(kept)
        if kept is not None:
            tokens[:, :done] = known[:, :done] = kept
        recorder, previewer = Recorder(rows, count, sampling), None
        watchers: list[Watcher] = []
        if (known >= 0).all():
            tokens, done = known, count
        elif not _is_set(options):
            with timed(timings, "text"):
                states = self._states(prompt, request.text_states)
            with timed(timings, "prefill"):
                text, null_text, null_picture = editor.project(states)
                prefix = self._prefix_for(rows, sampling.guided, null_picture)
                first = prefix.read(text, null_text)
            with timed(timings, "decode"):
                if options.trace is not None:
                    watchers.append(recorder := Recorder(rows, count, sampling))
                watchers += progress_watcher(on_progress)
                if options.on_preview is not None:
                    watchers.append(previewer := self._previewer(options, shown_mask))
                if not _is_set(options):
                    steps = decode(prefix, first, count, sampling, request.seeds, known)
                    done = max(done, collect(steps, tokens, watchers, options.cancel))
        if previewer is not None:
            timings["decode"] -= previewer.seconds
            timings["preview"] = previewer.seconds
            timings["preview_share"] = previewer.seconds / max(timings["decode"], 1e-9)
        with timed(timings, "pixels"):
            pictures = self._pictures(tokens, shown_mask)
        timings["total"] = time.perf_counter() - started
        free = int((known[0] < 0).sum())
        results = [
            EditResult(
                Image.fromarray(picture), own, dict(timings), self._parameters(request, seed, free), done == count
            )
            for picture, own, seed in zip(pictures, tokens, request.seeds, strict=True)
        ]
        self._encode_seconds = 0.0
        self._state, self._kept = State(request, tokens, done, shown_mask, results), None
        if options.trace is not None:
            self._trace(request, tokens, recorder, done, results).save(options.trace)
        return results

    def _previewer(self, options: EditOptions, mask: NDArray[np.bool_] | None) -> Previewer:
        def show(tokens: NDArray[np.int32], done: int) -> None:
            if options.on_preview is not None:
                options.on_preview(Image.fromarray(self._pictures(tokens[:1], mask)[0]), done, tokens.shape[1])

        return Previewer(show, options.preview_share, self._pixel_seconds, self.editor.grid)

    def _trace(
        self, request: Request, tokens: NDArray[np.int32], recorder: Recorder, done: int, results: list[EditResult]
    ) -> Trace:
        header = Header(
            bundle=self.editor.bundle.fingerprint,
            backend=self.editor.backend.name,
            version=__version__,
            instruction=request.instruction,
            task=request.task,
            sampling=request.sampling.settings(tokens.shape[1]),
            seeds=list(request.seeds),
            condition_tokens=self.condition_tokens[0].tolist(),
            done=done,
            timings=results[0].timings,
            text_states=None if request.text_states is None else states_digest(request.text_states),
        )
        return Trace(
            header,
            tokens,
            recorder.drawn,
            recorder.log_probabilities,
            recorder.entropy,
            recorder.seconds,
            [result.image for result in results],
        )

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
        started = time.perf_counter()
        pictures = to_pictures(self.editor.decode_tokens(tokens))
        self._pixel_seconds = (time.perf_counter() - started) / len(tokens)
        if mask is None:
            return pictures
        return composite(pictures, source, feather(mask, self.editor.grid))

    def _parameters(self, request: Request, seed: int, free: int) -> dict[str, str]:
        sampling = replace(request.sampling, seed=seed)
        own = self.editor.parameters(request.instruction, request.task, sampling)
        if request.options.mask is None:
            return own
        return own | {"mask": f"{free} of {self.editor.picture_tokens} tokens drawn"}


def variant_seeds(seed: int, n: int | None) -> tuple[int, ...]:
    """Seeds of n variants, seed, seed + 1, …, around at 2⁶⁴; of one for None.

    Raises:
        OptionError: n is not 1 to `MAX_VARIANTS`.
    """
    if n is not None and not (is_whole(n) and 1 <= n <= MAX_VARIANTS):
        raise OptionError(f"n must be 1 to {MAX_VARIANTS}, got {n!r}")
    return tuple((seed + i) % 2**64 for i in range(n or 1))


def _is_set(options: EditOptions) -> bool:
    return options.cancel is not None and options.cancel.is_set()
