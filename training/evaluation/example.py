"""A benchmark in PIE-Bench's format made from the procedural world, to try an evaluation on without photographs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.data.edits import EDIT_KINDS, caption, held_out
from training.data.records import DataError
from training.data.scenes import render
from training.evaluation.pie_bench import MAPPING_FILE, PICTURES, encode_mask

SEED = 11  # not the demo's evaluation's, nor its samples'
FOLDERS = {
    "replace": "1_change_object",
    "add": "2_add_object",
    "remove": "3_delete_object",
    "recolour": "6_change_attribute_color",
    "retexture": "7_change_attribute_material",
    "background": "8_change_background",
}


def make_example(folder: Path, size: int = 64, count: int = 2) -> int:
    """Write `count` held-out edits of every kind; the mask is where the true picture differs. Returns how many.

    Raises:
        DataError: the folder is there already.
    """
    if folder.exists():
        raise DataError(f"{folder} is there already; choose another folder or remove it")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    entries: dict[str, Any] = {}
    for kind in EDIT_KINDS:
        type_id = FOLDERS[kind][0]
        for number, example in enumerate(held_out(kind, count, SEED)):
            key = f"{type_id}{number:011d}"
            name = f"{FOLDERS[kind]}/{key}.png"
            source, target = render(example.source, size), render(example.target, size)
            path = partial / PICTURES / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source).save(path)
            before, after = (
                caption(np.random.default_rng([SEED, number]), s) for s in (example.source, example.target)
            )
            entries[key] = {
                "image_path": name,
                "original_prompt": before,
                "editing_prompt": f"[{after}]",
                "editing_instruction": example.text,
                "editing_type_id": type_id,
                "blended_word": "",
                "mask": encode_mask((source != target).any(axis=2)),
            }
    (partial / MAPPING_FILE).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder)
    return len(entries)
