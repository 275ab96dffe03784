"""The demo's recipes, a few steps of each: they run, resume exactly, and give checkpoints that export to a bundle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

import editar_rt
from tests.commands import Command
from tests.training.tiny import read_log
from training import pictures, student, train_text, train_transformer, train_vision, train_vq
from training.checkpoints import CheckpointError, initialize_from, load_transformer, open_vq
from training.config import TRANSFORMER_PRESETS
from training.data.features import PatchFeatures
from training.data.scenes import MEANINGS, random_scene, render
from training.data.tokens import GROUP, write_shards
from training.demo import StagedGroups, hidden_targets
from training.engine import Execution
from training.errors import TrainingError
from training.evaluate import contact_sheet, evaluate, guidance_sweep
from training.loop import cosine_schedule, trapezoid_schedule
from training.models.transformer import Transformer
from training.models.vq import VQModel
from training.plots import plot_guidance, plot_log, plot_runs
from training.recipes.fields import changed, flat
from training.recipes.files import combined
from training.recipes.transformer import EARLIER, Stage
from training.samples import write_samples

VQ, _ = combined(
    train_vq.Recipe,
    "vq-demo",
    "vq",
    {
        "schedule.steps": 6,
        "data.batch": 2,
        "demo.decoder_from": 5,
        "demo.continuous_steps": 3,
        "demo.restart_every": 2,
    },
)
TEXT = train_text.Recipe(steps=2, batch=4)
EVERY_SECOND, EVERY_THIRD = Execution(log_every=2, save_every=2), Execution(log_every=2, save_every=3)
STAGES = Stage(0), Stage(2, 0.7, restarts=True)
TRANSFORMER, _ = combined(
    train_transformer.Recipe,
    "demo",
    "transformer",
    {
        "schedule.steps": 4,
        "schedule.warmup": 2,
        "data.pictures": 2,
        "demo.stages": STAGES,
        "demo.blindfold_from": 2,
    },
)


@pytest.fixture(scope="module", autouse=True)
def fewer_looks() -> Iterator[None]:
    """A run of a few steps spends its time on pictures that it looks at before and after them, and on what every
    token of a tokenizer is like, which its decoder tells: all runs here share one."""
    of_a_tokenizer = student.token_features
    kept: dict[bytes, torch.Tensor] = {}

    def token_features(vq: VQModel) -> torch.Tensor:
        weights = [value for value in vq.state_dict().values() if value.is_floating_point()]
        key = hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in weights)).digest()
        if key not in kept:
            kept[key] = of_a_tokenizer(vq)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(student, "token_features", token_features)
        patch.setattr(pictures, "HELD_OUT", 12)
        patch.setattr(train_vq, "KMEANS_BATCHES", 4)
        patch.setattr(train_text, "TOKENIZER_TEXTS", 2000)
        patch.setattr(train_text, "HELD_OUT", 100)
        patch.setattr(train_vision, "HELD_OUT", 16)
        yield


@dataclasses.dataclass
class Made:
    folder: Path
    vq: Path
    text_encoder: Path
    tokens: Path
    transformer: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """All of the demo's stages, barely trained."""
    folder = tmp_path_factory.mktemp("demo")
    vq = train_vq.train(folder / "vq", VQ, EVERY_THIRD)
    text_encoder = train_text.train(folder / "text", TEXT, log_every=1)
    write_shards(folder / "tokens", vq, VQ.data.picture_size, seed=4, shards=2, groups=5, workers=1)
    transformer = train_transformer.train(
        folder / "transformer", folder / "tokens", text_encoder, vq, TRANSFORMER, EVERY_SECOND
    )
    return Made(folder, vq, text_encoder, folder / "tokens", transformer)


def same_weights(a: Path, b: Path) -> bool:
    one, other = (torch.load(p, weights_only=True)["model"] for p in (a, b))
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_shards_hold_what_they_say(made: Made) -> None:
    with np.load(made.tokens / "shard-00000.npz") as shard:
        assert shard["condition"].shape == (5, 64) and shard["target"].shape == (5, GROUP, 64)
        assert shard["text"].shape == shard["task"].shape == shard["kind"].shape == (5, GROUP)
        assert shard["meaning"].shape == (5, 1 + GROUP, 64, len(MEANINGS)) and shard["meaning"].dtype == np.uint8
        assert shard["target"].max() < open_vq(made.vq).config.codebook_size


