"""The installed package: what it exports, and products that are built from it by CMake and by pkg-config."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

import editar_rt
from tests.cpp import frozen
from tests.cpp.build import CPP
from tests.cpp.installed import HEADER, PACKAGES, flags_of, installed, onnxruntime_root, run, sanitized
from tests.cpp.lasting import watched_for_races
from tests.runtime.demo import BUNDLE, SIDE, WORDS
from tests.tools import require_program

CONSUMERS = Path(__file__).with_name("consumers")


@pytest.fixture(scope="module")
def expected() -> list[int]:
    picture = np.full((SIDE, SIDE, 3), 128, np.uint8)
    return editar_rt.load(BUNDLE).edit(picture, WORDS).tokens.tolist()


def edited(program: Path, prefix: Path) -> list[int]:
    """The tokens that a product prints."""
    environment = watched_for_races() | {"LD_LIBRARY_PATH": str(prefix / "lib")}
    return [int(token) for token in run([str(program), str(BUNDLE), WORDS], env=environment).split()]


def test_only_the_c_functions_are_exported() -> None:
    library = installed() / "lib/libeditar.so"
    symbols = {line.split()[-1] for line in run(["nm", "-D", "--defined-only", str(library)]).splitlines()}
    names = {symbol.partition("@")[0] for symbol in symbols} - {"EDITAR_0"}
    header = (CPP / "include/editar/editar.h").read_text(encoding="utf-8")
    assert names == set(re.findall(r"EDITAR_CALL\s+(editar_\w+)\(", header))
    said = run(["readelf", "-d", str(library)])
    assert "libeditar.so.0" in said
    assert "onnxruntime" not in said and "python" not in said  # opened at run time, or not at all


def test_what_compiled_programs_rely_on_is_as_it_was() -> None:
    now, kept = frozen.facts(), frozen.frozen()
    assert [line for line in kept if line not in now] == [], "a released program breaks"
    assert [line for line in now if line not in kept] == [], "run: python -m tests.cpp.frozen"


def test_products_of_both_kinds_are_built_by_cmake(tmp_path: Path, expected: list[int]) -> None:
    prefix = installed()
    run(["cmake", "-S", str(CONSUMERS), "-B", str(tmp_path), f"-DCMAKE_PREFIX_PATH={prefix}"])
    run(["cmake", "--build", str(tmp_path)])
    for name in ("c_program", "cpp_program"):
        assert edited(tmp_path / name, prefix) == expected


def built_by_pkg_config(prefix: Path, program: Path, *more: str) -> Path:
    run(["gcc", "-std=c99", *more, str(CONSUMERS / "c_program.c"), *flags_of(prefix), "-o", str(program)])
    return program


def test_a_product_is_built_by_pkg_config(tmp_path: Path, expected: list[int]) -> None:
    prefix = installed()
    assert edited(built_by_pkg_config(prefix, tmp_path / "program"), prefix) == expected
    environment = os.environ | {"PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
    assert run(["pkg-config", "--modversion", "editar"], env=environment).strip() == editar_rt.__version__


def test_a_static_library_serves_too(tmp_path: Path, expected: list[int]) -> None:
    prefix, flag = sanitized("thread"), "-fsanitize=thread"
    assert not list((prefix / "lib").glob("libeditar.so*"))
    flags = [f"-DCMAKE_C_FLAGS={flag}", f"-DCMAKE_CXX_FLAGS={flag}"]
    run(["cmake", "-S", str(CONSUMERS), "-B", str(tmp_path), f"-DCMAKE_PREFIX_PATH={prefix}", *flags])
    run(["cmake", "--build", str(tmp_path)])
    assert edited(tmp_path / "cpp_program", prefix) == expected
    assert edited(built_by_pkg_config(prefix, tmp_path / "program", flag), prefix) == expected


def test_without_the_header_the_build_says_what_to_do(tmp_path: Path) -> None:
    require_program("cmake", PACKAGES)
    assert onnxruntime_root()
    nowhere = [
        f"-DONNXRUNTIME_ROOT={tmp_path}",
        "-DCMAKE_FIND_ROOT_PATH=/nowhere",
        "-DCMAKE_FIND_ROOT_PATH_MODE_INCLUDE=ONLY",
    ]
    with pytest.raises(AssertionError, match=r"onnxruntime_c_api\.h was not found") as failed:
        run(["cmake", "-S", str(CPP), "-B", str(tmp_path), *nowhere])
    assert "-DONNXRUNTIME_ROOT=FOLDER" in str(failed.value)


def test_a_header_is_looked_for_again_where_it_has_moved(tmp_path: Path) -> None:
    require_program("cmake", PACKAGES)
    require_program("g++", PACKAGES)
    first, second = tmp_path / "first", tmp_path / "second"

    def found_below(root: Path) -> str:
        run(["cmake", "-S", str(CPP), "-B", str(tmp_path / "build"), "-DEDITAR_PICTURE_FILES=OFF",
             f"-DONNXRUNTIME_ROOT={root}"])  # fmt: skip
        text = (tmp_path / "build/CMakeCache.txt").read_text(encoding="utf-8")
        return re.findall(r"^ONNXRUNTIME_INCLUDE:PATH=(.*)$", text, re.MULTILINE)[0]

    for root in (first, second):
        (root / "include").mkdir(parents=True)
        (root / "include" / HEADER).touch()
    assert found_below(first) == f"{first}/include"
    assert found_below(second) == f"{second}/include"  # another one was named
    (second / "usr/include").mkdir(parents=True)
    (second / "include").rename(second / "usr/include/onnxruntime")
    assert found_below(second) == f"{second}/usr/include/onnxruntime"  # the same one, which looks different now


@pytest.mark.parametrize(("given", "told"), [("lib", "${prefix}/lib"), ("/somewhere/lib", "/somewhere/lib")])
def test_pkg_config_is_told_where_the_library_is(tmp_path: Path, given: str, told: str) -> None:
    require_program("cmake", PACKAGES)
    options = ["-DEDITAR_PICTURE_FILES=OFF", f"-DONNXRUNTIME_ROOT={onnxruntime_root()}"]
    run(["cmake", "-S", str(CPP), "-B", str(tmp_path), f"-DCMAKE_INSTALL_LIBDIR={given}", *options])
    assert f"\nlibdir={told}\n" in (tmp_path / "editar.pc").read_text(encoding="utf-8")


def test_the_wheel_is_without_it_and_the_source_archive_has_it(tmp_path: Path) -> None:
    text = (CPP.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'exclude = ["editar_rt/cpp"]' in text
