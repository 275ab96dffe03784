"""The published recipe at a tiny size: however it is carried out it learns the same; what stops it loses nothing."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.training.metric_networks import write_dinov2  # noqa: E402
from tests.training.tiny import EVERY_STEP, RECIPE, SIZE, Parts, make, read_log, write_recipe  # noqa: E402
from training import train_transformer  # noqa: E402
from training.batches import PictureGroups, TokenShards, mixed_groups  # noqa: E402
from training.checkpoints import CheckpointError, load_transformer, open_vq  # noqa: E402
from training.config import TRANSFORMER_PRESETS  # noqa: E402
from training.data.extract import Encoders, extract  # noqa: E402
from training.data.folder import write_folder  # noqa: E402
from training.data.sources import Plan, read_plan  # noqa: E402
from training.data.sources import Source as PlanSource  # noqa: E402
from training.demo import StagedGroups  # noqa: E402
from training.distillation import FeatureDistillation  # noqa: E402
from training.errors import NotFinite, OutOfMemory, TrainingError  # noqa: E402
from training.models.transformer import Transformer  # noqa: E402
from training.optimizers import AdamW, LossScale  # noqa: E402
from training.prefetch import Coming  # noqa: E402
from training.recipes.fields import changed  # noqa: E402
from training.student import Student  # noqa: E402

ROOT = Path(__file__).parents[2]
CONFIG = TRANSFORMER_PRESETS["GPT-tiny"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plain(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe, carried out plainly."""
    folder = tmp_path_factory.mktemp("plain")
    train(folder, parts)
    return folder


def train(folder: Path, parts: Parts, recipe: Any = RECIPE, vq: Path | None = None, **execution: Any) -> Path:
    how = dataclasses.replace(EVERY_STEP, **execution)
    return train_transformer.train(folder, parts.public, None, vq, recipe, how)


def losses(folder: Path) -> Any:
    log = read_log(folder)
    return torch.tensor([[line["loss"], line["distillation"], line["gradient"]] for line in log], dtype=torch.float64)


@pytest.mark.parametrize(
    "execution",
    [{"accumulate": 2}, {"accumulate": 4}, {"recompute": True}, {"compile": "eager"}, {"prefetch": 2}],
    ids=lambda e: "-".join(map(str, *e.items())),
)
def test_how_a_recipe_is_carried_out_changes_nothing(
    parts: Parts, plain: Path, tmp_path: Path, execution: dict[str, Any]
) -> None:
    train(tmp_path, parts, **execution)
    # Sums over pieces differ in order alone, see test_distributed.py.
    torch.testing.assert_close(losses(tmp_path), losses(plain), rtol=1e-4, atol=1e-4)