def test_shards_are_repeatable_and_kept(made: Made, tmp_path: Path) -> None:
    write_shards(tmp_path, made.vq, VQ.data.picture_size, seed=4, shards=1, groups=5, workers=1)
    path = tmp_path / "shard-00000.npz"
    with np.load(path) as again, np.load(made.tokens / path.name) as first:
        assert all(np.array_equal(again[k], first[k]) for k in first.files)
    stamp = path.stat().st_mtime_ns
    write_shards(tmp_path, made.vq, VQ.data.picture_size, seed=4, shards=1, groups=5, workers=1)
    assert path.stat().st_mtime_ns == stamp


def test_a_stopped_transformer_goes_on_as_if_it_had_not(made: Made, tmp_path: Path) -> None:
    arguments = (made.tokens, made.text_encoder, made.vq, TRANSFORMER)
    train_transformer.train(tmp_path, *arguments, dataclasses.replace(EVERY_SECOND, until=3))
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 3
    resumed = train_transformer.train(tmp_path, *arguments, EVERY_SECOND)
    assert same_weights(made.transformer, resumed)
    logged, whole = (
        [(line["step"], line["loss"]) for line in read_log(folder)]
        for folder in (tmp_path, made.folder / "transformer")
    )
    assert logged == whole


def test_a_vision_encoder_of_the_world_teaches_in_dinov2s_place(made: Made, tmp_path: Path) -> None:
    recipe = train_vision.Recipe(steps=2, batch=2)
    folder = train_vision.train(tmp_path / "vision", recipe, log_every=1)
    line = json.loads((tmp_path / "vision" / "log.jsonl").read_text().splitlines()[-1])
    assert 0 <= line["validation_shapes_right"] <= 1
    encoder = PatchFeatures(folder)
    picture = render(random_scene(np.random.default_rng(0)))[None]
    assert encoder(picture).shape == (1, 8, 8, 96)
    # What `data.features` shows the encoder is what it was trained on.
    pixels, _ = train_vision.batch_scenes(np.random.default_rng(0), 1, train_vision.VISION_PRESETS[recipe.preset])
    shown = encoder.pixels(render(random_scene(np.random.default_rng(0)))[None])
    torch.testing.assert_close(shown, pixels, atol=1e-5, rtol=0)

    tokens = tmp_path / "tokens"
    write_shards(tokens, made.vq, VQ.data.picture_size, seed=4, shards=1, groups=5, workers=1, vision_encoder=folder)
    with np.load(tokens / "shard-00000.npz") as shard, np.load(made.tokens / "shard-00000.npz") as without:
        assert shard["features"].shape == (5, GROUP, 8, 8, 96) and shard["features_from"] == "dinov2"
        assert all(np.array_equal(shard[k], without[k]) for k in without.files)
    taught = changed(TRANSFORMER, {"distillation.teacher": "dinov2", "distillation.weight": 0.5})
    train_transformer.train(tmp_path / "run", tokens, made.text_encoder, made.vq, taught, EVERY_SECOND)
    assert all(line["distillation"] > 0 for line in read_log(tmp_path / "run"))


def test_a_vision_encoder_that_learns_captions_teaches_in_clips_place(made: Made, tmp_path: Path) -> None:
    recipe = train_vision.Recipe(preset="CLIP-demo", steps=2, batch=3)
    with pytest.raises(TrainingError, match="CLIP-demo learns from captions; give the demo's text encoder"):
        train_vision.train(tmp_path / "vision", recipe)
    folder = train_vision.train(tmp_path / "vision", recipe, made.text_encoder, log_every=1)
    first, _, last = read_log(tmp_path / "vision")
    assert first["loss"] > 0 and 0 <= last["validation_captions_right"] <= 1
    encoder = PatchFeatures(folder)
    assert encoder.kind == "clip_vision_model"
    assert encoder(render(random_scene(np.random.default_rng(0)))[None]).shape == (1, 8, 8, 96)


