"""The project's own data set format: a folder of pictures and `samples.jsonl`, one JSON object a line.

    {"condition": "pictures/000000-condition.png", "target": "pictures/000000-target.png",
     "text": "make the ball green", "task": "edit", "source": "world"}

Paths are relative to the folder; `source` may be left out. Read by `training.data.layouts` as the layout `folder`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from training.data.records import DataError, Sample
from training.data.rows import SAMPLES_FILE


def write_folder(folder: Path, samples: Iterable[Sample]) -> int:
    """Write samples as a data set; the folder appears once it is whole. Returns how many there are.

    Raises:
        DataError: the folder is there already.
    """
    if folder.exists():
        raise DataError(f"{folder} is there already; choose another folder or remove it")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "pictures").mkdir(parents=True)
    count = 0
    with open(partial / SAMPLES_FILE, "w", encoding="utf-8") as lines:
        for count, sample in enumerate(samples, 1):
            line = {"text": sample.text, "task": sample.task, "source": sample.source}
            for which, picture in (("condition", sample.condition), ("target", sample.target)):
                line[which] = f"pictures/{count - 1:06d}-{which}.png"
                Image.fromarray(picture).save(partial / line[which])
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
    partial.replace(folder)
    return count