def test_the_log_tells_the_share_of_tokens_that_are_predicted(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Student.forward

    def all_right(self: Any, *arguments: Any) -> Any:
        loss, taught, right = forward(self, *arguments)
        return loss, taught, torch.ones_like(right)

    monkeypatch.setattr(Student, "forward", all_right)
    train(tmp_path, parts)
    for line in read_log(tmp_path):
        shares = {value for name, value in line.items() if name.startswith("changed_right_")}
        assert shares == {0.0, 1.0} or shares == {1.0}  # 0 of a kind that the step did not see


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_goes_on_from_any_step(parts: Parts, tmp_path: Path, stop: int) -> None:
    """With dropout and a falling learning rate: everything a step draws follows from the seed and the step."""
    recipe = changed(
        RECIPE,
        {
            "model.token_dropout": 0.1,
            "model.resid_dropout": 0.1,
            "model.ffn_dropout": 0.1,
            "schedule.name": "cosine",
            "schedule.warmup": 2,
        },
    )
    train(tmp_path / "whole", parts, recipe)
    train(tmp_path / "parts", parts, recipe, until=stop)
    train(tmp_path / "parts", parts, recipe)
    torch.testing.assert_close(losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=0, atol=1e-6)


def test_what_was_logged_after_the_checkpoint_is_logged_once(parts: Parts, tmp_path: Path) -> None:
    train(tmp_path, parts, until=2)
    with open(tmp_path / "log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 3, "loss": 0.0, "seconds": 1.0}\n{"step": 4, "los')  # then it was killed
    train(tmp_path, parts)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def killed(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of `tests.training.killed`."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.training.killed", str(parts.public), str(folder)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120, check=True)
    return folder


@pytest.mark.parametrize("way", ["none", "fsdp"])
def test_a_kill_in_the_middle_of_saving_loses_no_checkpoint(parts: Parts, plain: Path, killed: Path, way: str) -> None:
    run = killed / way
    assert list(run.glob("*.partial"))  # what was being written
    train(run, parts, parallel=way)
    torch.testing.assert_close(losses(run), losses(plain), rtol=0, atol=1e-6)


def test_a_sharded_checkpoint_is_on_the_disk_before_it_has_its_name(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(str(Path(f"/proc/self/fd/{number}").readlink())))
    train(tmp_path, parts, parallel="fsdp", until=1)
    checkpoint = tmp_path / "step-00000001"
    before = {f"{checkpoint}.partial/{path.name}" for path in checkpoint.iterdir()} | {f"{checkpoint}.partial"}
    assert len(before) == 3 and before <= set(synced[: synced.index(str(tmp_path))])


def test_a_loss_that_is_not_finite_stops_and_names_step_batch_and_checkpoint(parts: Parts, tmp_path: Path) -> None:
    spoilt = tmp_path / "shards"
    spoilt.mkdir()
    for path in sorted(parts.public.iterdir()):
        with np.load(path) as shard:
            arrays = dict(shard)
        if path.name == "shard-00001.npz":
            arrays["features"][1] = np.nan
        np.savez(spoilt / path.name, **arrays)
    recipe = changed(RECIPE, {"data.pictures": 1, "schedule.steps": 16})
    seed = next(s for s in range(3, 99) if _bad_step(changed(recipe, {"seed": s})) == 3)
    recipe = changed(recipe, {"seed": seed})
    with pytest.raises(
        NotFinite, match=r"step 3: the loss .* the batch is shard-00001.npz 1; the checkpoint of step 2 is kept"
    ):
        train_transformer.train(tmp_path / "run", spoilt, None, None, recipe, EVERY_STEP)
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert state["step"] == 2 and all(torch.isfinite(t).all() for t in state["model"].values())


def _bad_step(recipe: train_transformer.Recipe) -> int:
    """The first step that sees group 5, the second of the second shard."""
    steps = range(recipe.schedule.steps)
    staged = StagedGroups(recipe, np.zeros(8, bool))
    return next(s for s in steps if 5 in staged.of_step(s))


def test_out_of_memory_says_what_to_lower(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = train_transformer.Student.forward

    def hungry(self: Any, piece: Any, totals: Any) -> Any:
        torch.empty(2**46)  # the allocator's own refusal
        return forward(self, piece, totals)

    monkeypatch.setattr(train_transformer.Student, "forward", hungry)
    with pytest.raises(OutOfMemory, match=r"step 0: out of memory on cpu; .*--accumulate 2\), recompute layers"):
        train(tmp_path, parts)


def test_memory_that_is_lacking_after_a_step_is_said_too(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(train_transformer.TransformerTask, "score", hungry)
    with pytest.raises(OutOfMemory, match=r"step 1: out of memory on cpu; .*; the checkpoint of step 2 is kept"):
        train(tmp_path, parts)
    assert (tmp_path / "transformer.pt").exists()


def test_what_comes_of_a_run_is_never_older_than_its_checkpoint(
    parts: Parts, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two, a run would go on from the checkpoint and find nothing left to do."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(train_transformer.TransformerTask, "score", lambda *_: _interrupt())
        train(tmp_path, parts, changed(RECIPE, {"schedule.steps": 2}))
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 2
    found = torch.load(tmp_path / "transformer.pt", weights_only=True)["model"]
    (tmp_path / "transformer.pt").unlink()
    train(tmp_path, parts, changed(RECIPE, {"schedule.steps": 2}))  # nothing is left to train, and yet it is made again
    again = torch.load(tmp_path / "transformer.pt", weights_only=True)["model"]
    assert all(torch.equal(found[name], again[name]) for name in found)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_float16_halves_its_scale_until_gradients_fit(parts: Parts, tmp_path: Path) -> None:
    train(tmp_path, parts, changed(RECIPE, {"schedule.steps": 6}), precision="float16")
    scale, _ = torch.load(tmp_path / "last.pt", weights_only=True)["loss_scale"]
    assert 1 < scale <= 2**16
    # float16 has three decimal digits.
    assert abs(losses(tmp_path)[-1, 0] - 4.0) < 0.5


def test_a_loss_scale_falls_at_once_and_rises_in_time() -> None:
    scale = LossScale(8.0, patience=2)
    values = []
    for finite in (False, True, True, True, False):
        scale.update(finite)
        values.append(scale.value)
    assert values == [4.0, 4.0, 8.0, 8.0, 4.0]


def test_only_matrices_decay() -> None:
    model = Transformer(CONFIG)
    optimizer = AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    decays, stays = optimizer.optimizers[0].param_groups
    assert decays["weight_decay"] == 0.05 and all(p.ndim >= 2 for p in decays["params"])
    assert stays["weight_decay"] == 0 and len(stays["params"]) == 2 * CONFIG.n_layer + 1  # the norms
    assert decays["betas"] == (0.9, 0.95)


def test_the_papers_head_is_a_convolution_over_the_predicting_positions() -> None:
    model = Transformer(CONFIG)  # 8 x 8 tokens
    head = FeatureDistillation(model, size=6, patches=4)
    assert head.project.weight.shape == (6, CONFIG.dim, 2, 2) and head.project.stride == (2, 2)
    hidden = torch.randn(1, 64, CONFIG.dim)
    features = torch.zeros(1, 4, 4, 6)
    # The patch in row 1, column 2 covers rows 2-3 and columns 4-5: tokens 20, 21, 28, 29.
    window = hidden[0, [20, 21, 28, 29]]  # [4, D]
    features[0, 1, 2] = torch.einsum("kd,fdk->f", window, head.project.weight.flatten(2)) + head.project.bias
    batch: Any = type("B", (), {"features": features})
    with torch.no_grad():
        made = head.project(hidden.transpose(1, 2).unflatten(2, (8, 8)))
        torch.testing.assert_close(made[0, :, 1, 2], features[0, 1, 2])
        wanted = (made.permute(0, 2, 3, 1) - features).square().mean()
        torch.testing.assert_close(head(hidden, batch, torch.zeros(1), torch.ones(())), wanted)
    with pytest.raises(TrainingError, match="5 x 5 patches are too many for 8 x 8 tokens; their side must be 8 or at"):
        FeatureDistillation(model, size=6, patches=5)


def test_condition_dropout_has_the_papers_shares() -> None:
    class Drawn:
        def random(self, rows: int) -> Any:
            return np.asarray([0.0, 0.049, 0.05, 0.099, 0.10, 0.95, 0.951, 0.999])

    picture, text = train_transformer.condition_dropout(Drawn(), 8)  # type: ignore[arg-type]
    assert picture.tolist() == [True, True, True, True, False, False, False, False]
    assert text.tolist() == [True, True, False, False, False, False, True, True]


@pytest.mark.parametrize("teacher", ["dinov2", "clip", "none"])
def test_the_teacher_is_a_switch(parts: Parts, tmp_path: Path, teacher: str) -> None:
    recipe = changed(RECIPE, {"distillation.teacher": teacher, "schedule.steps": 1})
    kind = "clip_vision_model" if teacher == "clip" else "dinov2"
    shards = _shards(parts, tmp_path / "shards", lambda a: a.update(features_from=kind, features_view="both"))
    train_transformer.train(tmp_path / "run", shards, None, None, recipe, EVERY_STEP)
    assert ("distillation" in read_log(tmp_path / "run")[0]) == (teacher != "none")


@pytest.mark.parametrize(("teacher", "kind"), [("clip", "dinov2"), ("dinov2", "clip"), ("dinov2", "vit")])
def test_features_of_another_model_than_the_teacher_are_refused(
    parts: Parts, tmp_path: Path, teacher: str, kind: str
) -> None:
    shards = _shards(parts, tmp_path / "shards", lambda a: a.update(features_from=kind))
    recipe = changed(RECIPE, {"distillation.teacher": teacher})
    message = rf"shard-0.npz holds features of a model of the type {kind}, the recipe's teacher is {teacher}; choose"
    with pytest.raises(TrainingError, match=message):
        train_transformer.train(tmp_path / "run", shards, None, None, recipe, EVERY_STEP)


def test_features_of_shards_that_do_not_say_whose_they_are_serve_any_teacher(parts: Parts, tmp_path: Path) -> None:
    train(tmp_path, parts, changed(RECIPE, {"distillation.teacher": "clip", "schedule.steps": 1}))
    assert "distillation" in read_log(tmp_path)[0]


def test_pictures_encoded_meanwhile_give_the_losses_of_extracted_ones(parts: Parts, tmp_path: Path) -> None:
    from tests.training.data_sets import world_samples
    from training.data.features import PatchFeatures

    write_folder(tmp_path / "set", world_samples(6, ("recolour", "depth"), size=SIZE))
    teacher = write_dinov2(tmp_path / "dinov2")
    plan = Plan((PlanSource(tmp_path / "set"),))
    extract(plan, tmp_path / "shards", Encoders(open_vq(parts.vq), features=PatchFeatures(teacher)), SIZE)
    recipe = changed(RECIPE, {"schedule.steps": 3})
    arguments = (parts.text_encoder, parts.vq, recipe, EVERY_STEP)
    train_transformer.train(tmp_path / "a", tmp_path / "shards", *arguments)
    train_transformer.train(tmp_path / "b", None, *arguments, data=tmp_path / "set", teacher_folder=teacher)
    torch.testing.assert_close(losses(tmp_path / "a"), losses(tmp_path / "b"), rtol=1e-4, atol=1e-4)
    with pytest.raises(TrainingError, match="a model of the type dinov2, the recipe's teacher is clip"):
        other = changed(recipe, {"distillation.teacher": "clip"})
        train_transformer.train(
            tmp_path / "c", None, parts.text_encoder, parts.vq, other, data=tmp_path / "set", teacher_folder=teacher
        )


def test_bad_records_met_while_training_are_named_and_counted(parts: Parts, tmp_path: Path) -> None:
    from tests.training.data_sets import world_samples

    write_folder(tmp_path / "set", world_samples(4, ("recolour",), size=SIZE))
    (tmp_path / "set/pictures/000002-target.png").write_bytes(b"no picture")
    said: list[str] = []
    recipe = changed(RECIPE, {"distillation.teacher": "none", "schedule.steps": 3})  # three epochs
    arguments = (None, parts.text_encoder, parts.vq, recipe, EVERY_STEP)
    train_transformer.train(tmp_path / "run", *arguments, data=tmp_path / "set", report=said.append)
    bad = [line for line in said if line.startswith("bad: ")]
    assert len(bad) == 1 and "000002-target.png cannot be read" in bad[0]
    assert [line["bad_records"] for line in read_log(tmp_path / "run")] == [1.0, 1.0, 1.0]


def test_shards_with_sources_are_drawn_by_their_shares(parts: Parts, tmp_path: Path) -> None:
    with np.load(parts.public / "shard-00000.npz") as shard:
        arrays = dict(shard)
    np.savez(tmp_path / "shard-0.npz", **arrays, source=["a", "a", "a", "b"])
    (tmp_path / "extraction.json").write_text('{"shares": {"a": 0.2, "b": 0.8}}')
    source = TokenShards(tmp_path, CONFIG, None)
    drawn = mixed_groups(source, seed=0, first=0, count=1000)
    assert (drawn == 3).sum() == 800 and set(drawn.tolist()) == {0, 1, 2, 3}
    assert not np.array_equal(drawn, mixed_groups(source, seed=1, first=0, count=1000))


def test_a_data_set_that_has_a_share_and_no_group_is_refused(parts: Parts, tmp_path: Path) -> None:
    with np.load(parts.public / "shard-00000.npz") as shard:
        arrays = dict(shard)
    np.savez(tmp_path / "shard-0.npz", **arrays, source=["a"] * 4)
    (tmp_path / "extraction.json").write_text('{"shares": {"a": 0.7, "b": 0.3}}')
    with pytest.raises(TrainingError, match=r"holds no group of b \(share 0.3\); finish the extraction, or take"):
        TokenShards(tmp_path, CONFIG, None)


def _shards(parts: Parts, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    with np.load(parts.public / "shard-00000.npz") as shard:
        arrays = dict(shard)
    change(arrays)
    folder.mkdir()
    np.savez(folder / "shard-0.npz", **arrays)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(condition=a["condition"][:, :16]), r"a condition has 16 tokens, .* have 64 \(8 x 8\)"),
        (lambda a: a.update(target=a["target"] + 64), r"token \d+ in shard-0.npz .* is not in the .* vocabulary of 64"),
        (lambda a: a.pop("text_states"), "holds no text states; give the text encoder, --text-encoder FOLDER"),
        (lambda a: a.update(text_states=a["text_states"][..., :8]), "text states of 12 x 8, the transformer takes 12"),
        (lambda a: a.pop("features"), "the teacher dinov2 needs features of the target pictures"),
        (lambda a: a.pop("task"), "not every shard has task"),
        (lambda a: a.update(task=np.full((4, 1), "colourize")), "has tasks colourize; allowed: edit, depth"),
    ],
)
def test_shards_that_do_not_fit_are_refused_in_one_sentence(
    parts: Parts, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        train_transformer.train(
            tmp_path / "run", _shards(parts, tmp_path / "shards", change), None, None, RECIPE, EVERY_STEP
        )


def test_files_that_are_no_runs_are_refused(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file; give the folder of a run"):
        train(tmp_path / "file", parts)
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(CheckpointError, match=r"last.pt is not a whole checkpoint"):
        train(tmp_path, parts)
    with pytest.raises(TrainingError, match=r"has no tokenizer.json"):
        train_transformer.train(tmp_path / "run", parts.world, tmp_path, None, RECIPE, EVERY_STEP)


def test_batches_come_in_order_from_ahead() -> None:
    with Coming(lambda step: step * 10, 7, ahead=2) as coming:
        assert [coming.take(step) for step in range(3, 7)] == [30, 40, 50, 60]


def test_adapters_need_weights_to_stand_beside(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="LoRA trains adapters beside finished weights; give those with --init"):
        train(tmp_path, parts, changed(RECIPE, {"distillation.teacher": "none", "model.lora_rank": 2}))


def test_numbers_go_to_tensorboard_and_pictures_to_grids(parts: Parts, tmp_path: Path) -> None:
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = changed(RECIPE, {"schedule.steps": 2})
    train(tmp_path, parts, recipe, vq=parts.vq, tensorboard=True, sample_every=2, peak_tflops=1.0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = read_log(tmp_path)
    # TensorBoard holds float32.
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([line["loss"] for line in logged], rel=1e-6)
    assert "samples" in events.Tags()["images"]
    with Image.open(tmp_path / "samples-00000002.png") as picture:
        assert picture.size == (4 * SIZE, 3 * SIZE)  # four examples; condition, made, target
    # MFU and tokens/s stand in the ratio of the work a token takes: 4 x 64 picture and 4 x (12 + 63) other positions.
    per_token = logged[0]["mfu"] * 1e12 / logged[0]["tokens_per_second"]
    dense = 6 * sum(p.numel() for name, p in Transformer(CONFIG).named_parameters() if "layers" in name and p.ndim == 2)
    assert dense < per_token < 2 * dense  # and attention, the stand-in for a dropped picture, text and output


def test_groups_kept_from_training_tell_what_was_learned_by_heart(parts: Parts, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "shard-00000.npz").symlink_to(parts.public / "shard-00001.npz")
    recipe = changed(RECIPE, {"schedule.steps": 2})
    train_transformer.train(tmp_path / "run", parts.public, None, None, recipe, EVERY_STEP, validation=kept)
    line = read_log(tmp_path / "run")[-1]
    model = Transformer(CONFIG).eval()
    model.load_state_dict(torch.load(tmp_path / "run" / "transformer.pt", weights_only=True)["model"])

    def predicted(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        with np.load(parts.public / f"shard-{index:05d}.npz") as shard, torch.no_grad():
            condition, target = (torch.from_numpy(shard[n].astype(np.int64)) for n in ("condition", "target"))
            states = torch.from_numpy(shard["text_states"]).flatten(0, 1).float()
            whole = torch.zeros(len(condition), dtype=torch.bool)
            return model(condition, states, target[:, 0], whole, whole), target[:, 0]

    losses = [torch.nn.functional.cross_entropy(x.flatten(0, 1), y.flatten()).item() for x, y in map(predicted, (0, 1))]
    assert line["validation_loss"] == pytest.approx(losses[1], rel=1e-5)
    assert line["seen_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    logits, target = predicted(1)
    with np.load(parts.public / "shard-00001.npz") as shard:
        edits, differs = shard["task"][:, 0] == "edit", shard["target"][:, 0] != shard["condition"]
        for task in sorted(set(shard["task"].ravel().tolist())):
            rows = torch.from_numpy(shard["task"][:, 0] == task)[:, None]
            matters = rows & torch.from_numpy(differs | ~edits[:, None])
            right = ((logits.argmax(-1) == target) & matters).sum() / matters.sum()
            assert line[f"validation_right_{task}"] == pytest.approx(right.item())


def test_a_checkpoint_exports_and_edits(parts: Parts, plain: Path, tmp_path: Path) -> None:
    import editar_rt
    from export.bundle_writer import Options, Sources, write_bundle
    from export.checkpoint_reader import read_transformer, read_vq
    from export.text_reader import read_text_encoder

    sources = Sources(
        read_transformer(plain / "transformer.pt"), read_vq(parts.vq), read_text_encoder(parts.text_encoder)
    )
    write_bundle(tmp_path / "bundle", sources, Options(image_size=SIZE))
    picture = np.full((SIZE, SIZE, 3), 128, np.uint8)
    from PIL import Image

    result = editar_rt.load(tmp_path / "bundle").edit(Image.fromarray(picture), "make the ball red")
    assert result.image.size == (SIZE, SIZE)


def test_adapters_are_merged_into_the_official_layout(parts: Parts, plain: Path, tmp_path: Path) -> None:
    recipe = changed(RECIPE, {"distillation.teacher": "none", "model.lora_rank": 2, "model.lora_alpha": 4.0})
    for until in (2, 0):
        train_transformer.train(
            tmp_path,
            parts.public,
            None,
            None,
            recipe,
            dataclasses.replace(EVERY_STEP, until=until),
            init=plain / "transformer.pt",
        )
    begun, trained = (torch.load(f / "transformer.pt", weights_only=True)["model"] for f in (plain, tmp_path))
    assert begun.keys() == trained.keys()
    learned = {name for name in begun if not torch.equal(begun[name], trained[name])}
    assert learned == {name for name in begun if name.startswith("layers.") and begun[name].ndim == 2}
    for name in learned:
        assert torch.linalg.matrix_rank(trained[name] - begun[name], rtol=1e-3) <= 2
    load_transformer(tmp_path / "transformer.pt")


def test_the_command_line_takes_a_recipe_and_options_before_it(parts: Parts, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from training.cli import cli

    recipe = write_recipe(tmp_path / "tiny.toml")
    run = tmp_path / "run"
    command = ["transformer", str(run), "--recipe", str(recipe), "--tokens", str(parts.public)]
    settings = ["--set", "optimizer.lr=3e-4", "--set", "schedule.steps=2"]
    done = CliRunner().invoke(
        cli, [*command, "--teacher", "none", "--steps", "9", "--accumulate", "2", "--device", "cpu", *settings]
    )
    assert done.exit_code == 0 and done.stdout.strip() == str(run / "transformer.pt")
    assert torch.load(run / "last.pt", weights_only=True)["recipe"] == dataclasses.asdict(
        changed(RECIPE, {"distillation.teacher": "none", "schedule.steps": 2, "optimizer.lr": 3e-4})
    )
    both = CliRunner().invoke(cli, [*command, "--data", str(tmp_path)])
    assert both.exit_code == 2 and "give one of --tokens and --data" in both.output


def test_sample_pictures_without_a_tokenizer_are_refused_before_training(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="sample pictures need the tokenizer; give --vq, or set sample_every = 0"):
        train(tmp_path, parts, sample_every=100)


def test_a_plan_of_pictures_needs_its_encoders(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="pictures are encoded while training by --vq and --text-encoder"):
        train_transformer.train(tmp_path, None, None, parts.vq, RECIPE, EVERY_STEP, data=tmp_path)
    assert PictureGroups.examples == 1 and read_plan(tmp_path / "set").sources
