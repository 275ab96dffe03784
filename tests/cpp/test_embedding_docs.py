"""The examples of docs/embedding.md are built and run; they give the picture that Python's runtime gives."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import editar_rt
from tests.cpp.installed import engine_library, installed, run
from tests.runtime.demo import BUNDLE, PICTURE, WORDS
from tests.tools import require_program

PAGE = Path(__file__).parents[2] / "docs/embedding.md"
MOST_LINES = 75  # of an example


def example(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return text


@pytest.mark.parametrize("language", ["c", "cpp", "python", "rust", "csharp"])
def test_an_example(tmp_path: Path, language: str) -> None:
    prefix, text = installed(), example(language)
    source, program, out = tmp_path / f"example.{language}", tmp_path / "program", tmp_path / "out.png"
    source.write_text(text, encoding="utf-8")
    flags = [f"-I{prefix}/include", f"-L{prefix}/lib", "-leditar", "-o", str(program)]
    command = [str(program)]
    if language == "c":
        run(["gcc", "-std=c99", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Werror", str(source), *flags])
    elif language == "cpp":
        strict = ["-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Wold-style-cast", "-Wshadow"]  # as products may
        run(["g++", "-std=c++17", "-Wall", "-Wextra", *strict, "-Werror", str(source), *flags])
    elif language == "rust":
        compiler = require_program("rustc", "apt-get install rustc")
        run([compiler, "--edition=2021", f"-L{prefix}/lib", str(source), "-o", str(program)])
    elif language == "csharp":
        compiler, mono = (require_program(name, "apt-get install mono-mcs") for name in ("mcs", "mono"))
        run([compiler, "-warnaserror", str(source), f"-out:{program}.exe"])
        command = [mono, f"{program}.exe"]
    else:
        command = [sys.executable, str(source), str(prefix / "lib/libeditar.so")]
    environment = os.environ | {"EDITAR_ONNXRUNTIME": str(engine_library()), "LD_LIBRARY_PATH": str(prefix / "lib")}
    run([*command, str(BUNDLE), str(PICTURE), WORDS, str(out)], env=environment)
    expected = editar_rt.load(BUNDLE).edit(PICTURE, WORDS, seed=7)
    made = Image.open(out)
    assert np.array_equal(np.asarray(made), np.asarray(expected.image))
    assert {name.removeprefix("editar:"): value for name, value in made.info.items()} == expected.parameters


@pytest.mark.parametrize("language", ["c", "cpp", "python", "rust", "csharp"])
def test_an_example_is_short(language: str) -> None:
    assert len(example(language).splitlines()) <= MOST_LINES
