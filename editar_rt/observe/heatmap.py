"""Draws the uncertainty of a trace's tokens over its picture."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from editar_rt.arguments import as_instance, as_integer, as_one_of
from editar_rt.errors import OptionError, TraceError
from editar_rt.observe.trace import Trace

MEASURES = {"entropy": "entropy of the distribution, nats", "surprise": "−log probability of the sampled token, nats"}
OPACITY = 0.65
# Dark to bright through blue, red and yellow; monotonic in luminance.
COLOURS = np.asarray([(8, 8, 40), (60, 20, 130), (160, 30, 110), (225, 80, 60), (250, 170, 50), (255, 250, 160)])


def colour(share: NDArray[np.floating]) -> NDArray[np.float64]:
    """Map shares from 0 to 1 to colours [..., 3], 0 to 255."""
    stops = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(share, stops, COLOURS[:, channel]) for channel in range(3)], axis=-1)


def heatmap(trace: Trace, variant: int = 0, measure: str = "entropy", side: int = 384) -> Image.Image:
    """The picture, and next to it the same picture under its cells' uncertainty. Known cells stay clear.

    Args:
        variant: index of the variant.
        measure: `entropy`, or `surprise`: minus the log-probability of the sampled token.
        side: of each picture, pixels.

    Raises:
        OptionError: an unknown measure or variant.
        TraceError: the trace has no picture, or no token in it was sampled.
    """
    as_instance("trace", trace, Trace, "a Trace, see Trace.load")
    as_one_of("measure", measure, MEASURES)
    as_integer("side", side, 1)
    if not 0 <= as_integer("variant", variant) < len(trace.tokens):
        raise OptionError(f"variant must be 0 to {len(trace.tokens) - 1}, got {variant}")
    if variant >= len(trace.pictures):
        raise TraceError("the trace contains no picture to draw on")
    if not trace.drawn.any():
        raise TraceError("no token was sampled in this trace, so it has no uncertainty to show")
    values = trace.entropy[variant] if measure == "entropy" else -trace.log_probabilities[variant]
    grid = math.isqrt(values.size)
    largest = max(float(values[trace.drawn].max()), 1e-6)
    picture = trace.pictures[variant].convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    shares = np.where(trace.drawn, values / largest, 0).reshape(grid, grid)
    cells = Image.fromarray(colour(shares).astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    weight = np.where(trace.drawn, np.uint8(255 * OPACITY), np.uint8(0)).reshape(grid, grid)
    painted = Image.composite(cells, picture, Image.fromarray(weight).resize((side, side), Image.Resampling.NEAREST))
    gap, legend = 12, 66
    sheet = Image.new("RGB", (2 * side + 3 * gap, side + 2 * gap + legend), "white")
    sheet.paste(picture, (gap, gap))
    sheet.paste(painted, (side + 2 * gap, gap))
    _legend(sheet, (side + 2 * gap, side + gap + 6), side, largest, MEASURES[measure])
    words = f"{trace.header.instruction}\nseed {trace.header.seeds[variant]}, {int(trace.drawn.sum())} tokens sampled"
    ImageDraw.Draw(sheet).multiline_text((gap, side + gap + 4), words, fill="black", font=_font(), spacing=4)
    return sheet


def _legend(sheet: Image.Image, place: tuple[int, int], width: int, largest: float, words: str) -> None:
    """Draw a colour bar with labels at its ends."""
    x, y = place
    bar = colour(np.linspace(0, 1, width))[None].repeat(14, axis=0)
    sheet.paste(Image.fromarray(bar.astype(np.uint8)), (x, y))
    canvas = ImageDraw.Draw(sheet)
    canvas.text((x, y + 18), "0", fill="black", font=_font())
    canvas.text((x + width, y + 18), f"{largest:.2f}", fill="black", font=_font(), anchor="ra")
    canvas.text((x + width / 2, y + 18), words, fill="black", font=_font(), anchor="ma")
    canvas.text((x, y + 38), "clear cells were known", fill="black", font=_font())


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=13)
