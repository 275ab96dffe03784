"""What the fuzzer found, and its seeds, again under sanitizers: no crash, no leak, no undefined behaviour."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cpp import fuzz_seeds
from tests.cpp.build import CPP, PICTURE_FLAGS, build, picture_libraries
from tests.cpp.fuzz_corpus import CORPUS, TARGETS
from tests.cpp.inside import SOURCES

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that gives files to their targets."""
    sources = [*(CPP / "src" / f"{name}.cpp" for name in SOURCES), Path(__file__).with_name("fuzz.cpp")]
    flags = ["-O1", "-g", *SANITIZERS, *PICTURE_FLAGS]
    return build(tmp_path_factory.mktemp("fuzz") / "replay", sources, flags, picture_libraries())


def test_the_corpus_and_the_seeds_are_answered_or_refused(replay: Path, tmp_path: Path) -> None:
    fuzz_seeds.main(tmp_path)
    assert {path.stem for path in CORPUS.glob("*.zip")} == set(TARGETS)
    files = [*CORPUS.glob("*/*"), *tmp_path.glob("*/*")]
    done = subprocess.run(
        [str(replay), *map(str, files)], capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"{len(files)} files\n"
