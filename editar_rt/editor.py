"""The public entry: `load` a bundle, `edit` a picture."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from editar_rt.backends import make_backend
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import OptionError
from editar_rt.generation.decoding import Progress, collect, progress_watcher
from editar_rt.generation.sampling import Sampling
from editar_rt.images.pixels import Picture, read_pixels, to_pictures
from editar_rt.model import Model
from editar_rt.results import EditOptions, EditResult, timed
from editar_rt.session import Session
from editar_rt.text.prompts import as_text


class Editor(Model):
    """A loaded bundle. Parts are opened when first needed. Not thread-safe: one editor a thread."""

    # The main job.

    @overload
    def edit(
        self,
        image: Picture,
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
        image: Picture,
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
        image: Picture,
        instruction: str,
        task: str = "edit",
        sampling: Sampling | None = None,
        on_progress: Progress | None = None,
        text_states: NDArray[np.float32] | None = None,
        n: int | None = None,
        **options: Any,
    ) -> EditResult | list[EditResult]:
        """Edit a picture, or make one from a condition picture.

        Args:
            image: a path, a PIL image or a uint8 array; its middle square is used.
            instruction: what to change; for the other tasks what the picture shows. Longer than the text encoder
                reads is truncated with a TruncatedTextWarning.
            task: `edit`, `depth`, `canny` or `segmentation`.
            sampling: the bundle's defaults when None.
            on_progress: called with (tokens done, tokens in all) after every step.
            text_states: the text encoder's output [1, T, C] float32, computed elsewhere; the instruction is then
                only recorded.
            n: make this many variants at once, with the seeds seed, seed + 1, …; a list is returned then.
            options: the fields of `EditOptions`: `mask`, `cancel` and so on.

        Raises:
            PictureError, OptionError, MissingPartError, BackendError.
        """
        chosen = EditOptions(**options)
        results = self.open(image).run(instruction, task, sampling, on_progress, text_states, n, chosen)
        return results if n is not None else results[0]

    def open(self, image: Picture) -> Session:
        """Prepare a picture for any number of instructions: each after the first pays the text's prefill alone."""
        return Session(self, image)

    def edit_batch(
        self,
        images: Sequence[Picture],
        instructions: Sequence[str],
        task: str = "edit",
        sampling: Sampling | None = None,
        on_progress: Progress | None = None,
    ) -> list[EditResult]:
        """Edit several pictures at once, one instruction each. Every picture has the tokens that it has alone.

        Raises:
            as `edit`, and OptionError where there are not as many instructions as pictures.
        """
        if isinstance(instructions, str):
            raise OptionError("instructions are a sequence of texts, got one text; put it in a list")
        images, instructions = list(images), list(instructions)
        if len(images) != len(instructions) or not images:
            raise OptionError(
                f"give as many instructions as pictures, and at least one; got {len(instructions)} and {len(images)}"
            )
        instructions = [as_text(words) for words in instructions]
        sampling = Sampling.checked(sampling, self.default_sampling)
        timings: dict[str, float] = {}
        started = time.perf_counter()
        with timed(timings, "encode"):
            pixels = np.concatenate([read_pixels(image, self.image_size) for image in images])
            condition = self.encode_pixels(pixels)
        with timed(timings, "text"):
            states = self.encode_text(instructions, task)
        begun = time.perf_counter()
        steps = self.steps(states, condition, sampling)
        timings["prefill"] = time.perf_counter() - begun
        tokens = np.empty((len(images), self.picture_tokens), np.int32)
        with timed(timings, "decode"):
            collect(steps, tokens, progress_watcher(on_progress))
        with timed(timings, "pixels"):
            pictures = to_pictures(self.decode_tokens(tokens))
        timings["total"] = time.perf_counter() - started
        return [
            EditResult(Image.fromarray(picture), own, timings, self.parameters(words, task, sampling))
            for picture, own, words in zip(pictures, tokens, instructions, strict=True)
        ]


def load(path: str | os.PathLike[str], device: str = "auto", threads: int | None = None, cache: bool = True) -> Editor:
    """Open a bundle.

    Args:
        path: the bundle's folder.
        device: `auto`, `cpu`, `cuda` or `tensorrt`.
        threads: CPU threads; the engine's choice when None.
        cache: keep large weights as this machine's processor wants them, in the folder that `EDITAR_CACHE` names, so
            that the bundle opens faster next time (`editar_rt.backends.ort.prepacked`).

    Raises:
        BundleError: no bundle, a damaged one, or one of a newer format.
        BackendError: a device or library that is not there.
    """
    bundle = Bundle.open(path)
    return Editor(bundle, make_backend(bundle, device, threads, cache))
