"""The sample pictures that a demo bundle carries: held-out scenes, one or two of every kind."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from editar_rt.bundle.samples import FOLDER, LIST, Sample, samples_text
from training.data.edits import EDIT_KINDS, TRANSLATION_TASKS, held_out

SEED = 4997  # not the evaluation's; chosen so that the examples of the documentation find their objects


def write_samples(folder: Path, size: int) -> None:
    """Pictures and `samples.json` as `editar demo` reads them: two of every edit, one of every translation."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for kind in (*EDIT_KINDS, *TRANSLATION_TASKS):
        for n, example in enumerate(held_out(kind, 2 if kind in EDIT_KINDS else 1, SEED)):
            name = f"{kind}-{n}.png"
            Image.fromarray(example.condition(size)).save(folder / name)
            entries.append(Sample(f"{FOLDER}/{name}", example.task, example.text))
    (folder / LIST).write_text(samples_text(entries), encoding="utf-8")
