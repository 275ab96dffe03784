"""Tiny data sets in the layouts in which the published ones come, for the tests that read them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.data.edits import held_out
from training.data.records import Sample
from training.data.scenes import render

SIDE = 32


def picture(seed: int, side: int = SIDE) -> np.ndarray:
    """A small picture of blocks, uint8 [side, side, 3]; it survives JPEG nearly unchanged."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return blocks.repeat(side // 4, 0).repeat(side // 4, 1)


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def world_samples(count: int, kinds: tuple[str, ...] = ("recolour", "depth"), size: int = SIDE) -> list[Sample]:
    """Examples of the procedural world as samples, `count` of every kind."""
    examples = [e for kind in kinds for e in held_out(kind, count)]
    return [Sample(e.condition(size), render(e.target, size), e.text, e.task, "world") for e in examples]


PIPE_ROWS: list[dict[str, Any]] = [
    {
        "source_img": picture(10 + i),
        "target_img": picture(20 + i),
        "Instruction_VLM-LLM": text,
        "Instruction_Class": "Add a thing",
        "Instruction_Ref_Dataset": "",
        "object_location": "left",
        "target_img_dataset": "COCO",
        "img_id": str(i),
        "ann_id": str(i),
    }
    for i, text in enumerate(["Add a metallic spoon", "Insert the red kite above the sea", ""])
]
MULTIGEN_ROWS: list[dict[str, Any]] = [
    {"image": picture(30 + i), "control_depth": picture(40 + i), "text": f"a scene of kind {i}"} for i in range(3)
]
MAGICBRUSH_ROWS: list[dict[str, Any]] = [
    {
        "img_id": "7",
        "turn_index": 1,
        "source_img": picture(50),
        "mask_img": picture(51),
        "instruction": "let the asparagus be replaced with sausages",
        "target_img": picture(52),
    }
]
COCO_STUFF_ROWS: list[dict[str, Any]] = [
    {"image": picture(60), "prompt": "two horses on grass", "control_seg": picture(61), "seg_map": picture(62)}
]


def with_pictures_as(rows: list[dict[str, Any]], encode: Any) -> dict[str, list[Any]]:
    """Columns of rows, their arrays encoded."""
    return {
        name: [encode(row[name]) if isinstance(row[name], np.ndarray) else row[name] for row in rows]
        for name in rows[0]
    }


def write_saved(folder: Path, rows: list[dict[str, Any]], split: str | None = None) -> Path:
    """As `Dataset.save_to_disk` or, with a split, `DatasetDict.save_to_disk` writes it."""
    import datasets

    columns = with_pictures_as(rows, Image.fromarray)
    kinds = {
        name: datasets.Image() if isinstance(values[0], Image.Image) else datasets.Value(_kind(values[0]))
        for name, values in columns.items()
    }
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    (datasets.DatasetDict({split: table}) if split else table).save_to_disk(str(folder))
    return folder


def _kind(value: Any) -> str:
    return "int32" if isinstance(value, int) else "string"


def write_parquet(folder: Path, rows: list[dict[str, Any]], names: tuple[str, ...]) -> Path:
    """Rows spread over Parquet files, pictures as `{bytes, path}`, as the Hub has them in `data/`."""
    import pyarrow
    from pyarrow import parquet

    (folder / "data").mkdir(parents=True)
    for part, name in enumerate(names):
        columns = with_pictures_as(rows[part :: len(names)], lambda array: {"bytes": png(array), "path": None})
        parquet.write_table(pyarrow.table(columns), folder / "data" / name)
    return folder
