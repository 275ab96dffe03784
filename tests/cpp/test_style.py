"""The C++ sources are formatted, and clang-tidy finds no fault in those that callers and bundles reach first."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cpp.build import CPP
from tests.cpp.installed import installed, run
from tests.tools import require_program

GENERATED = {"facts.h", "unicode_tables.cpp", "unicode_tables.h"}
CHECKED = ("abi.cpp", "sampling.cpp", "scheduler.cpp", "session.cpp", "ort/rows.cpp")


def test_sources_are_formatted() -> None:
    clang_format = require_program("clang-format", "apt-get install clang-format")
    sources = [path for path in CPP.rglob("*") if path.suffix in (".h", ".hpp", ".cpp", ".c")]
    assert sources
    run([clang_format, "--dry-run", "-Werror", *(str(path) for path in sources if path.name not in GENERATED)])


@pytest.mark.parametrize("name", CHECKED)
def test_clang_tidy_finds_nothing(name: str) -> None:
    clang_tidy = require_program("clang-tidy", "apt-get install clang-tidy")
    build = installed().with_name("release")
    assert (build / "compile_commands.json").is_file()
    run([clang_tidy, "--quiet", "-p", str(build), str(Path(CPP) / "src" / name)])