def test_pictures_and_captions_that_belong_together_are_matched() -> None:
    heads = train_vision.Matching(4, 4)
    with torch.no_grad():
        for side in (heads.picture, heads.text):
            side.weight.copy_(torch.eye(64, 4))
    logits = heads(3 * torch.eye(4), torch.eye(4)[[2, 0, 1, 3]])
    assert logits.argmax(1).tolist() == [1, 2, 0, 3]
    assert logits.max().item() == pytest.approx(1 / 0.07, rel=1e-5) and logits.min().item() == 0


def test_another_recipe_does_not_go_on_in_the_folder(made: Made) -> None:
    other = changed(TRANSFORMER, {"schedule.decay": 0.34})
    with pytest.raises(CheckpointError, match=r"schedule.decay 0.35 instead of 0.34"):
        train_transformer.train(made.folder / "transformer", made.tokens, made.text_encoder, made.vq, other)


def _without_some_fields(recipe: dict[str, Any]) -> dict[str, Any]:
    fewer = {name: value for name, value in recipe["optimizer"].items() if name != "clip"}
    return recipe | {"optimizer": fewer}


def _without_sections(recipe: dict[str, Any]) -> dict[str, Any]:
    values = flat(recipe)
    return {"dropout": 0.0} | {earlier: values[name] for earlier, name in EARLIER.items()}


