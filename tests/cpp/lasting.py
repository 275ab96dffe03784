"""Programs that run with the library under sanitizers."""

from __future__ import annotations

import os
from pathlib import Path

from tests.cpp.installed import engine_library, run, sanitized
from tests.cpp.once import once
from tests.runtime.demo import BUNDLE

HERE = Path(__file__).parent


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


@once
def two_models_in_two_threads() -> str:
    """Run them under ThreadSanitizer, which must find nothing."""
    program = built("thread", HERE / "two_threads.cpp")
    # ONNX Runtime's mutexes are locked where this sanitizer does not see it, and unlocked by handlers at exit.
    unseen = f"report_mutex_bugs=0:suppressions={HERE / 'races.txt'}"
    return run([str(program), str(BUNDLE)], env=environment(TSAN_OPTIONS=f"halt_on_error=1:{unseen}"))
