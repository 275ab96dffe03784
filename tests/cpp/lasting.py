"""Programs that run with the library under sanitizers."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cpp.installed import engine_library, flags_of, run, sanitized
from tests.cpp.once import once
from tests.runtime.demo import BUNDLE

HERE = Path(__file__).parent


def built(sanitizers: str, source: Path) -> Path:
    """A program with a sanitized library."""
    prefix = sanitized(sanitizers)
    program = prefix / source.stem
    compiler, standard = ("gcc", "-std=gnu99") if source.suffix == ".c" else ("g++", "-std=c++17")
    flags = [standard, "-g", "-Wall", "-Wextra", "-Werror", "-pthread", f"-fsanitize={sanitizers}"]
    run([compiler, *flags, str(source), *flags_of(prefix), f"-Wl,-rpath,{prefix}/lib", "-o", str(program)])
    return program


def environment(**options: str) -> dict[str, str]:
    return os.environ | {"EDITAR_ONNXRUNTIME": str(engine_library())} | options


def watched_for_races() -> dict[str, str]:
    """An environment in which ThreadSanitizer ends a program with an error."""
    # ONNX Runtime's mutexes are locked where this sanitizer does not see it, and unlocked by handlers at exit.
    unseen = f"report_mutex_bugs=0:suppressions={HERE / 'races.txt'}"
    return environment(TSAN_OPTIONS=f"halt_on_error=1:{unseen}")


@once
def two_models_in_two_threads() -> str:
    """Run them under ThreadSanitizer, which must find nothing."""
    return run([str(built("thread", HERE / "two_threads.cpp")), str(BUNDLE)], env=watched_for_races())
