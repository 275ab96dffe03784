"""The library lasts: under sanitizers it opens, edits, stops and closes many times, and in two threads at once."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cpp.build import build, picture_libraries
from tests.cpp.installed import engine_library, installed, objects, run, sanitized
from tests.runtime.demo import BUNDLE

HERE = Path(__file__).parent
TIMES = 200
GROWTH = 1.25  # of the peak after a tenth of the rounds: the allocator's own caches fill slowly under sanitizers


def built(sanitizers: str, source: Path) -> Path:
    """A program with a sanitized library."""
    prefix = sanitized(sanitizers)
    program = prefix / source.stem
    compiler, standard = ("gcc", "-std=gnu99") if source.suffix == ".c" else ("g++", "-std=c++17")
    flags = [standard, "-g", "-Wall", "-Wextra", "-Werror", "-pthread", f"-fsanitize={sanitizers}"]
    library = [f"-I{prefix}/include", f"-L{prefix}/lib", "-leditar", f"-Wl,-rpath,{prefix}/lib"]
    run([compiler, *flags, str(source), *library, "-o", str(program)])
    return program


def environment(**options: str) -> dict[str, str]:
    return os.environ | {"EDITAR_ONNXRUNTIME": str(engine_library())} | options


def test_200_lives_leave_nothing_behind(tiny_bundle: Path) -> None:
    program = built("address,undefined", HERE / "lasting.c")
    options = environment(
        ASAN_OPTIONS="detect_leaks=1:halt_on_error=1:quarantine_size_mb=8",
        UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1",
        LSAN_OPTIONS=f"suppressions={HERE / 'leaks.txt'}:print_suppressions=0",
    )
    early, late = map(int, run([str(program), str(tiny_bundle), str(TIMES)], env=options).split())
    assert late <= GROWTH * early


def test_pages_of_weights_are_dropped_only_while_no_other_thread_maps_some(tmp_path: Path) -> None:
    """Addresses of a mapping that went away meanwhile could hold somebody's memory."""
    linked = [*map(str, objects(installed())), *picture_libraries(), "-pthread"]
    program = build(tmp_path / "mappings", [HERE / "mappings.cpp"], ["-O1"], linked)
    assert run([str(program), str(tmp_path / "weights")]).split() == ["1", "1", "0"]


def test_two_models_in_two_threads_do_not_race() -> None:
    program = built("thread", HERE / "two_threads.cpp")
    # ONNX Runtime's mutexes are locked where this sanitizer does not see it, and unlocked by handlers at exit.
    unseen = f"report_mutex_bugs=0:suppressions={HERE / 'races.txt'}"
    options = environment(TSAN_OPTIONS=f"halt_on_error=1:{unseen}")
    run([str(program), str(BUNDLE)], env=options)
