"""What the fuzzer found, and its seeds, again under sanitizers: no crash, no leak, no undefined behaviour."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cpp import fuzz_seeds
from tests.cpp.build import PICTURE_FLAGS, build, picture_libraries
from tests.cpp.fuzz_corpus import CORPUS, TARGETS
from tests.cpp.installed import objects, sanitized

SANITIZERS = "address,undefined"


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that gives files to their targets."""
    source, libraries = Path(__file__).with_name("fuzz.cpp"), picture_libraries()
    linked = [*map(str, objects(sanitized(SANITIZERS))), *libraries]
    flags = ["-O1", "-g", f"-fsanitize={SANITIZERS}", *PICTURE_FLAGS]
    return build(tmp_path_factory.mktemp("fuzz") / "replay", [source], flags, linked)


def test_the_corpus_and_the_seeds_are_answered_or_refused(replay: Path, tmp_path: Path) -> None:
    fuzz_seeds.main(tmp_path)
    assert {path.stem for path in CORPUS.glob("*.zip")} == set(TARGETS)
    files = [*CORPUS.glob("*/*"), *tmp_path.glob("*/*")]
    environment = os.environ | {"LC_ALL": "C", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    done = subprocess.run([str(replay), *map(str, files)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"{len(files)} files\n"
