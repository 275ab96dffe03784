"""What recipes say, in files, on the command line and as objects, and how those that cannot be are refused."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.training.tiny import RECIPE
from training import train_transformer
from training.demo import hidden_targets
from training.engine import Execution
from training.errors import TrainingError
from training.recipes import files, transformer, vq
from training.recipes.fields import changed, flat, nearest, of_checkpoint, types


def combined(name: str | Path, given: dict[str, Any] | None = None) -> tuple[Any, Execution]:
    """A transformer's recipe."""
    return files.combined(transformer.Recipe, str(name), "transformer", given or {})


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(("trains = 'transformer'", *lines)), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", files.names())
def test_published_recipes_are_whole(name: str) -> None:
    kind, model = (vq.Recipe, "vq") if name.startswith("vq") else (transformer.Recipe, "transformer")
    recipe, execution = files.combined(kind, name, model, {"schedule.steps": 7, "execution.log_every": None})
    assert recipe.schedule.steps == 7 and execution.log_every == 50
    assert execution.precision == ("float32" if name in ("demo", "vq-demo") else "bfloat16")


def test_the_papers_recipe_says_what_the_paper_does() -> None:
    recipe, _ = combined("editar")
    assert recipe == transformer.Recipe()  # the defaults are the paper's
    paper = {
        "model.preset": "GPT-XL", "model.token_dropout": 0.1, "model.token_dropout_on": "text",
        "model.resid_dropout": 0.1, "model.ffn_dropout": 0.1, "model.null_embeddings": "fixed", "data.pictures": 64,
        "optimizer.name": "adamw", "optimizer.lr": 1e-4, "optimizer.weight_decay": 0.05, "optimizer.clip": 1.0,
        "schedule.steps": 40_000, "distillation.teacher": "dinov2", "distillation.weight": 0.5,
        "distillation.view": "reference", "ema.decay": 0.0,
    }  # fmt: skip
    said = flat(dataclasses.asdict(recipe))
    assert {name: said[name] for name in paper} == paper
    assert train_transformer.learning_rate(recipe, 0) == train_transformer.learning_rate(recipe, 39_999) == 1.0


def test_the_papers_recipe_has_none_of_the_demos_tricks() -> None:
    recipe, _ = combined("editar")
    assert recipe.demo == transformer.Demo(False, 1.0, 0.0, 0, ())
    assert hidden_targets(np.random.default_rng(0), recipe, 20_000, (2, 4)) is None


def test_a_recipe_begins_with_the_one_it_extends(tmp_path: Path) -> None:
    write(tmp_path / "base.toml", "extends = 'editar'", "seed = 4", "[optimizer]", "lr = 2e-4", "clip = 2")
    write(tmp_path / "mine.toml", "extends = 'base.toml'", "[optimizer]", "lr = 3e-4", "[execution]", "log_every = 9")
    recipe, execution = combined(tmp_path / "mine.toml")
    editar, how = combined("editar")
    assert recipe == changed(editar, {"seed": 4, "optimizer.lr": 3e-4, "optimizer.clip": 2.0})
    assert execution == dataclasses.replace(how, log_every=9)


def test_a_recipe_that_extends_itself_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", "extends = 'b.toml'")
    write(tmp_path / "b.toml", "extends = 'a.toml'")
    with pytest.raises(TrainingError, match=r"a.toml extends itself; name a recipe that does not begin with this one"):
        combined(tmp_path / "a.toml")


def test_stages_are_tables_of_a_file(tmp_path: Path) -> None:
    stages = "[[demo.stages]]", "[[demo.stages]]", "begins = 9", "translation_share = 1", "restarts = true"
    recipe, _ = combined(write(tmp_path / "r.toml", *stages))
    assert recipe.demo.stages == (transformer.Stage(), transformer.Stage(9, 1.0, restarts=True))


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("optimizer.lr=3e-4", "optimizer.lr", 3e-4),
        (" schedule.steps = 9 ", "schedule.steps", 9),
        ("model.preset=GPT-B", "model.preset", "GPT-B"),  # a word alone needs no quotes
        ("execution.recompute=true", "execution.recompute", True),
        ("demo.stages=[{groups = 5}]", "demo.stages", [{"groups": 5}]),
    ],
)
def test_a_single_field_is_set(text: str, name: str, value: Any) -> None:
    assert files.assignments([text]) == {name: value}
    recipe, execution = combined("editar", {name: value})
    found = flat({**dataclasses.asdict(recipe), "execution": dataclasses.asdict(execution)})[name]
    assert found == value or found == (dataclasses.asdict(transformer.Stage(groups=5)),)


