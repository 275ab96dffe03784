"""A loaded bundle: its parts and the decoding loop, as functions on arrays. `editor` adds pictures and files."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator
from collections.abc import Sequence as Several
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from editar_rt import names
from editar_rt.arguments import as_list
from editar_rt.backends.base import Backend
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import MissingPartError, OptionError, TruncatedTextWarning
from editar_rt.generation.decoding import Job, Progress, Step, decode, progress_watcher, run_jobs
from editar_rt.generation.sampling import Sampling
from editar_rt.generation.scheduler import Scheduler
from editar_rt.generation.sequence import Inputs, Sequence, state_chunk, token_chunk
from editar_rt.generation.strategy import Costs, Jacobi, Speculate, check_speculate
from editar_rt.text.prompts import build_prompt
from editar_rt.text.tokenizer import TextTokenizer
from editar_rt.version import __version__


class Model:
    """A loaded bundle as functions on arrays. Parts are opened on first use."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self.backend = backend
        self.model = bundle.manifest.model
        self._tokenizer: TextTokenizer | None = None
        self.default_sampling = bundle.default_sampling
        self.costs = Costs()
        """Of the decoder's passes, as measured so far."""
        self._turn = threading.RLock()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Give one thread at a time the use of the engines; others wait."""
        with self._turn:
            yield

    # Sizes.

    @property
    def image_size(self) -> int:
        """Side of the pictures in pixels."""
        if self.model.image_size is None:
            raise MissingPartError(f"the bundle {self.bundle.folder} has no VQ tokenizer, so it has no picture size")
        return self.model.image_size

    @property
    def picture_tokens(self) -> int:
        """N, the number of tokens of a picture."""
        if self.model.picture_tokens is None:
            raise MissingPartError(f"the bundle {self.bundle.folder} has neither a VQ tokenizer nor a transformer")
        return self.model.picture_tokens

    @property
    def grid(self) -> int:
        """Number of tokens along one side of a picture."""
        return math.isqrt(self.picture_tokens)

    def parameters(self, instruction: str, task: str, sampling: Sampling) -> dict[str, str]:
        """The metadata of a result: how it was made."""
        settings = {name: str(value) for name, value in sampling.settings(self.picture_tokens).items()}
        identity = {"bundle": self.bundle.fingerprint, "backend": self.backend.name, "version": __version__}
        return {"instruction": instruction, "task": task, **settings, **identity}

    # Its parts.

    def encode_text(self, texts: Several[str], tasks: Several[str] | str = "edit") -> NDArray[np.float32]:
        """Instructions or descriptions → the text encoder's states, float32 [B, T, C].

        Args:
            tasks: one task for all texts, or one for each.
        """
        texts = as_list("texts", texts, str, "texts")
        tasks = tasks if isinstance(tasks, str) else as_list("tasks", tasks, str, "names of tasks")
        each = [tasks] * len(texts) if isinstance(tasks, str) else list(tasks)
        if len(each) != len(texts):
            raise OptionError(f"tasks must be one name or one for each of {len(texts)} texts, got {len(each)}")
        return self.encode_prompts([build_prompt(task, text) for task, text in zip(each, texts, strict=True)])

    def encode_prompts(self, prompts: Several[str]) -> NDArray[np.float32]:
        """Complete prompts → the text encoder's states, float32 [B, T, C]."""
        if self._tokenizer is None:
            if names.TEXT_ENCODER not in self.bundle.manifest.parts or self.bundle.manifest.tokenizer is None:
                raise MissingPartError(
                    f"the bundle {self.bundle.folder} has no text encoder; give text_states computed elsewhere, or "
                    "export the bundle with --text-encoder"
                )
            path = self.bundle.path(self.bundle.manifest.tokenizer)
            self._tokenizer = TextTokenizer.read(path, self.model.text_tokens or 0)
        encoded = self._tokenizer.encode(as_list("prompts", prompts, str, "texts"))
        for count in encoded.tokens:
            if count > self._tokenizer.length:
                message = f"the prompt has {count} tokens; only the first {self._tokenizer.length} are read"
                warnings.warn(message, TruncatedTextWarning, stacklevel=3)
        feeds = {names.INPUT_IDS: encoded.ids, names.ATTENTION_MASK: encoded.mask}
        return self.backend.run(names.TEXT_ENCODER, feeds)[names.TEXT_STATES]

    def encode_pixels(self, pixels: NDArray[np.float32]) -> NDArray[np.int32]:
        """Pixels float32 [B, 3, H, W] in [-1, 1] → tokens int32 [B, N]."""
        side, pixels = self.image_size, np.asarray(pixels)
        if pixels.ndim != 4 or pixels.shape[1:] != (3, side, side) or not np.issubdtype(pixels.dtype, np.floating):
            given = f"{pixels.dtype} {list(pixels.shape)}"
            raise OptionError(f"pixels must be floats of -1 to 1, [B, 3, {side}, {side}], got {given}")
        if not len(pixels):
            raise OptionError("pixels must contain at least one picture, got none")
        return self.backend.run(names.VQ_ENCODER, {names.PIXELS: np.asarray(pixels, np.float32)})[names.TOKENS]

    def decode_tokens(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Tokens int32 [B, N] → pixels float32 [B, 3, H, W], about [-1, 1]."""
        checked = self._check_tokens("tokens", tokens, self.model.codebook_size)
        if not len(checked):
            raise OptionError("tokens must contain at least one picture, got none")
        return self.backend.run(names.VQ_DECODER, {names.TOKENS: checked})[names.PIXELS]

    def generate(
        self,
        text_states: NDArray[np.float32],
        condition_tokens: NDArray[np.int32] | None,
        sampling: Sampling | None = None,
        on_progress: Progress | None = None,
        known_tokens: NDArray[np.int32] | None = None,
        speculate: Speculate | None = None,
    ) -> NDArray[np.int32]:
        """Generate target tokens.

        Args:
            text_states: float32 [B, T, C].
            condition_tokens: int [B, N], or None for the unconditional picture embedding.
            sampling: the bundle's defaults when None.
            known_tokens: int [B, N], tokens that are given; negative where they are sampled. None samples all.
            speculate: as in `Request`.

        Returns:
            tokens int32 [B, N]. A picture's tokens do not depend on the rest of the batch.
        """
        check_speculate(speculate)
        inputs, known = self.inputs(text_states, condition_tokens), self._check_known(known_tokens, len(text_states))
        sampling, count = Sampling.checked(sampling, self.default_sampling), self.picture_tokens
        tokens = np.empty((len(inputs), count), np.int32)
        scheduler = self.scheduler(len(inputs), sampling.guided)
        jobs: list[Job] = []
        watchers = progress_watcher(on_progress and (lambda *_: on_progress(min(job.done for job in jobs), count)))
        for own, each, fixed in zip(tokens, inputs, known, strict=True):
            speculation = scheduler.speculation(speculate, Jacobi(each.picture.tokens))
            context = scheduler.join(sampling.guided)
            sequence = Sequence(context, each, sampling, sampling.seed, fixed, count, speculation)
            jobs.append(Job.of([sequence], own[None], watchers))
        run_jobs(scheduler, jobs)
        return tokens

    def score(
        self,
        text_states: NDArray[np.float32],
        condition_tokens: NDArray[np.int32] | None,
        target_tokens: NDArray[np.int32],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits of all positions with forced target tokens: (conditional, unconditional), float32 [B, N, V] each."""
        target = self._check_tokens("target_tokens", target_tokens, self.model.vocab_size)
        scheduler = self.scheduler(1, False)
        context, answers = scheduler.join(False), []
        for inputs, forced in zip(self.inputs(text_states, condition_tokens), target, strict=True):
            texts = (inputs.text, inputs.uncond_text)
            answers.append([scheduler.score(context, inputs.picture, text, forced) for text in texts])
        cond, uncond = (np.stack(each) for each in zip(*answers, strict=True))
        return cond, uncond

    def steps(
        self,
        text_states: NDArray[np.float32],
        condition_tokens: NDArray[np.int32] | None,
        sampling: Sampling,
        count: int | None = None,
        speculate: Speculate | None = None,
    ) -> Iterator[Step]:
        """`generate` as an iterator of steps, for the first `count` tokens. The prefill runs before it returns."""
        scheduler = self.scheduler(len(text_states), sampling.guided)
        sequences = [
            Sequence(
                scheduler.join(sampling.guided),
                inputs,
                sampling,
                sampling.seed,
                None,
                count or self.picture_tokens,
                scheduler.speculation(speculate, Jacobi(inputs.picture.tokens)),
            )
            for inputs in self.inputs(text_states, condition_tokens)
        ]
        for sequence in sequences:
            scheduler.prefill(sequence)
        return decode(scheduler, sequences)

    @property
    def prefix_length(self) -> int:
        """Number of positions of picture and text, N + T."""
        return self.picture_tokens + (self.model.text_tokens or 0)

    def scheduler(self, pictures: int, guided: bool, on_device: bool = True) -> Scheduler:
        """A scheduler with a KV cache for a number of pictures.

        Args:
            guided: whether each has an unconditional row.
            on_device: False samples on the host even if the device can.
        """
        rows = pictures if guided else 0
        return Scheduler(self.backend, pictures, rows, self.prefix_length, self.picture_tokens, on_device, self.costs)

    def inputs(self, text_states: NDArray[np.float32], condition_tokens: NDArray[np.int32] | None) -> list[Inputs]:
        """The decoder's input of each picture, from text states [B, T, C] and tokens [B, N] (None: unconditional)."""
        text, uncond_text, uncond_picture = self.project(text_states)
        condition = self.check_condition(condition_tokens, len(text))
        no_picture, no_text = state_chunk(uncond_picture[0]), state_chunk(uncond_text[0])
        return [
            Inputs(no_picture if condition is None else token_chunk(condition[n]), state_chunk(text[n]), no_text)
            for n in range(len(text))
        ]

    def project(
        self, text_states: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Project text states [B, T, C] → (text [B, T, D], uncond text [1, T, D], uncond picture [1, N, D])."""
        text_tokens, text_dim, text_states = self.model.text_tokens, self.model.text_dim, np.asarray(text_states)
        if names.DECODER in self.bundle.manifest.parts and (
            text_states.ndim != 3 or text_states.shape[1:] != (text_tokens, text_dim) or not len(text_states)
        ):
            raise OptionError(f"text_states must be [B, {text_tokens}, {text_dim}], got {list(text_states.shape)}")
        outputs = self.backend.run(names.PREFIX_GRAPH, {names.TEXT_STATES: np.asarray(text_states, np.float32)})
        return outputs[names.TEXT_PREFIX], outputs[names.NULL_TEXT_PREFIX], outputs[names.NULL_PICTURE_PREFIX]

    def check_condition(self, condition_tokens: NDArray[np.int32] | None, rows: int) -> NDArray[np.int32] | None:
        """The condition's tokens [rows, N] as the decoder takes them; None stays None."""
        if condition_tokens is None:
            return None
        checked = self._check_tokens("condition_tokens", condition_tokens, self.model.vocab_size)
        if len(checked) != rows:
            raise OptionError(f"condition_tokens and text_states must have as many rows, got {len(checked)} and {rows}")
        return checked

    def _check_known(self, known: NDArray[np.int32] | None, rows: int) -> list[NDArray[np.int32] | None]:
        """Known tokens [rows, N], negative where they are sampled, as a list by picture."""
        if known is None:
            return [None] * rows
        self._check_tokens("known_tokens", np.maximum(known, 0), self.model.vocab_size)
        if len(known) != rows:
            raise OptionError(f"known_tokens and text_states must have as many rows, got {len(known)} and {rows}")
        return list(known)

    def _check_tokens(self, what: str, tokens: NDArray[Any], size: int | None) -> NDArray[np.int32]:
        count, tokens = self.picture_tokens, np.asarray(tokens)
        if tokens.ndim != 2 or tokens.shape[1] != count or not np.issubdtype(tokens.dtype, np.integer):
            raise OptionError(f"{what} must be integers [B, {count}], got {tokens.dtype} {list(tokens.shape)}")
        if size is not None and tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
            raise OptionError(f"{what} must be 0 to {size - 1}, got {tokens.min()} to {tokens.max()}")
        return np.ascontiguousarray(tokens, np.int32)
