"""Contact sheets: pictures side by side with captions."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from editar_rt.arguments import as_integer, as_list


@dataclass(frozen=True)
class Cell:
    """A few pictures in a row with one caption."""

    pictures: list[Image.Image]
    caption: str


def contact_sheet(cells: list[Cell], columns: int = 3, side: int = 160) -> Image.Image:
    """Arrange cells in rows of `columns`; each picture is `side` pixels wide and high."""
    cells = as_list("cells", cells, Cell, "cells")
    columns, side = as_integer("columns", columns, 1), as_integer("side", side, 1)
    gap, lines, line_height = 14, 3, 16
    font = ImageFont.load_default(size=13)
    most = max(len(cell.pictures) for cell in cells)
    width, height = most * side + (most - 1) * 4, side + lines * line_height + 6
    rows = -(-len(cells) // columns)
    columns = min(columns, len(cells))
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + rows * (height + gap)), "white")
    canvas = ImageDraw.Draw(sheet)
    for n, cell in enumerate(cells):
        x, y = gap + n % columns * (width + gap), gap + n // columns * (height + gap)
        for i, picture in enumerate(cell.pictures):
            shown = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(shown, (x + i * (side + 4), y))
        wrapped = textwrap.wrap(cell.caption, width=max(10, int(width / 6.8)))
        if len(wrapped) > lines:
            wrapped = [*wrapped[: lines - 1], wrapped[lines - 1] + " …"]
        canvas.multiline_text((x, y + side + 4), "\n".join(wrapped), fill="black", font=font, spacing=3)
    return sheet
