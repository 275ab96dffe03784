"""What recipes say, in files and as objects, and how those that cannot be are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.training.tiny import RECIPE
from training import recipe_files, train_transformer, train_vq
from training.engine import Execution
from training.errors import TrainingError


@pytest.mark.parametrize("name", recipe_files.names())
def test_published_recipes_are_whole(name: str) -> None:
    kind, model = (train_vq.Recipe, "vq") if name.startswith("vq") else (train_transformer.Recipe, "transformer")
    recipe, execution = recipe_files.combined(kind, name, model, {"steps": 7, "log_every": None})
    assert recipe.steps == 7 and execution.log_every == 50 and execution.precision == "bfloat16"


def test_stages_are_tables_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(
        "model = 'transformer'\n[[recipe.stages]]\n"
        "[[recipe.stages]]\nbegins = 9\ntranslation_share = 1\nrestarts = true"
    )
    recipe, _ = recipe_files.combined(train_transformer.Recipe, str(tmp_path / "r.toml"), "transformer", {})
    assert recipe.stages == (train_transformer.Stage(), train_transformer.Stage(9, 1.0, restarts=True))


def test_the_papers_recipe_says_what_the_paper_does() -> None:
    recipe, _ = recipe_files.combined(train_transformer.Recipe, "editar", "transformer", {})
    paper = {
        "preset": "GPT-XL", "steps": 40_000, "pictures": 64, "adam_lr": 1e-4, "weight_decay": 0.05, "clip": 1.0,
        "dropout": 0.1, "distillation": 0.5, "teacher": "dinov2", "optimizer": "adamw", "object_weight": 1.0,
    }  # fmt: skip
    assert {name: getattr(recipe, name) for name in paper} == paper
    assert train_transformer.learning_rate(recipe, 0) == train_transformer.learning_rate(recipe, 39_999) == 1.0
    assert train_transformer.hidden_targets(np.random.default_rng(0), recipe, 20_000, (2, 4)) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model = 'vq'", 'is a recipe for model = "vq", this command trains transformer'),
        ("model = 'transformer'\n[recipe]\nrate = 1", "'rate' is none of preset, seed"),
        ("model = 'transformer'\n[recipe]\nsteps = '9'", "steps = '9' must be of type int"),
        ("model = 'transformer'\n[recipe]\nteacher = 'vgg'", "teacher is one of world, none, dinov2, clip, got 'vgg'"),
        ("model = 'transformer'\n[recipe]\nstages = 3", "stages = 3 must be of type array of tables"),
        ("model = 'transformer'\n[[recipe.stages]]\nsteps = 3", "stages: 'steps' is none of begins, translation_share"),
        ("model = 'transformer'\n[[recipe.stages]]\nbegins = 'now'", "stages: begins = 'now' must be of type int"),
        ("model = 'transformer'\n[[recipe.stages]]\nbegins = 3", "stages begin at step 0 and then later"),
        ("model = 'transformer'\n[extra]", "sets extra; allowed: model"),
        ("model =", "is not TOML"),
    ],
)
def test_recipes_that_say_something_else_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(content)
    with pytest.raises(TrainingError, match=message):
        recipe_files.combined(train_transformer.Recipe, str(tmp_path / "r.toml"), "transformer", {})


def test_a_recipe_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(TrainingError, match="there are: editar, editar-lora, vq-16, vq-8"):
        recipe_files.read("edit", "transformer")


def test_precisions_and_compilers_that_do_not_exist_are_refused() -> None:
    with pytest.raises(TrainingError, match="precision is one of float32, bfloat16, float16, got int8"):
        Execution(precision="int8")
    with pytest.raises(TrainingError, match="compile is a backend of torch.compile, one of .*inductor.*; got fast"):
        Execution(compile="fast")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pictures": 0}, "pictures must be at least 1, got 0"),
        ({"warmup": 0}, "warmup must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"adam_lr": float("nan")}, "adam_lr must be at least 0, got nan"),
        ({"decay": 0.0}, "decay is a share above 0 and up to 1, got 0.0"),
        ({"lora_rank": -1}, "lora_rank must be at least 0, got -1"),
    ],
)
def test_recipes_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        dataclasses.replace(RECIPE, **fields)
