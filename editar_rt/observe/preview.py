"""Pictures in progress: previews within a time budget, in a terminal, and as an animation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from editar_rt.arguments import as_list, as_path
from editar_rt.errors import OptionError, PictureError
from editar_rt.files import placing
from editar_rt.generation.decoding import Step

if TYPE_CHECKING:
    from rich.text import Text

ANIMATIONS = {".png": "PNG", ".gif": "GIF"}  # by suffix
FRAME_MS, LAST_FRAME_MS = 120, 1500


class Previewer:
    """A watcher of the loop that shows the tokens so far after each line of them, within its time budget.

    Args:
        show: decodes and shows tokens [B, N], completed with the source's; called with them and the number done.
        share: largest ratio of the time for previews to the time for steps; lines are skipped to stay below it.
        expected: estimated seconds of the first preview; later ones are estimated by the last one.
        row: number of tokens in a line.
        clock: a function that returns seconds; for tests.
    """

    def __init__(
        self,
        show: Callable[[NDArray[np.int32], int], None],
        share: float,
        expected: float,
        row: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._show, self._share, self._expected, self._row, self._clock = show, share, expected, row, clock
        self.begin()
        self._drawn = False  # whether there is something new to show
        self.seconds = 0.0
        """Seconds spent on previews so far."""

    def begin(self) -> None:
        """Start the clock, just before the first step."""
        self._begun = self._clock()

    def __call__(self, step: Step, tokens: NDArray[np.int32]) -> None:
        self._drawn |= step.drawn
        whole_row = step.stop // self._row > step.position // self._row
        if not (whole_row and self._drawn) or step.stop == tokens.shape[1]:
            return
        started = self._clock()
        if self.seconds + self._expected > self._share * (started - self._begun - self.seconds):
            return
        self._show(tokens, step.stop)
        self._expected = self._clock() - started
        self.seconds += self._expected
        self._drawn = False


def half_blocks(picture: Image.Image, columns: int) -> Text:
    """A picture as text for a terminal with 24-bit colour; each character shows two pixels, one above the other."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    lines = max(1, round(columns * picture.height / picture.width / 2))
    shown = np.asarray(picture.convert("RGB").resize((columns, 2 * lines), Image.Resampling.BOX))
    text = Text(no_wrap=True)
    for upper, lower in zip(shown[::2].tolist(), shown[1::2].tolist(), strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("▀", Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
        text.append("\n")
    return text


def check_animation(path: Path) -> None:
    """Reject a name whose suffix is not an animated format."""
    if as_path("where an animation is written", path).suffix.lower() not in ANIMATIONS:
        raise OptionError(f"an animation must be named .png or .gif, got {path.name}")


def save_animation(frames: Sequence[Image.Image], path: Path) -> None:
    """Write an animated PNG or GIF atomically. It loops forever and holds its last frame longer.

    Raises:
        OptionError: the suffix is neither .png nor .gif.
        PictureError: the file cannot be written.
    """
    frames = as_list("frames", frames, Image.Image, "Pillow images")
    path = as_path("where an animation is written", path)
    check_animation(path)
    with placing(path, PictureError) as partial:
        frames[0].save(
            partial,
            format=ANIMATIONS[path.suffix.lower()],
            save_all=True,
            append_images=frames[1:],
            duration=[FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS],
            loop=0,
        )
