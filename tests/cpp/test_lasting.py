"""The library lasts: under sanitizers it opens, edits, stops and closes many times, and in two threads at once."""

from __future__ import annotations

from pathlib import Path

from tests.cpp.build import build, picture_libraries
from tests.cpp.installed import installed, objects, run
from tests.cpp.lasting import HERE, built, environment, two_models_in_two_threads

TIMES = 200
GROWTH = 1.25  # of the peak after a tenth of the rounds: the allocator's own caches fill slowly under sanitizers


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
    two_models_in_two_threads()
