"""One picture and its edits: everything that does not depend on the instruction is computed once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from editar_rt.arguments import as_flag, as_instance, is_integer
from editar_rt.deprecated import takes_old_arguments, warn
from editar_rt.edit import Edit, Kept, Source
from editar_rt.errors import BusyError, OptionError
from editar_rt.generation.decoding import run_jobs
from editar_rt.generation.scheduler import Scheduler
from editar_rt.generation.sequence import Context
from editar_rt.images.fit import Fit
from editar_rt.images.pixels import Picture
from editar_rt.model import Model
from editar_rt.request import FIELDS, SAMPLING_FIELDS, Options, Request, make_request, variant_seeds
from editar_rt.results import Result, figure, timed

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Session:
    """A picture with its tokens and its rows of the KV cache. Created by `Editor.session`.

    The first edit prefills the picture and the text, each later edit only the text; the tokens are the same as those of
    `Editor.edit`. Only one thread at a time may use a session.
    """

    def __init__(self, model: Model, image: Picture, fit: Fit | None = None, restore: bool = False) -> None:
        self.model = model
        as_flag("restore", restore)
        with model.exclusive():
            self._source = Source(model, image, fit, restore)
        self._busy = threading.Lock()
        self._scheduler: Scheduler | None = None
        self._contexts: list[Context] = []
        self._text: tuple[str, NDArray[np.float32]] | None = None  # the last prompt and its states
        self._kept: Kept | None = None
        self._rewound: tuple[int | None, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture as given, pixels."""
        return self._source.size

    @property
    def source(self) -> Image.Image:
        """The square of the picture that the model sees."""
        return self._source.square

    @property
    def condition_tokens(self) -> NDArray[np.int32]:
        """[1, N]"""
        tokens: NDArray[np.int32] = self._source.tokens[None]
        return tokens

    # Edits.

    @takes_old_arguments(1)
    def edit(self, instruction: str, **options: Unpack[Options]) -> Result:
        """Edit the picture; the keywords are the fields of `Request`.

        Raises:
            PictureError, OptionError, MissingPartError, BackendError, BusyError.
        """
        return self._run(make_request(None, instruction, dict(options)), 1, None)[0]

    def variants(self, instruction: str, n: int, **options: Unpack[Options]) -> list[Result]:
        """Edit n times at once, with the seeds seed, seed + 1, …; arguments and errors as for `edit`.

        Args:
            n: 1 to `request.MAX_VARIANTS`.
        """
        return self._run(make_request(None, instruction, dict(options)), n, None)

    def resume(
        self,
        row: int | None = None,
        *,
        variant: int = 0,
        instruction: str | None = None,
        **options: Unpack[Options],
    ) -> Result:
        """Continue the last edit from the start of a line of tokens, and sample the rest again.

        The new tokens are those that an edit with these arguments would sample after the kept ones. With the same
        instruction, nothing is recomputed; a different one is prefilled, and then the kept tokens as one chunk.

        Args:
            row: the tokens of the lines above it are kept; 0 to the number of complete lines. None continues where the
                edit stopped, which after cancelling may be in the middle of a line.
            variant: the result to continue, if there are several.
            instruction: None keeps the last one.
            options: fields of `Request` that differ from the last edit, including the seed. With the same seed, a
                cancelled edit continues as if it had not been cancelled. `cancel` and `trace` are not kept.

        Raises:
            OptionError: there is no edit yet, or no such line or variant.
            PictureError, MissingPartError, BackendError, BusyError: as for `edit`.
        """
        return self.resume_variants(1, row, variant=variant, instruction=instruction, **options)[0]

    def resume_variants(
        self,
        n: int,
        row: int | None = None,
        *,
        variant: int = 0,
        instruction: str | None = None,
        **options: Unpack[Options],
    ) -> list[Result]:
        """`resume` with n seeds: seed, seed + 1, …"""
        kept, tokens = self._tokens_above(row, variant)
        return self._run(_changed(kept, instruction, dict(options)), n, tokens)

    def rewind(self, row: int | None = None, variant: int = 0) -> Session:
        """Deprecated: the first half of `resume`."""
        warn("session.rewind(row).reroll(seed=)", "session.resume(row, seed=)")
        self._tokens_above(row, variant)
        self._rewound = row, variant
        return self

    def reroll(self, instruction: str | None = None, seed: int | None = None, **options: Any) -> Any:
        """Deprecated: the second half of `resume`."""
        if self._rewound is None:
            raise OptionError("there is nothing to continue; call resume(row) after an edit")
        (row, variant), self._rewound = self._rewound, None
        n = options.pop("n", None)
        changes = {"variant": variant, "seed": seed, "instruction": instruction, **options}
        results = self.resume_variants(1 if n is None else n, row, **changes)
        return results[0] if n is None else results

    def frames(self, variant: int = 0) -> list[Image.Image]:
        """Frames of the last edit appearing line by line: the source, then one picture per changed line of tokens.

        Every frame is decoded anew, regardless of previews.

        Raises:
            OptionError: there is no edit yet, or no such variant.
        """
        kept = self._last()
        self._check_variant(kept, variant)
        final, shown = kept.tokens[variant], self._source.tokens.copy()
        frames = [self.source]
        with self._used():
            for part in np.split(np.arange(len(final)), self.model.grid):
                if not np.array_equal(shown[part], final[part]):
                    shown[part] = final[part]
                    picture = self._source.pictures(self.model, shown[None], kept.mask)[0]
                    frames.append(Image.fromarray(picture))
        return frames

    def close(self) -> None:
        """Free the KV cache; the next edit allocates it again."""
        self._scheduler, self._contexts = None, []

    def _repr_html_(self) -> str:
        made = self._kept.results if self._kept is not None else []
        return figure(self.source, "source") + "".join(result._repr_html_() for result in made)

    def _tokens_above(self, row: int | None, variant: int) -> tuple[Kept, NDArray[np.int32]]:
        """The state of the last edit, and its tokens above a line."""
        kept = self._last()
        lines = kept.done // self.model.grid
        if row is not None and not (is_integer(row) and 0 <= row <= lines):
            raise OptionError(
                f"row must be 0 to {lines}, the number of lines that the last edit completed, got {row!r:.60}"
            )
        self._check_variant(kept, variant)
        return kept, kept.tokens[variant, : kept.done if row is None else row * self.model.grid]

    def _last(self) -> Kept:
        if self._kept is None:
            raise OptionError("there is nothing to continue; this session has not edited yet")
        return self._kept

    @staticmethod
    def _check_variant(kept: Kept, variant: int) -> None:
        if not (is_integer(variant) and 0 <= variant < len(kept.tokens)):
            raise OptionError(f"variant must be 0 to {len(kept.tokens) - 1}, got {variant!r:.60}")

    @contextmanager
    def _used(self) -> Iterator[None]:
        """Reject concurrent use: the rows and tokens belong to one edit at a time."""
        if not self._busy.acquire(blocking=False):
            raise BusyError(
                "another call is using this session; wait for it, or open one session per thread: editor.session(image)"
            )
        try:
            with self.model.exclusive():
                yield
        finally:
            self._busy.release()

    def _run(self, request: Request, n: int, tokens: NDArray[np.int32] | None) -> list[Result]:
        """Run a request, continuing after the kept tokens [M]."""
        with self._used():
            model = self.model
            sampling = request.sampling_over(model.default_sampling)
            edit = Edit(model, self._source, request, sampling, variant_seeds(sampling.seed, n), tokens)
            if not (edit.nothing_to_draw or edit.cancelled):
                # 1) Encode the text, unless the last edit had the same.
                states = edit.states(self._encode)
                # 2) Prefill the picture once, then the text; the other variants copy both.
                with timed(edit.timings, "prefill"):
                    (inputs,) = model.inputs(states, self.condition_tokens)
                    scheduler, contexts = self._rows(n, sampling.guided)
                    sequences = edit.sequences(scheduler, contexts, inputs)
                    for sequence in sequences:
                        scheduler.prefill(sequence)
                # 3) Decode all variants together.
                with timed(edit.timings, "decode"):
                    run_jobs(scheduler, [edit.job(sequences)])
            # 4) Decode the tokens to pictures.
            self._kept = edit.finish()
            return self._kept.results

    def run(self, request: Request, n: int = 1) -> list[Result]:
        """A whole request, whose own image is not looked at; n variants of it. Errors as `edit`."""
        as_instance("request", request, Request, "an editar_rt.Request")
        return self._run(request, n, None)

    def _encode(self, prompt: str) -> NDArray[np.float32]:
        if self._text is None or self._text[0] != prompt:
            self._text = prompt, self.model.encode_prompts([prompt])
        return self._text[1]

    def _rows(self, pictures: int, guided: bool) -> tuple[Scheduler, list[Context]]:
        """Rows of the KV cache; those of the last edit if their number fits."""
        scheduler = self._scheduler
        if scheduler is None or (scheduler.pictures, scheduler.guided) != (pictures, pictures if guided else 0):
            self.close()  # free its memory before the next one is allocated
            self._scheduler = scheduler = self.model.scheduler(pictures, guided)
            self._contexts = [scheduler.join(guided) for _ in range(pictures)]
        return scheduler, self._contexts


def _changed(kept: Kept, instruction: str | None, options: dict[str, Any]) -> Request:
    """The last request with some fields changed."""
    last = kept.request
    fields = {name: getattr(last, name) for name in FIELDS if name not in ("image", "instruction")}
    fields |= {"cancel": None, "trace": None}
    if options.get("seed", 0) is None:
        options = {name: value for name, value in options.items() if name != "seed"}
    if any(name in options for name in SAMPLING_FIELDS) and last.sampling is not None:
        fields["sampling"] = None  # replaced by its fields, some of which change
        fields |= last.sampling.given
    if instruction is not None:
        fields["text_states"] = None
    return make_request(None, last.instruction if instruction is None else instruction, fields | options)