@pytest.mark.parametrize("earlier", [_without_some_fields, _without_sections])
def test_a_checkpoint_with_an_earlier_recipe_goes_on(
    made: Made, tmp_path: Path, earlier: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    arguments = (made.tokens, made.text_encoder, made.vq, TRANSFORMER)
    train_transformer.train(tmp_path, *arguments, dataclasses.replace(EVERY_SECOND, until=2))
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    torch.save(state | {"recipe": earlier(state["recipe"])}, tmp_path / "last.pt")
    assert same_weights(made.transformer, train_transformer.train(tmp_path, *arguments, EVERY_SECOND))


def test_a_stopped_tokenizer_goes_on_as_if_it_had_not(made: Made, tmp_path: Path) -> None:
    last = torch.load(made.vq.parent / "last.pt", weights_only=True)
    assert last["step"] == VQ.schedule.steps
    again = train_vq.train(tmp_path, VQ, EVERY_THIRD)
    assert same_weights(again, made.vq)  # the same seed, the same weights

    part = tmp_path / "part"
    train_vq.train(part, VQ, dataclasses.replace(EVERY_THIRD, until=3))
    assert torch.load(part / "last.pt", weights_only=True)["step"] == 3
    assert same_weights(train_vq.train(part, VQ, EVERY_THIRD), made.vq)


def test_the_log_tells_what_was_learned(made: Made) -> None:
    lines = read_log(made.folder / "transformer")
    assert [line["step"] for line in lines] == [2, 4]
    assert all(np.isfinite(line["loss"]) and np.isfinite(line["distillation"]) for line in lines)
    logged = (made.folder / "vq" / "log.jsonl").read_text().splitlines()
    assert any("validation_psnr" in json.loads(line) for line in logged)


@pytest.mark.parametrize("stage", ["vq", "text", "transformer"])
def test_learning_curves_are_drawn(made: Made, tmp_path: Path, stage: str) -> None:
    plot_log(made.folder / stage / "log.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert min(picture.size) > 300


def test_runs_are_compared_by_what_their_logs_have_in_common(made: Made, tmp_path: Path) -> None:
    logs = dict.fromkeys(("one", "other"), made.folder / "transformer" / "log.jsonl")
    plot_runs(logs, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert min(picture.size) > 300
    (empty := tmp_path / "empty.jsonl").touch()
    with pytest.raises(TrainingError, match="no number to draw in common"):
        plot_runs({**logs, "empty": empty}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_the_heads_that_teach_are_not_in_the_checkpoint(made: Made) -> None:
    names = load_transformer(made.transformer).state_dict().keys()
    assert torch.load(made.transformer, weights_only=True)["model"].keys() == names


def test_every_word_of_the_world_is_one_token(made: Made) -> None:
    tokenizer = Tokenizer.from_file(str(made.text_encoder / "tokenizer.json"))
    for word in ("cylinder", "ring", "purple", "chequered", "background", "segmentation"):
        assert len(tokenizer.encode(word).ids) == 2  # and the end


def test_checkpoints_become_a_bundle_that_can_be_scored(made: Made, tmp_path: Path) -> None:
    from export.bundle_writer import Options, Sources, write_bundle
    from export.checkpoint_reader import read_transformer, read_vq
    from export.text_reader import read_text_encoder

    write_samples(tmp_path / "samples", VQ.data.picture_size)
    sources = Sources(read_transformer(made.transformer), read_vq(made.vq), read_text_encoder(made.text_encoder))
    options = Options(image_size=VQ.data.picture_size, samples=tmp_path / "samples")
    write_bundle(tmp_path / "bundle", sources, options)
    editor = editar_rt.load(tmp_path / "bundle")
    report, shown = evaluate(editor, count=1, seeds=2, kinds=("recolour", "depth"))
    assert set(report["kinds"]) == {"recolour", "depth"}
    assert report["edits_success"] == report["translations_success"] == 0  # a model that has learned nothing
    assert report["edits_success_interval"] == report["kinds"]["depth"]["success_interval"] == [0, 0]
    settings = {**report["sampling"], "seed": report["sampling_seeds"][0]}
    assert settings == dataclasses.asdict(editar_rt.Sampling()) and report["sampling_seeds"] == [0, 1]
    masked, _ = evaluate(editor, count=2, kinds=("recolour", "depth"), masked=True)
    assert set(masked["kinds"]) == {"recolour"} and masked["kinds"]["recolour"]["outside_identical"] == 1
    told: list[float] = []
    sweep = guidance_sweep(
        tmp_path / "bundle", (1, 4), 1, kinds=("recolour",), on_scale=lambda result: told.append(result["cfg_scale"])
    )
    assert told == [result["cfg_scale"] for result in sweep["scales"]] == [1, 4]
    assert set(sweep["scales"][0]["kinds"]) == {"recolour"} and "cfg_scale" not in sweep["sampling"]
    plot_guidance(sweep, tmp_path / "guidance.png")
    assert (tmp_path / "guidance.png").stat().st_size > 1000
    contact_sheet(shown, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_schedules_rise_stay_and_fall() -> None:
    assert [round(trapezoid_schedule(s, 10, 2, 0.5), 2) for s in range(10)] == [
        0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2,
    ]  # fmt: skip
    assert cosine_schedule(0, 100, 10) == 0.1 and cosine_schedule(10, 100, 10) == 1.0
    assert cosine_schedule(100, 100, 10) == pytest.approx(0.02)


def test_stages_say_what_is_drawn_and_where_the_learning_rate_starts_again() -> None:
    stages = Stage(0, groups=8), Stage(5, 0.5), Stage(20, 0.8, groups=20, restarts=True)
    recipe = changed(
        TRANSFORMER,
        {
            "schedule.steps": 30,
            "schedule.warmup": 2,
            "schedule.decay": 0.5,
            "demo.stages": stages,
            "data.pictures": 10,
        },
    )
    rates = [train_transformer.learning_rate(recipe, step) for step in range(30)]
    assert rates[:20] == [trapezoid_schedule(step, 20, 2, 0.5) for step in range(20)]
    assert rates[20:] == [trapezoid_schedule(step, 10, 2, 0.5) for step in range(10)]
    alone = changed(recipe, {"demo.stages": ()})
    assert [train_transformer.learning_rate(alone, s) for s in range(30)] == [
        trapezoid_schedule(s, 30, 2, 0.5) for s in range(30)
    ]
    translations = np.arange(40) % 2 == 0
    staged = StagedGroups(recipe, translations)
    drawn = [staged.of_step(step) for step in range(30)]
    assert [int(translations[groups].sum()) for groups in drawn[5:]] == [5] * 15 + [8] * 10
    assert set(np.concatenate(drawn[:4]).tolist()) == set(range(8))  # every group as often as another: whole epochs
    assert set(np.concatenate(drawn[5:20]).tolist()) == set(range(40))
    assert set(np.concatenate(drawn[20:]).tolist()) == set(range(20))
    unstaged = StagedGroups(alone, translations)
    assert set(np.concatenate([unstaged.of_step(step) for step in range(4)])) == set(range(40))


@pytest.mark.parametrize(
    ("stage", "translations", "said"),
    [
        (Stage(0, translation_share=0.5), [False] * 4, "begins at step 0 takes 5 groups with translations .* 4 groups"),
        (Stage(0, translation_share=0.5), [True] * 4, "takes 5 groups with edits a step"),
        (
            Stage(0, translation_share=0.2, groups=2),
            [False, False, True],
            "takes 2 groups with translations .* 2 groups",
        ),
    ],
)
def test_a_stage_that_has_no_groups_of_a_kind_is_refused_before_training(
    stage: Stage, translations: list[bool], said: str
) -> None:
    recipe = changed(TRANSFORMER, {"demo.stages": (stage,), "data.pictures": 10})
    with pytest.raises(TrainingError, match=said):
        StagedGroups(recipe, np.asarray(translations))


def test_a_stage_asks_for_no_groups_of_a_kind_that_it_does_not_take() -> None:
    recipe = changed(TRANSFORMER, {"demo.stages": (Stage(0, translation_share=1.0),), "data.pictures": 4})
    assert StagedGroups(recipe, np.ones(3, bool)).of_step(0).shape == (4,)


def test_stages_out_of_order_are_refused() -> None:
    for stages in ((Stage(5),), (Stage(0), Stage(9), Stage(9))):
        with pytest.raises(TrainingError, match="begin at step 0 and then later"):
            changed(TRANSFORMER, {"demo.stages": stages})


def test_half_of_the_rows_are_blindfolded_from_a_step_on() -> None:
    recipe = changed(TRANSFORMER, {"demo.blindfold_from": 20, "demo.blindfolded": 0.5})
    rng, shape = np.random.default_rng(0), (400, 64)
    assert hidden_targets(rng, recipe, 19, shape) is None
    hidden = hidden_targets(rng, recipe, 20, shape)
    assert hidden is not None and hidden.shape == shape
    shares = hidden.float().mean(1)
    assert 0.4 < (shares == 0).float().mean() < 0.6  # about half of the rows see everything
    assert shares.max() > 0.9 and 0.2 < shares.mean() < 0.3  # the others anything from little to all
    never = changed(recipe, {"demo.blindfolded": 0.0})
    assert hidden_targets(rng, never, 20, shape) is None


def test_published_weights_start_a_transformer_and_what_they_lack_is_said(made: Made, tmp_path: Path) -> None:
    weights = torch.load(made.transformer, weights_only=True)["model"]
    del weights["img_uncond_embedding"]  # LlamaGen's text-to-image weights have no stand-in for a picture
    torch.save({"model": weights}, tmp_path / "t2i.pt")
    said: list[str] = []
    started = train_transformer.train(
        tmp_path / "run",
        made.tokens,
        made.text_encoder,
        made.vq,
        changed(TRANSFORMER, {"schedule.steps": 1, "optimizer.muon_lr": 0.0, "optimizer.lr": 0.0}),
        init=tmp_path / "t2i.pt",
        report=said.append,
    )
    assert len(said) == 1 and "lacks img_uncond_embedding (drawn from the seed 0)" in said[0]
    trained = torch.load(started, weights_only=True)["model"]
    assert all(torch.equal(trained[name], tensor) for name, tensor in weights.items())


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    other = Transformer(dataclasses.replace(TRANSFORMER_PRESETS["GPT-demo"], n_layer=1, vocab_size=512))
    torch.save({"model": other.state_dict()}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"tok_embeddings.weight has shape \[512, 192\] instead of"):
        initialize_from(Transformer(TRANSFORMER_PRESETS["GPT-demo"]), tmp_path / "other.pt")


def test_the_command_line_says_errors_in_one_sentence(trainer: Command, made: Made, tmp_path: Path) -> None:
    arguments = ["--tokens", str(tmp_path), "--text-encoder", str(made.text_encoder), "--vq", str(made.vq)]
    done = trainer("transformer", tmp_path / "run", *arguments)
    assert done.code == 1 and "holds no shard-*.npz; make them with: python -m training tokens" in done.stderr
    assert "Traceback" not in done.stderr
