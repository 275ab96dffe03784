"""The C++ sources are formatted, and clang-tidy finds no fault in them."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cpp.build import CPP
from tests.cpp.installed import installed, run
from tests.tools import require_program

# Clang's analyzer, which follows paths through calls, takes four fifths of the time. It does so for what callers and
# bundles reach first, and within single functions elsewhere.
DEEP = {"abi.cpp", "sampling.cpp", "scheduler.cpp", "session.cpp", "rows.cpp", "kept_folder.cpp"}
SHALLOW = ("-Xclang", "-analyzer-config", "-Xclang", "mode=shallow")
GENERATED = {"facts.h", "unicode_tables.cpp", "unicode_tables.h"}


def test_sources_are_formatted() -> None:
    clang_format = require_program("clang-format", "apt-get install clang-format")
    sources = [path for path in CPP.rglob("*") if path.suffix in (".h", ".hpp", ".cpp", ".c")]
    assert sources
    run([clang_format, "--dry-run", "-Werror", *(str(path) for path in sources if path.name not in GENERATED)])


def test_clang_tidy_finds_nothing() -> None:
    clang_tidy = require_program("clang-tidy", "apt-get install clang-tidy")
    build = installed().with_name("release")
    commands = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
    sources = [path for path in (Path(command["file"]) for command in commands) if path.name not in GENERATED]
    sources.sort(key=lambda path: path.stat().st_size, reverse=True)

    def checked(source: Path) -> str:
        more = [] if source.name in DEEP else [f"--extra-arg={word}" for word in SHALLOW]
        return run([clang_tidy, "--quiet", "-p", str(build), *more, str(source)])

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        list(pool.map(checked, sources))
