"""One edit: from a request to known tokens, sequences and observers, and from tokens to results.

The caller runs the loop in between, so that a session's edit, its variants and a batch of pictures share this code.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from editar_rt.errors import BackendError, EmptyMaskWarning, OptionError
from editar_rt.generation.decoding import Job, Watcher, progress_watcher
from editar_rt.generation.sampling import Sampling
from editar_rt.generation.scheduler import Scheduler
from editar_rt.generation.sequence import Context, Inputs, Sequence
from editar_rt.generation.strategy import Jacobi
from editar_rt.images.fit import Fit, Fitted
from editar_rt.images.masks import composite, dilate, feather, read_mask, touched_cells
from editar_rt.images.pixels import Picture, open_picture, to_pictures, to_pixels
from editar_rt.model import Model
from editar_rt.observe.preview import Previewer
from editar_rt.observe.trace import Header, Recorder, Trace, check_name, states_digest
from editar_rt.request import Request
from editar_rt.results import Result, timed
from editar_rt.version import __version__

Ints = NDArray[np.int32]


class Source:
    """A source picture as the model sees it.

    Args:
        image: the picture, or one that is fitted already, which `fit` and `keep` do not change.
        fit: how the picture is fitted to the model's square.
        keep: keep the original, into which results will be pasted back.

    Raises:
        PictureError: the picture cannot be read.
        OptionError: an unknown fit.
    """

    def __init__(self, model: Model, image: Picture | Fitted, fit: Fit | None = None, keep: bool = False) -> None:
        started = time.perf_counter()
        fitted = image if isinstance(image, Fitted) else Fitted.of(open_picture(image), model.image_size, fit, keep)
        self.placement, self.original = fitted.placement, fitted.original
        self.size = fitted.placement.size
        """Width and height of the original, pixels."""
        self.square = fitted.square
        """The square that the model sees."""
        self.tokens = model.encode_pixels(to_pixels(np.asarray(self.square)[None]))[0]
        """[N]"""
        self.encode_seconds = time.perf_counter() - started
        """Included in the timings of the first edit only."""
        # Estimated seconds to decode one picture, until measured: VQ decoders take about twice as long as encoders.
        self.pixel_seconds = 2 * self.encode_seconds

    def pictures(self, model: Model, tokens: Ints, mask: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
        """Decode tokens [B, N] to pictures [B, H, W, 3], composited into the source if there is a mask.

        Raises:
            BackendError: the decoder's pixels are not finite.
        """
        source = np.asarray(self.square)
        if mask is not None and not mask.any():
            return np.repeat(source[None], len(tokens), axis=0)
        started = time.perf_counter()
        pixels = np.concatenate(
            [model.decode_tokens(each[None]) for each in tokens]
        )  # one by one: the same pixels in any batch
        if not np.isfinite(pixels).all():
            raise BackendError(
                f"the VQ decoder gave pixels that are not finite; check the bundle with: editar verify "
                f"{model.bundle.folder}"
            )
        pictures = to_pictures(pixels)
        self.pixel_seconds = (time.perf_counter() - started) / len(tokens)
        return pictures if mask is None else composite(pictures, source, feather(mask, model.grid))


@dataclass(frozen=True)
class Kept:
    """The state of an edit, from which it can be continued."""

    request: Request
    sampling: Sampling
    tokens: Ints
    """[variants, N]; from `done` on, the source's tokens."""
    done: int
    mask: NDArray[np.bool_] | None
    """[H, W], the mask that the results were composited with."""
    results: list[Result]