def test_every_field_of_a_recipe_can_be_set() -> None:
    """To the value it has: what is tested is that none is out of reach, of either recipe."""
    for kind in (transformer.Recipe, vq.Recipe):
        values = flat(dataclasses.asdict(kind()))
        assert values.keys() == types(kind).keys() and changed(kind(), values) == kind()


@pytest.mark.parametrize("text", ["optimizer.lr", "=3", "optimizer.lr 3"])
def test_what_assigns_nothing_is_refused(text: str) -> None:
    with pytest.raises(TrainingError, match="--set takes section.field=value, such as optimizer.lr=3e-4, got"):
        files.assignments([text])


@pytest.mark.parametrize(
    ("unknown", "known"),
    [
        ("optimizer.learning", "optimizer.lr"),
        ("optimiser.lr", "optimizer.lr"),
        ("lr", "optimizer.lr"),
        ("weight_decay", "optimizer.weight_decay"),
        ("execution.log_evry", "execution.log_every"),
        ("steps", "schedule.steps"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_known_one(unknown: str, known: str) -> None:
    if unknown != "optimizer.learning":  # where several are as near, any of its section will do
        assert nearest(unknown, files.known_fields(transformer.Recipe)) == known
    with pytest.raises(TrainingError, match=rf"--set: {unknown} is not a field of this recipe; the nearest one is"):
        combined("editar", {unknown: 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trains = 'vq'", "is a recipe that trains 'vq', this command trains 'transformer'"),
        ("", "is a recipe that trains None, this command"),
        ("trains = 'transformer'\nextends = 'editr'", "cannot be read .*; the nearest recipe is editar; there"),
        ("trains = 'transformer'\nextends = 3", "extends = 3 must be the name of a recipe or a path"),
        ("trains = 'transformer'\n[optimizer]\nrate = 1", "optimizer.rate is not a field of this recipe; the nearest"),
        ("trains = 'transformer'\n[schedule]\nsteps = '9'", "schedule.steps = '9' must be of type int"),
        ("trains = 'transformer'\n[schedule]\nsteps = true", "schedule.steps = True must be of type int"),
        ("trains = 'transformer'\n[distillation]\nteacher = 'vgg'", "distillation.teacher is one of world, none"),
        ("trains = 'transformer'\n[demo]\nstages = 3", "demo.stages = 3 must be of type array of tables"),
        ("trains = 'transformer'\n[[demo.stages]]\nbegin = 3", "stages: begin is not a field .* nearest one is begins"),
        ("trains = 'transformer'\n[[demo.stages]]\nbegins = 'now'", "demo.stages: begins = 'now' must be of type int"),
        ("trains = 'transformer'\n[[demo.stages]]\nbegins = 3", "demo.stages begin at step 0 and then later"),
        ("model = 'transformer'\n[recipe]\nsteps = 3", r"has a table \[recipe\], as earlier versions had it; give"),
        ("trains =", "is not TOML"),
    ],
)  # fmt: skip
def test_recipes_that_say_something_else_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(content)
    with pytest.raises(TrainingError, match=message):
        combined(tmp_path / "r.toml")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "int8"}, "precision is one of float32, bfloat16, float16, got 'int8'"),
        ({"compile": "fast"}, "compile is a backend of torch.compile, one of .*inductor.*; got fast"),
        ({"parallel": "zz"}, "execution.parallel is one of auto, none, ddp, fsdp, got 'zz'"),
        ({"device": "gpu"}, "execution.device is one of auto, cpu, cuda, got 'gpu'"),
        ({"until": -1}, "execution.until must be at least 0, got -1"),
        ({"sample_every": -1}, "execution.sample_every must be at least 0, got -1"),
        ({"log_every": 0}, "execution.log_every must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_executions_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Execution(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.pictures": 0}, "data.pictures must be at least 1, got 0"),
        ({"data.drop_text": 0.95}, "and data.drop_text are shares, together at most 1"),
        ({"schedule.warmup": 0}, "schedule.warmup must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"optimizer.lr": float("nan")}, "optimizer.lr must be at least 0, got nan"),
        ({"schedule.decay": 0.0}, "schedule.decay is a share above 0 and up to 1, got 0.0"),
        ({"ema.decay": 1.0}, "ema.decay must be below 1, got 1.0; 0 keeps no average"),
        ({"ema.decay": 2.0}, "ema.decay must be below 1, got 2.0; 0 keeps no average"),
        ({"model.resid_dropout": 1.5}, "model.resid_dropout is a share, from 0 to 1, got 1.5"),
        ({"optimizer.clip": float("inf")}, "optimizer.clip must be at least 0, got inf"),
        ({"model.lora_rank": -1}, "model.lora_rank must be at least 0, got -1"),
        ({"model.lora_rank": 2, "optimizer.name": "muon"}, "LoRA's adapters are trained with optimizer.name = adamw"),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        changed(RECIPE, fields)


# As the demo's checkpoints held their recipes before these had sections.
FLAT_DEMO = {
    "preset": "GPT-demo", "seed": 3, "head_start": True, "steps": 17000, "pictures": 8, "blindfolded": 0.5,
    "blindfold_from": 1750, "muon_lr": 4e-3, "adam_lr": 2e-3, "weight_decay": 0.02, "warmup": 60, "object_weight": 3.0,
    "distillation": 1.0, "dropout": 0.0, "decay": 0.35, "ema": 0.999, "optimizer": "muon", "schedule": "trapezoid",
    "clip": 1.0, "teacher": "world", "lora_rank": 0, "lora_alpha": 16.0,
    "stages": (
        {"begins": 0, "translation_share": -1.0, "groups": 10_000, "restarts": False},
        {"begins": 1250, "translation_share": 0.5, "groups": 10_000, "restarts": False},
        {"begins": 4750, "translation_share": 0.7, "groups": 10_000, "restarts": True},
        {"begins": 6400, "translation_share": 0.625, "groups": 0, "restarts": True},
    ),
}  # fmt: skip
FLAT_DEMO_VQ = {
    "preset": "VQ-16-demo", "picture_size": 128, "seed": 1, "steps": 16000, "decoder_from": 4000, "batch": 8,
    "muon_lr": 4e-3, "adam_lr": 2e-3, "warmup": 50, "continuous_steps": 500, "commitment": 0.25,
    "codebook_weight": 1.0, "chroma_weight": 1.5, "object_weight": 2.0, "decoder_object_weight": 8.0,
    "decoder_reconstruction": "l2", "decoder_lr_factor": 0.5, "ema": 0.998, "restart_every": 100, "optimizer": "muon",
    "schedule": "cosine", "reconstruction": "colour", "perceptual": "none", "perceptual_weight": 1.0,
    "entropy_weight": 0.0, "discriminator_weight": 0.0, "discriminator_from": 20000, "discriminator_channels": 64,
    "adaptive": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name", "model", "earlier"),
    [(transformer.Recipe, "demo", "transformer", FLAT_DEMO), (vq.Recipe, "vq-demo", "vq", FLAT_DEMO_VQ)],
)
def test_the_demos_recipe_is_the_one_that_earlier_checkpoints_hold(
    kind: type, name: str, model: str, earlier: dict[str, Any]
) -> None:
    recipe, _ = files.combined(kind, name, model, {})
    assert of_checkpoint(kind, earlier) == flat(dataclasses.asdict(recipe))


@pytest.mark.parametrize(
    ("module", "strangers"),
    [
        ("training.batches", ("training.train_", "training.student", "training.data.scenes", "training.data.edits")),
        ("training.data.layouts", ("training.train_", "training.data.scenes", "training.data.edits")),
        ("training.recipes.transformer", ("training.train_", "training.student", "training.batches")),
        ("training.student", ("training.train_",)),
    ],
)
def test_modules_do_not_import_what_stands_above_them(module: str, strangers: tuple[str, ...]) -> None:
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "training"}
    try:
        importlib.import_module(module)
        found = [name for name in sys.modules if name.partition(".")[0] == "training"]
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "training"]:
            del sys.modules[name]
        sys.modules.update(kept)
    assert module in found and not [name for name in found if name.startswith(strangers)]


def test_files_nested_without_end_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is not TOML: its values are nested too deeply"):
        combined(write(tmp_path / "r.toml", "a = " + "[" * 5000 + "]" * 5000))


def test_help_loads_no_pytorch() -> None:
    program = (
        "import sys\n"
        "from training.cli import cli\n"
        "cli.main(['transformer', '--help'], standalone_mode=False)\n"
        "print('imported:', *({'torch', 'onnx', 'transformers', 'datasets', 'matplotlib'} & sys.modules.keys()))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported:"
