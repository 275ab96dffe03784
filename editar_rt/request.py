"""A request for one edit: every option, checked once. `None` means the bundle's default."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from editar_rt.arguments import as_flag, as_one_of, is_finite, is_integer
from editar_rt.errors import OptionError
from editar_rt.generation.decoding import Cancel, Progress
from editar_rt.generation.guidance import Scale
from editar_rt.generation.sampling import Sampling
from editar_rt.generation.strategy import Speculate, check_speculate
from editar_rt.images.fit import FITS, Fit
from editar_rt.images.masks import Mask
from editar_rt.images.pixels import Picture
from editar_rt.text.prompts import as_text, build_prompt
from editar_rt.text.states import TextStates

MAX_VARIANTS = 64

Preview = Callable[[Image.Image, int, int], None]  # (the picture so far, tokens done, tokens in all)


class Options(TypedDict, total=False):
    """The keywords of `Editor.edit` and similar methods, for type checkers; `Request` documents them."""

    task: str
    seed: int | None
    cfg_scale: Scale | None
    cfg_interval: int | tuple[int, int] | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    greedy: bool | None
    noise: str | None
    sampling: Sampling | None
    speculate: Speculate | None
    text_states: NDArray[np.float32] | TextStates | None
    mask: Mask | None
    mask_margin: int
    composite: bool
    fit: Fit | None
    restore: bool
    cancel: Cancel | None
    on_progress: Progress | None
    on_preview: Preview | None
    preview_share: float
    trace: str | os.PathLike[str] | None


@dataclass(frozen=True, eq=False)
class Request:
    """All options of one edit.

    Raises:
        OptionError: a value outside the range of its field.
    """

    image: Picture | None = None
    """The picture to edit, or the condition picture; None in a session, which already has one."""
    instruction: str = ""
    """The change to make; for the other tasks, a description of the picture to make. Text beyond the text encoder's
    input length is cut off with a TruncatedTextWarning."""
    _: dataclasses.KW_ONLY
    task: str = "edit"
    """`edit`, `depth`, `canny` or `segmentation`."""
    seed: int | None = None
    """0 to 2⁶⁴ − 1; the same seed gives the same tokens."""
    cfg_scale: Scale | None = None
    """Guidance scale: a number, a `Schedule` or its text (`linear:1,5`), or a function of (position, N)."""
    cfg_interval: int | tuple[int, int] | None = None
    """The tokens that are guided, (start, stop); see `Sampling`."""
    temperature: float | None = None
    """Above 0."""
    top_k: int | None = None
    """Sample from the k most likely tokens; 0 turns this off."""
    top_p: float | None = None
    """Sample from the most likely tokens that sum to this probability, in (0, 1]; 1 turns this off."""
    greedy: bool | None = None
    """Always take the most likely token."""
    noise: str | None = None
    """How the seed draws: `uniform` or `gumbel`; see `Sampling`."""
    sampling: Sampling | None = None
    """The eight fields above as one object; must not be combined with any of them."""
    speculate: Speculate | None = None
    """Take several tokens in a pass of the decoder: an even number of positions that are drafted and verified, or
    `auto`, which chooses it while it runs. The tokens are those without it, except where rounding decides. None takes
    one."""
    text_states: NDArray[np.float32] | TextStates | None = None
    """The text encoder's output [1, T, C] float32, computed elsewhere for exactly this instruction and task. A
    `TextStates` also contains its prompt, and is rejected if the prompt differs."""
    mask: Mask | None = None
    """Where the picture may change: white in a picture of the same aspect ratio, True in an array, or a box (x, y,
    width, height) in the picture's pixels. For task `edit` only."""
    mask_margin: int = 1
    """Width, in tokens, of the border around the masked tokens that is sampled too; 0 or more."""
    composite: bool = True
    """Paste the result back into the picture, so that pixels outside the mask stay exactly as they are."""
    fit: Fit | None = None
    """How the picture is fitted to the model's square: `crop` takes its middle square, `pad` shows all of it and
    repeats its border, `stretch` distorts it. None means `crop`, or the fit that the session was opened with."""
    restore: bool = False
    """Paste the result back into the original picture, at the original size."""
    cancel: Cancel | None = None
    """An object with `is_set()`, such as a `threading.Event`. When it is set, the edit stops within one step."""
    on_progress: Progress | None = None
    """Called with (tokens done, tokens in all) after every step."""
    on_preview: Preview | None = None
    """Called after lines of tokens with the picture so far, completed from the source; shows the first variant."""
    preview_share: float = 0.1
    """Largest share of the decoding time that previews may take, 0 to 1; lines are skipped to stay below it."""
    trace: str | os.PathLike[str] | None = None
    """Write a trace to this file, `.jsonl` or `.npz`: see `editar_rt.observe.trace`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "instruction", as_text(self.instruction))
        build_prompt(self.task, self.instruction)  # rejects an unknown task
        if self.mask is not None and self.task != "edit":
            raise OptionError(
                f"a mask keeps parts of the picture, which task {self.task} cannot do; masks are for task edit"
            )
        if not is_integer(self.mask_margin) or self.mask_margin < 0:
            raise OptionError(f"mask_margin must be 0 or more, got {self.mask_margin!r:.60}")
        share = self.preview_share
        if not is_finite(share) or not 0 <= share <= 1:
            raise OptionError(f"preview_share must be 0 to 1, got {share!r:.60}")
        for name in ("composite", "restore"):
            as_flag(name, getattr(self, name))
        if self.fit is not None:
            as_one_of("fit", self.fit, FITS)
        for name in ("on_progress", "on_preview"):
            if not (getattr(self, name) is None or callable(getattr(self, name))):
                raise OptionError(f"{name} must be a function, got {type(getattr(self, name)).__name__}")
        if self.cancel is not None and not callable(getattr(self.cancel, "is_set", None)):
            raise OptionError(
                f"cancel must have a method is_set(), like threading.Event, got {type(self.cancel).__name__}"
            )
        if self.trace is not None and not isinstance(self.trace, str | os.PathLike):
            raise OptionError(f"trace must be a path, got {type(self.trace).__name__}")
        given = self.text_states
        if isinstance(given, TextStates) and given.prompt != self.prompt:
            raise OptionError(
                f"the text states are those of {given.prompt!r:.120}, and the edit's prompt is {self.prompt!r:.120}; "
                "make them for this one with: editar text"
            )
        check_speculate(self.speculate)
        self.sampling_over(Sampling())

    @property
    def states(self) -> NDArray[np.float32] | None:
        """`text_states` without their prompt."""
        return self.text_states.states if isinstance(self.text_states, TextStates) else self.text_states

    @property
    def prompt(self) -> str:
        """The text encoder's input."""
        return build_prompt(self.task, self.instruction)

    def sampling_over(self, defaults: Sampling) -> Sampling:
        """The sampling of this request, with the bundle's defaults for fields that are None.

        Raises:
            OptionError: a value that is not allowed, or `sampling` combined with one of its fields.
        """
        given = {name: getattr(self, name) for name in SAMPLING_FIELDS if getattr(self, name) is not None}
        if self.sampling is None:
            return dataclasses.replace(defaults, **given)
        sampling = Sampling.checked(self.sampling, defaults)
        if given:
            raise OptionError(f"give either sampling or {', '.join(given)}, not both")
        return sampling


SAMPLING_FIELDS = tuple(field.name for field in dataclasses.fields(Sampling))
FIELDS = tuple(field.name for field in dataclasses.fields(Request))


def make_request(image: Picture | None, instruction: str, options: dict[str, Any]) -> Request:
    """A request from a call's keywords.

    Raises:
        TypeError: an unknown keyword.
        OptionError.
    """
    if unknown := sorted(set(options) - set(Options.__annotations__)):
        raise TypeError(f"unknown option {unknown[0]!r}; the options are {', '.join(Options.__annotations__)}")
    return Request(image, instruction, **options)


def variant_seeds(seed: int, n: int) -> tuple[int, ...]:
    """Seeds of n variants: seed, seed + 1, …, modulo 2⁶⁴.

    Raises:
        OptionError: n is not 1 to `MAX_VARIANTS`.
    """
    if not (is_integer(n) and 1 <= n <= MAX_VARIANTS):
        raise OptionError(f"n must be 1 to {MAX_VARIANTS}, got {n!r:.60}")
    return tuple((seed + i) % 2**64 for i in range(n))
