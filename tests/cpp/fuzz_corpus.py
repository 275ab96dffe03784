"""The fuzzer's inputs that are kept: for each target an archive of few inputs that reach all code that was reached.

usage: python -m tests.cpp.fuzz_corpus FOLDER    # after tests/cpp/fuzz.sh TARGET SECONDS FOLDER
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
TARGETS = ("json", "manifest", "graph", "tokenizer", "png", "jpeg")


def unpack(folder: Path) -> None:
    """Write all kept inputs into folders by their targets."""
    for archive in CORPUS.glob("*.zip"):
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder / archive.stem)


def pack(target: str, inputs: Iterable[bytes]) -> None:
    """Replace a target's archive; equal inputs give an equal one."""
    with zipfile.ZipFile(CORPUS / f"{target}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for content in sorted(inputs, key=lambda each: (len(each), each)):
            file.writestr(zipfile.ZipInfo(hashlib.sha256(content).hexdigest()[:12]), content, zipfile.ZIP_DEFLATED)


def fewest(fuzzer: Path, target: str, folders: Iterable[Path]) -> list[bytes]:
    """Inputs of some folders that together reach what all of them reach."""
    with tempfile.TemporaryDirectory() as merged:
        command = [str(fuzzer), "-set_cover_merge=1", "-timeout=10", merged, *map(str, folders)]
        subprocess.run(command, env=os.environ | {"EDITAR_FUZZ": target}, check=True, capture_output=True)
        return [path.read_bytes() for path in Path(merged).iterdir()]


def main(folder: Path) -> None:
    for target in TARGETS:
        if (folder / target).is_dir():
            pack(target, fewest(folder / "fuzz", target, [folder / target, folder / "seeds" / target]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
