"""The entry point of the Python API: `load` a bundle, `edit` a picture."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from editar_rt.arguments import as_list
from editar_rt.backends import Settings, make_backend
from editar_rt.batch import Batch
from editar_rt.bundle.folder import Bundle
from editar_rt.deprecated import batch_requests, takes_old_arguments, warn
from editar_rt.edit import Edit, Source
from editar_rt.errors import OptionError
from editar_rt.generation.scheduler import Scheduler
from editar_rt.images.fit import Fit
from editar_rt.images.pixels import Picture
from editar_rt.model import Model
from editar_rt.request import Options, Request, make_request
from editar_rt.results import Result, timed
from editar_rt.session import Session

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class Editor(Model):
    """A loaded bundle that edits pictures. Parts are opened on first use. Threads take turns, one edit at a time.

    As a context manager, it frees its memory at the end of the block.
    """

    @takes_old_arguments(2)
    def edit(self, image: Picture, instruction: str, **options: Unpack[Options]) -> Result:
        """Edit a picture, or make one from a condition picture.

        Args:
            image: a path, a file object, bytes, a PIL image or a uint8 array. Its middle square is used, unless `fit`
                says otherwise.
            instruction: the change to make; for the other tasks, a description of the picture to make.
            options: the other fields of `Request`: task, seed, cfg_scale, mask and so on. None means the bundle's
                default.

        Raises:
            PictureError, OptionError, MissingPartError, BackendError.
        """
        return self._run(image, instruction, options, 1)[0]

    def variants(self, image: Picture, instruction: str, n: int, **options: Unpack[Options]) -> list[Result]:
        """Edit one picture n times at once, with the seeds seed, seed + 1, …; arguments and errors as for `edit`."""
        return self._run(image, instruction, options, n)

    def session(self, image: Picture, fit: Fit | None = None, restore: bool = False) -> Session:
        """Prepare a picture for any number of instructions. Each one after the first prefills only its text.

        Args:
            fit, restore: fields of `Request`, for all edits of the session.
        """
        return Session(self, image, fit, restore)

    @batch_requests
    def edit_batch(self, requests: Iterable[Request]) -> list[Result]:
        """Edit several pictures at once, each with its own request. Each picture gets the same tokens as alone.

        `prefill` and `decode` in a result's timings are the seconds of all pictures together.

        Raises:
            OptionError: no requests, or one without an image.
            PictureError, MissingPartError, BackendError: as for `edit`.
        """
        requests = as_list("requests", requests, Request, "editar_rt.Request(image=…, instruction=…)")
        if any(request.image is None for request in requests):
            raise OptionError("each of requests must have an image: editar_rt.Request(image=…, instruction=…)")
        with self.exclusive():
            edits = [self._begin(request) for request in requests]
            drawing = [edit for edit in edits if not (edit.nothing_to_draw or edit.cancelled)]
            if drawing:
                self._draw(drawing)
            return [edit.finish().results[0] for edit in edits]

    def open(self, image: Picture) -> Session:
        """Deprecated: use `session`."""
        warn("editor.open(image)", "editor.session(image)")
        return self.session(image)

    def _run(self, image: Picture, instruction: str, options: Options, n: int) -> list[Result]:
        """Run one request in a session of its own; bad options are rejected before the picture is read."""
        request = make_request(None, instruction, {**options})
        request.sampling_over(self.default_sampling)
        return Session(self, image, request.fit, request.restore).run(request, n)

    def _begin(self, request: Request) -> Edit:
        assert request.image is not None  # checked before
        sampling = request.sampling_over(self.default_sampling)
        source = Source(self, request.image, request.fit, request.restore)
        return Edit(self, source, request, sampling, [sampling.seed])

    def _draw(self, edits: list[Edit]) -> None:
        """Run the loop for several pictures."""
        # 1) Encode the texts one by one, so that a text has the same states in any batch.
        inputs = []
        for edit in edits:
            states = edit.states(lambda prompt: self.encode_prompts([prompt]))
            inputs += self.inputs(states, edit.source.tokens[None])
        # 2) Prefill one picture after the other.
        guided = [edit.sampling.guided for edit in edits]
        timings: dict[str, float] = {}
        with timed(timings, "prefill"):
            batch = Batch(
                Scheduler(
                    self.backend, len(edits), sum(guided), self.prefix_length, self.picture_tokens, costs=self.costs
                )
            )
            for edit, each in zip(edits, inputs, strict=True):
                batch.join(edit, each, prefill=True)
        # 3) Decode all pictures together.
        with timed(timings, "decode"):
            while batch.members:
                batch.step()
        for edit in edits:
            edit.timings |= timings

    def close(self) -> None:
        """Free the weights; the editor cannot be used afterwards."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(path: str | os.PathLike[str], device: str = "auto", threads: int | None = None, cache: bool = True) -> Editor:
    """Load a bundle.

    Args:
        path: the bundle's folder.
        device: `auto`, `cpu`, `cuda`, `tensorrt`, or `emulated` (TensorRT's engines on the CPU, slow; for checks).
        threads: CPU threads; None lets the engine choose.
        cache: store weights prepacked for this machine's CPU on disk, in the folder named by `EDITAR_CACHE`, so that
            the bundle opens faster next time (`editar_rt.backends.ort.prepacked`). Not the KV cache.

    Raises:
        BundleError: the folder is not a bundle, or the bundle is damaged or of a newer format.
        BackendError: a device or library is missing; or the engines of TensorRT for RTX, which are compared with the
            exporting machine when they are loaded for the first time on a GPU, gave other outputs.
    """
    bundle = Bundle.open(path)
    editor = Editor(bundle, make_backend(bundle, device, Settings(threads, cache)))
    if editor.backend.needs_trial:
        from editar_rt.measure.gate import try_engines

        try_engines(editor)
    return editor
