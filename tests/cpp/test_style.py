"""The C++ sources are formatted, and clang-tidy finds no fault in them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from tests.cpp.build import CPP
from tests.cpp.installed import run
from tests.cpp.tidy import GENERATED, checked, sources_to_check
from tests.tools import require_program


def test_sources_are_formatted() -> None:
    clang_format = require_program("clang-format", "apt-get install clang-format")
    sources = [path for path in CPP.rglob("*") if path.suffix in (".h", ".hpp", ".cpp", ".c")]
    assert sources
    run([clang_format, "--dry-run", "-Werror", *(str(path) for path in sources if path.name not in GENERATED)])


def test_clang_tidy_finds_nothing() -> None:
    sources = sources_to_check()
    assert sources
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        list(pool.map(checked, sources))
