"""clang-tidy over the compiled C++ sources."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cpp.installed import installed, run
from tests.cpp.once import once
from tests.tools import require_program

# Clang's analyzer, which follows paths through calls, takes four fifths of the time. It does so for what callers reach
# first and for what maps memory and files, and within single functions elsewhere.
DEEP = {"abi.cpp", "session.cpp", "rows.cpp", "kept_folder.cpp"}
SHALLOW = ("-Xclang", "-analyzer-config", "-Xclang", "mode=shallow")
GENERATED = {"facts.h", "unicode_tables.cpp", "unicode_tables.h"}


@once
def sources_to_check() -> list[Path]:
    """The compiled sources, the longest first."""
    require_program("clang-tidy", "apt-get install clang-tidy")
    commands = json.loads((_build() / "compile_commands.json").read_text(encoding="utf-8"))
    sources = [path for path in (Path(command["file"]) for command in commands) if path.name not in GENERATED]
    return sorted(sources, key=lambda path: path.stat().st_size, reverse=True)


@once
def checked(source: Path) -> str:
    """What clang-tidy says of a source in which it finds nothing."""
    more = [] if source.name in DEEP else [f"--extra-arg={word}" for word in SHALLOW]
    return run(["clang-tidy", "--quiet", "-p", str(_build()), *more, str(source)])


def _build() -> Path:
    return installed().with_name("release")
