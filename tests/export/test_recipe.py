"""Recipes of target devices: what the published ones say, what options change, and what is refused."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from editar_rt.errors import OptionError
from export.precision import Storage, storage
from export.recipe import FIELDS, ONNX, TENSORRT, EngineRecipe, read_engines, read_storage, recipe_names

READERS = {ONNX: read_storage, TENSORRT: read_engines}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_exported(name: str) -> None:
    stored = storage(name)
    assert stored.provider in stored.providers


def test_recipes_for_tensorrt_have_steps_with_and_without_guidance() -> None:
    assert recipe_names(TENSORRT) == [
        "h200",
        "jetson-orin-jp5",
        "jetson-orin-jp6",
        "jetson-thor-jp7",
        "jetson-thor-jp72",
        "rtx",
        "rtx-anywhere",
    ]
    for name in recipe_names(TENSORRT):
        recipe = read_engines(name)
        assert 1 in recipe.rows and 2 in recipe.rows and not (recipe.shared and name == "jetson-orin-jp5")


def test_every_field_can_be_set() -> None:
    assert FIELDS[TENSORRT].keys() == {field.name for field in dataclasses.fields(EngineRecipe)}
    assert FIELDS[ONNX].keys() - {"precisions"} == {field.name for field in dataclasses.fields(Storage)}


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
        return str(tmp_path / "mine.toml")

    return write


def test_options_take_the_place_of_the_recipes(recipe: Callable[[str], str]) -> None:
    assert storage("cpu", precision="fp32", kv_cache=None) == Storage("fp32", kv_cache="int8")
    assert storage(recipe('[onnx]\ndialect = "standard"\n')) == Storage(dialect="standard")
    mine = recipe('[onnx]\ndialect = "delta"\nsampling_head = true\nprecisions = ["fp32", "fp16"]\n')
    assert storage(mine) == Storage(dialect="delta", sampling_head=True)
    assert not storage(mine, sampling_head=False).sampling_head
    assert storage("jetson-thor-jp7", precision="int4").numbers.blocks is not None
    for name in (mine, "jetson-orin-jp5"):
        with pytest.raises(OptionError, match="cannot read precision int4; use --precision fp32 or fp16"):
            storage(name, precision="int4")


@pytest.mark.parametrize(
    ("table", "text", "message"),
    [
        (ONNX, "[onnx", "is not TOML"),
        (ONNX, "a = " + "[" * 5000 + "]" * 5000, "is not TOML: its values are nested too deeply"),
        (ONNX, "#" * (2 << 20), r"^\S+ is larger than 1 MiB"),
        (ONNX, "", r"has no table \[onnx\]; the recipes that have one: cpu, cuda"),
        (TENSORRT, "", r"has no table \[tensorrt\]; the recipes that have one: h200"),
        (ONNX, "onnx = 5", r"onnx must be a table, .* got 5"),
        (TENSORRT, 'tensorrt = ["picture"]', "tensorrt must be a table"),
        (ONNX, "recipe = 5", r"sets recipe; a recipe has the tables \[onnx\] and \[tensorrt\]"),
        (ONNX, "[onnx]\nprecision = 8", "precision must be one of fp32, .* got 8"),
        (ONNX, '[onnx]\nprecision = ["fp32"]', "precision must be one of"),
        (ONNX, "[onnx]\nsampling_head = 1", "sampling_head must be true or false, got 1"),
        (ONNX, '[onnx]\nprecisions = "int4"', "precisions must be a non-empty list of fp32, .* got 'int4'"),
        (ONNX, '[onnx]\nprecisions = [["int4"]]', "precisions must be a non-empty list"),
        (ONNX, "[onnx]\ndropout = 1.5", r"\[onnx\] has no field dropout; its fields: precision, "),
        (TENSORRT, "[tensorrt]\nspeed = 1", r"\[tensorrt\] has no field speed; its fields: rows"),
        (TENSORRT, "[tensorrt]\nrows = [0]", "rows must be a non-empty list of integers from 1 to 128"),
        (TENSORRT, "[tensorrt]\nrows = [true]", "rows must be a non-empty list of integers from 1 to 128"),
        (TENSORRT, "[tensorrt]\nrows = []", "rows must be a non-empty list of .*, got"),
        (TENSORRT, '[tensorrt]\nchunks = ["all"]', "chunks must be a non-empty list"),
        (TENSORRT, "[tensorrt]\nshared = 1", "shared must be true or false, got 1"),
        (TENSORRT, "[tensorrt]\nworkspace_mib = nan", "workspace_mib must be an integer from 1 to 1048576, got nan"),
        (TENSORRT, "[tensorrt]\noptimization_level = 9", "optimization_level must be an integer from 0 to 5, got 9"),
        # Both tables are checked, whichever is read.
        (ONNX, '[onnx]\nprecision = "fp16"\n[tensorrt]\nrows = 2', "rows must be a non-empty list"),
    ],
)
def test_bad_recipes_are_refused(recipe: Callable[[str], str], table: str, text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        READERS[table](recipe(text))


@pytest.mark.parametrize("read", READERS.values())
def test_a_recipe_that_is_not_a_file_is_not_waited_for(read: Callable[[str], Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for name in ("toaster", str(tmp_path / "pipe.toml"), str(tmp_path / ("x" * 300 + ".toml")), "nul\0"):
        with pytest.raises(OptionError, match=r"recipe.*there are: cpu, cuda|null"):
            read(name)
    with pytest.raises(OptionError, match=r"^there is no recipe \S+; there are: cpu, cuda"):
        read("toaster")