class Edit:
    """One request on one source.

    Args:
        seeds: one per variant.
        kept: target tokens [M] of an earlier edit of the source, which stay.
        sampling: all settings except the seeds.
    """

    def __init__(
        self,
        model: Model,
        source: Source,
        request: Request,
        sampling: Sampling,
        seeds: Iterable[int],
        kept: Ints | None = None,
    ) -> None:
        self.model, self.source, self.request, self.sampling = model, source, request, sampling
        self.seeds = list(seeds)
        if request.trace is not None:
            check_name(Path(request.trace))
        self.timings = {"encode": source.encode_seconds, **dict.fromkeys(("text", "prefill", "decode", "pixels"), 0.0)}
        self._started = time.perf_counter() - source.encode_seconds
        fit = source.placement.how
        if request.fit not in (None, fit):
            raise OptionError(f"the session was opened with fit {fit}; open another session for fit {request.fit}")
        if request.restore and source.original is None:
            raise OptionError("to paste results back into the picture, open the session with restore=True")
        mask = None if request.mask is None else read_mask(request.mask, source.size, model.image_size, fit)
        if mask is not None and not mask.any():
            region = "the picture's middle square" if fit == "crop" else "the picture"
            message = f"the mask has no white within {region}, so the picture stays as it is"
            warnings.warn(message, EmptyMaskWarning, stacklevel=6)
        self._mask = mask if request.composite else None
        self.known = self._known(mask)
        """[N], the source's tokens outside the mask, and -1 where tokens are sampled."""
        self.tokens = np.repeat(source.tokens[None], len(self.seeds), axis=0)
        """[variants, N]; positions that are not done yet hold the source's tokens."""
        self._free = int((self.known < 0).sum())
        self._done = 0 if kept is None else len(kept)
        if kept is not None:
            self.tokens[:, : self._done] = self.known[: self._done] = kept
        self.nothing_to_draw = bool((self.known >= 0).all())
        """Every token is known, so the decoder is not needed."""
        self.cancelled = request.cancel is not None and request.cancel.is_set()
        self._recorder = Recorder(len(self.seeds), model.picture_tokens, sampling) if request.trace else None
        self._previewer = self._make_previewer() if request.on_preview is not None else None
        self._job: Job | None = None
        self._sequences: list[Sequence] = []

    def states(self, encode: Callable[[str], NDArray[np.float32]]) -> NDArray[np.float32]:
        """The text states [1, T, C], from the request or encoded."""
        with timed(self.timings, "text"):
            return encode(self.request.prompt) if self.request.states is None else self.request.states

    def sequences(self, scheduler: Scheduler, contexts: Iterable[Context], inputs: Inputs) -> list[Sequence]:
        """One sequence for each variant, over contexts of the scheduler.

        Raises:
            OptionError: a guidance schedule of another length, or a `speculate` that the decoder cannot run.
        """
        count, speculate = self.model.picture_tokens, self.request.speculate
        return [
            Sequence(
                context,
                inputs,
                self.sampling,
                seed,
                self.known,
                count,
                scheduler.speculation(speculate, Jacobi(self.source.tokens)),
            )
            for context, seed in zip(contexts, self.seeds, strict=True)
        ]

    def job(self, sequences: Iterable[Sequence]) -> Job:
        """A job of the sequences and all that watch them."""
        observers = [each for each in (self._recorder, self._previewer) if each is not None]
        for observer in observers:
            observer.begin()
        watchers: list[Watcher] = [*progress_watcher(self.request.on_progress), *observers]
        self._sequences = list(sequences)
        self._job = Job.of(self._sequences, self.tokens, watchers, self.request.cancel)
        return self._job

    def preview(self) -> Image.Image:
        """The square of the first variant so far: tokens that are not done yet are the source's."""
        return Image.fromarray(self.source.pictures(self.model, self.tokens[:1], self._mask)[0])

    def finish(self) -> Kept:
        """Decode the pictures, compose the results and write the trace."""
        # How far the loop came; without a loop, everything was known or the edit was cancelled before it began.
        count = self.model.picture_tokens
        if self.nothing_to_draw:
            self.tokens[:], self._done = self.known, count
        elif self._job is not None:
            self._done = max(self._done, self._job.done)
        # Previews ran inside the loop, but are reported as a stage of their own.
        if self._previewer is not None:
            self.timings["decode"] -= self._previewer.seconds
            self.timings["preview"] = self._previewer.seconds
        with timed(self.timings, "pixels"):
            pictures = self.source.pictures(self.model, self.tokens, self._mask)
        self.source.encode_seconds = 0.0
        self.timings["total"] = time.perf_counter() - self._started
        passes = [sequence.passes for sequence in self._sequences] or [0] * len(self.seeds)
        results = [
            self._result(Image.fromarray(picture), own, seed, runs)
            for picture, own, seed, runs in zip(pictures, self.tokens, self.seeds, passes, strict=True)
        ]
        if self._recorder is not None and self.request.trace is not None:
            self._trace(self._recorder, results).save(self.request.trace)
        return Kept(self.request, self.sampling, self.tokens, self._done, self._mask, results)

    def _result(self, square: Image.Image, tokens: Ints, seed: int, passes: int) -> Result:
        finished, original = self._done == self.model.picture_tokens, self.source.original
        given = dict(self.timings), self._parameters(seed), finished, seed, self.request
        if original is None:
            return Result(square, tokens, *given, passes=passes)
        share = None if self._mask is None else feather(self._mask, self.model.grid)
        return Result(self.source.placement.restore(square, original, share=share), tokens, *given, square, passes)

    def _known(self, mask: NDArray[np.bool_] | None) -> Ints:
        if mask is None:
            return np.full_like(self.source.tokens, -1)
        cells = dilate(touched_cells(mask, self.model.grid), self.request.mask_margin)
        return np.where(cells.ravel(), np.int32(-1), self.source.tokens)

    def _make_previewer(self) -> Previewer:
        on_preview = self.request.on_preview

        def show(tokens: Ints, done: int) -> None:
            if on_preview is not None:
                on_preview(self.preview(), done, tokens.shape[1])

        return Previewer(show, self.request.preview_share, self.source.pixel_seconds, self.model.grid)

    def _parameters(self, seed: int) -> dict[str, str]:
        sampling = replace(self.sampling, seed=seed)
        own = self.model.parameters(self.request.instruction, self.request.task, sampling)
        if self.request.mask is None:
            return own
        return own | {"mask": f"{self._free} of {self.model.picture_tokens} tokens drawn"}

    def _trace(self, recorder: Recorder, results: list[Result]) -> Trace:
        states = self.request.states
        header = Header(
            bundle=self.model.bundle.fingerprint,
            backend=self.model.backend.name,
            version=__version__,
            instruction=self.request.instruction,
            task=self.request.task,
            sampling=self.sampling.settings(self.tokens.shape[1]),
            seeds=list(self.seeds),
            condition_tokens=self.source.tokens.tolist(),
            done=self._done,
            timings=results[0].timings,
            text_states=None if states is None else states_digest(states),
            speculate=self.request.speculate,
            passes=[result.passes for result in results],
        )
        return recorder.trace(header, self.tokens, [result.image for result in results])
