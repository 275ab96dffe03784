"""What the fuzzer found, and its seeds, again: no crash, no undefined behaviour, no leak, and no growth."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cpp import fuzz_seeds
from tests.cpp.build import PICTURE_FLAGS, build, picture_libraries
from tests.cpp.fuzz_corpus import CORPUS, TARGETS
from tests.cpp.installed import installed, objects, sanitized

SANITIZERS = "address,undefined"
TIMES, GROWTH = 10, 2 << 20  # bytes: the allocator's own; a leak of 140 bytes an input would be more


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    fuzz_seeds.main(folder)
    assert {path.stem for path in CORPUS.glob("*.zip")} == set(TARGETS)
    return [*CORPUS.glob("*/*"), *folder.glob("*/*")]


def replay(program: Path, prefix: Path, flags: Sequence[str] = ()) -> Path:
    """Build the program that gives files to their targets."""
    source, libraries = Path(__file__).with_name("fuzz.cpp"), picture_libraries()
    return build(
        program, [source], ["-O1", "-g", *flags, *PICTURE_FLAGS], [*map(str, objects(prefix)), *libraries, "-ldl"]
    )


def test_all_are_answered_or_refused_under_sanitizers(files: list[Path], tmp_path: Path) -> None:
    program = replay(tmp_path / "replay", sanitized(SANITIZERS), [f"-fsanitize={SANITIZERS}"])
    environment = os.environ | {"LC_ALL": "C", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    done = subprocess.run([str(program), "1", *map(str, files)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"{len(files)} files\n"


def test_the_memory_does_not_grow_with_them(files: list[Path], tmp_path: Path) -> None:
    program = replay(tmp_path / "replay", installed())

    def peak(times: int) -> int:
        running = subprocess.Popen([str(program), str(times), *map(str, files)], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
        assert running.returncode == 0
        return usage.ru_maxrss * 1024

    assert peak(TIMES) - peak(1) < GROWTH
