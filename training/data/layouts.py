"""What the columns of the published data sets mean, and the data sets made of them.

EditAR is trained on SEED-Data-Edit's Unsplash part, PIPE, MultiGen-20M and captioned COCO-Stuff; MagicBrush and ADE20K
have the same shape. A layout says which columns hold the condition, the target and the words. Any of them may be stored
in any way that `training.data.rows` reads. Sources of the column names are named at each layout.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from editar_rt.images.canny import canny_edges
from editar_rt.images.fit import fit_square
from training.data.records import BadRecord, DataError, Sample, check
from training.data.rows import ANNOTATIONS, Row, Rows, open_rows, picture_of, text_of


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which columns make a sample."""

    target: str
    text: str
    condition: str | None = None  # None: Canny edges of the target, computed when they are read
    task: str | None = None  # None: each row says its own, in the column `task`
    both_ways: bool = False  # every row also in reverse, as a removal
    better_text: str | None = None  # taken in place of `text` by the rows that have it


LAYOUTS: dict[str, Layout] = {
    # Our own: see docs/data.md.
    "folder": Layout(condition="condition", target="target", text="text"),
    # Hugging Face AILab-CVC/SEED-Data-Edit-Part1-Unsplash (arXiv 2405.04007): JSON lines that name files, and the
    # same columns with the pictures' bytes in the copy EditAR's authors train on.
    "seed-data-edit": Layout(condition="source_image", target="target_image", text="instruction", task="edit"),
    # Hugging Face paint-by-inpaint/PIPE (arXiv 2404.18212); its rows add an object to a picture.
    "pipe": Layout(
        condition="source_img", target="target_img", text="Instruction_VLM-LLM", task="edit", both_ways=True
    ),
    # Hugging Face osunlp/MagicBrush (arXiv 2306.10012).
    "magicbrush": Layout(condition="source_img", target="target_img", text="instruction", task="edit"),
    # Hugging Face limingcv/MultiGen-20M_depth, as ControlNet++ (arXiv 2404.07987) trains and evaluates with it.
    "multigen-depth": Layout(condition="control_depth", target="image", text="text", task="depth"),
    "multigen-canny": Layout(target="image", text="text", task="canny"),
    # Hugging Face limingcv/Captioned_COCOStuff and Captioned_ADE20K: colour masks beside captioned pictures. EditAR's
    # copy has longer captions too.
    "segmentation": Layout(
        condition="control_seg", target="image", text="prompt", better_text="detailed_prompt", task="segmentation"
    ),
}


class RowDataset:
    """Samples from rows, by a layout.

    A layout that goes both ways has two samples a row: 2i is row i as it is, 2i + 1 its reverse, with `Remove` in
    place of the instruction's first word (`Add a spoon` → `Remove a spoon`).

    Args:
        size: side of the squares that pictures are fitted to as the runtime does it; None leaves them as they are.
            Edges are computed after that, as they would blur in resizing.
    """

    def __init__(self, rows: Rows, layout: Layout, name: str, size: int | None = None) -> None:
        self.rows, self.layout, self.name, self.size = rows, layout, name, size
        self._ways = 2 if layout.both_ways else 1

    def __len__(self) -> int:
        return len(self.rows) * self._ways

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} records, got the index {index}")
        number, reverse = divmod(index, self._ways)
        layout, row, label = self.layout, self.rows[number], self.rows.label(number)
        given = None if layout.condition is None else picture_of(self.rows, row, layout.condition, label)
        target = picture_of(self.rows, row, layout.target, label)
        text = text_of(row, self._text_column(row), label)
        task = layout.task or text_of(row, "task", label)
        source = text_of(row, "source", label) if layout.task is None and "source" in row else self.name
        check(target if given is None else given, target, text, task, label)
        target = self._fitted(target)
        condition = canny_edges(target) if given is None else self._fitted(given)
        if reverse:
            condition, target, text = target, condition, removal(text, label)
        return Sample(condition, target, text, task, source)

    def _text_column(self, row: Row) -> str:
        better = self.layout.better_text
        return better if better and isinstance(row.get(better), str | bytes) and row[better] else self.layout.text

    def _fitted(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return picture if self.size is None else np.asarray(fit_square(Image.fromarray(picture), self.size))


def removal(instruction: str, name: str) -> str:
    """An instruction that adds something, turned into the one that takes it away again.

    Raises:
        BadRecord: it is one word or none, so that nothing is left to be removed.
    """
    thing = instruction.partition(" ")[2].strip()
    if not thing:
        raise BadRecord(f"{name} has the instruction {instruction!r}, which cannot be turned into a removal")
    return f"Remove {thing}"


def open_dataset(
    path: Path,
    layout: str | None = None,
    name: str | None = None,
    split: str | None = None,
    annotations: str = ANNOTATIONS,
    size: int | None = None,
    in_order: bool = False,
) -> RowDataset:
    """A data set on disk.

    Args:
        layout: one of `LAYOUTS`; recognized by its columns when None.
        name: what its samples say they come from; the layout's name when None.
        split, annotations, in_order: see `open_rows`.
        size: see `RowDataset`.

    Raises:
        DataError: nothing there, or columns of no layout.
    """
    if layout is not None and layout not in LAYOUTS:
        raise DataError(f"format must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    rows = open_rows(path, split, annotations, in_order)
    chosen = layout or recognize(rows, path)
    return RowDataset(rows, LAYOUTS[chosen], name or chosen, size)


def recognize(rows: Rows, path: Path) -> str:
    """The layout whose columns the first readable row has.

    Raises:
        DataError: no layout fits.
    """
    columns: set[str] = set()
    for index in range(min(len(rows), 20)):
        try:
            columns = set(rows[index])
            break
        except BadRecord:
            continue
    for name, layout in LAYOUTS.items():
        wanted = {layout.condition, layout.target, layout.text, None if layout.task else "task"} - {None}
        # Edges are made from any captioned picture: only who asks for them gets them.
        if layout.condition is not None and wanted <= columns:
            return name
    found = ", ".join(sorted(columns)) or "none that could be read"
    raise DataError(f"{path} has the columns {found}, of no known format; choose one of {', '.join(LAYOUTS)}")
