"""Inputs for `other_machines.c`, and the report of what the machines answered.

usage: python -m tests.cpp.other_machines inputs FOLDER
       python -m tests.cpp.other_machines report NAME=FILE…   (the first is what the others are compared with)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from editar_rt.bundle.folder import Bundle
from editar_rt.bundle.samples import read_samples
from editar_rt.images.pixels import open_picture
from tests.export.test_text_reader import awkward_strings

DEMO = "engines/demo"
SIZES = ((128, 128), (200, 150), (97, 301), (640, 427), (1100, 90))
KINDS = {
    "draws": "draws (2,000 each)", "ids": "prompts' ids", "square": "model's squares", "source": "sources' tokens",
    "tokens": "edits' tokens", "pixels": "edits' pixels",
}  # fmt: skip


def write_inputs(folder: Path) -> None:
    """Samples of the demo, some of them at other sizes, and prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for n, (path, _, instruction) in enumerate(read_samples(Bundle.open(DEMO))[:10]):
        picture = open_picture(path).resize(SIZES[n % len(SIZES)])
        (folder / f"{n}.rgb").write_bytes(np.asarray(picture).tobytes())
        lines.append(f"{n}.rgb {picture.width} {picture.height} {instruction}\n")
    (folder / "list").write_text("".join(lines), encoding="utf-8", newline="\n")
    texts = [text for text in awkward_strings() if not set(text) & set("\n\r\0") and len(text.encode()) < 2000]
    (folder / "texts").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8", newline="\n")


def answers(path: Path) -> dict[str, dict[str, str]]:
    """By kind and name."""
    found: dict[str, dict[str, str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, _, rest = line.partition(" ")
        name, _, value = rest.partition(" ")
        found.setdefault(kind, {})[name] = value if kind != "backend" else rest
    return found


def report(named: list[tuple[str, Path]]) -> str:
    """A table of how many answers are the first machine's."""
    (_, first), *others = named
    reference = answers(first)
    rows = ["| machine | " + " | ".join(KINDS.values()) + " | other tokens |", "|---" * (len(KINDS) + 2) + "|"]
    for name, path in others:
        here, cells = answers(path), []
        for kind in KINDS:
            same = sum(here[kind].get(key) == value for key, value in reference[kind].items())
            cells.append(f"{same} of {len(reference[kind])}")
        pairs = [(value.split(), here["tokens"][key].split()) for key, value in reference["tokens"].items()]
        differ = np.mean([a != b for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)])
        rows.append(f"| {name} | " + " | ".join(cells) + f" | {differ:.1%} |")
    return "\n".join(rows)


if __name__ == "__main__":
    if sys.argv[1] == "inputs":
        write_inputs(Path(sys.argv[2]))
    else:
        print(report([(name, Path(path)) for name, _, path in (each.partition("=") for each in sys.argv[2:])]))
