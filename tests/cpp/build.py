"""Builds small programs and libraries of the C++ sources for tests, apart from CMake."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.tools import require, require_program

CPP = Path(__file__).parents[2] / "editar_rt/cpp"
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", f"-I{CPP}/src", f"-I{CPP}/include")
INSTALL = "apt-get install g++"
PICTURE_FLAGS = ("-DEDITAR_PICTURE_FILES", "-DEDITAR_COLOR_PROFILES")


def picture_libraries() -> list[str]:
    """The linker's flags for PNG, JPEG and colour profiles. Skips the test where their headers are not there."""
    compiler = require_program("g++", INSTALL)
    headers = "".join(f"#include <{name}.h>\n" for name in ("spng", "turbojpeg", "lcms2"))
    found = subprocess.run([compiler, "-E", "-x", "c++", "-"], input=headers.encode(), capture_output=True).returncode
    packages = "libspng-dev libturbojpeg0-dev liblcms2-dev"
    require(found == 0, "headers of libspng, TurboJPEG and Little CMS", f"apt-get install {packages}")
    return ["-lspng", "-lturbojpeg", "-llcms2"]


def build(target: Path, sources: Sequence[Path], flags: Sequence[str] = (), libraries: Sequence[str] = ()) -> Path:
    """Compile sources, two at a time, and link them.

    Args:
        target: the program, or with `-shared` among the flags the library; objects go into its folder.
    """
    compiler = require_program("g++", INSTALL)

    def compiled(source: Path) -> Path:
        object_file = target.with_name(f"{target.stem}-{source.stem}.o")
        _run([compiler, *STRICT, *flags, "-c", str(source), "-o", str(object_file)])
        return object_file

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        objects = [str(path) for path in pool.map(compiled, sources)]
    _run([compiler, *flags, *objects, *libraries, "-o", str(target)])
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
