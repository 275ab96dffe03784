"""What the recipe `editar` does as the paper's code does it, where a reasonable reader could do otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from tests.training.metric_networks import write_dinov2
from tests.training.tiny import EVERY_STEP, RECIPE, VQ, Parts, make
from training import train_transformer, train_vq
from training.batches import TokenShards
from training.checkpoints import CheckpointError, load_transformer
from training.config import TRANSFORMER_PRESETS, VQ_PRESETS, TransformerConfig
from training.data.features import PatchFeatures, read_settings
from training.distillation import FeatureDistillation
from training.errors import TrainingError
from training.loop import Average
from training.models.transformer import Transformer
from training.models.vq import VQModel
from training.recipes.fields import Ema, changed
from training.student import Frozen, build_student
from training.weights_file import read_weights

CONFIG = TRANSFORMER_PRESETS["GPT-tiny"]
NULLS = ("img_uncond_embedding", "cls_embedding.uncond_embedding")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make(tmp_path_factory.mktemp("parts"))


def train(folder: Path, parts: Parts, fields: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    """What `transformer.pt` holds after training with some fields of the recipe changed."""
    path = train_transformer.train(folder, parts.public, None, None, changed(RECIPE, fields), EVERY_STEP, **arguments)
    return dict(torch.load(path, weights_only=True))


# Token dropout.


@pytest.mark.parametrize("pictures", [1, 2], ids=["shared by its rows", "one a row"])
@pytest.mark.parametrize(("where", "zeroed"), [("text", {"text"}), ("all", {"text", "condition", "target"})])
def test_token_dropout_falls_on_the_text_alone_or_on_all(where: str, zeroed: set[str], pictures: int) -> None:
    torch.manual_seed(0)
    model = Transformer(CONFIG, token_dropout=0.5, token_dropout_on=where).train()
    seen: list[torch.Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[:2]))
    tokens = torch.randint(CONFIG.vocab_size, (2, CONFIG.block_size))
    keep = torch.zeros(2, dtype=torch.bool)
    model(tokens[:pictures], torch.randn(2, CONFIG.cls_token_num, CONFIG.caption_dim), tokens, keep, keep)
    picture, rows = seen
    parts = [CONFIG.cls_token_num, CONFIG.block_size - 1]
    *before, text, target = rows.split(parts if pictures == 1 else [CONFIG.block_size, *parts], dim=1)
    embedded = {"condition": before[0] if before else picture, "text": text, "target": target}
    shares = {name: (x == 0).float().mean().item() for name, x in embedded.items()}
    assert {name for name, share in shares.items() if share > 0} == zeroed
    assert all(shares[name] == pytest.approx(0.5, abs=0.05) for name in zeroed)


# Null embeddings.


@pytest.mark.parametrize("kind", ["fixed", "trained"])
def test_null_embeddings_stay_as_they_are_where_the_recipe_fixes_them(parts: Parts, tmp_path: Path, kind: str) -> None:
    fields = {"model.null_embeddings": kind, "data.drop_both": 0.5, "optimizer.weight_decay": 0.5}
    model = Transformer(CONFIG)
    torch.save({"model": model.state_dict(), "config": CONFIG.to_dict()}, tmp_path / "init.pt")
    trained = train(tmp_path / "run", parts, fields, init=tmp_path / "init.pt")["model"]
    same = {name: torch.equal(trained[name], value) for name, value in model.state_dict().items()}
    assert [same[name] for name in NULLS] == [kind == "fixed"] * 2
    assert not any(same[name] for name in same if name not in NULLS)


def test_lora_never_touches_null_embeddings_and_those_that_are_lacking_come_from_the_seed(
    parts: Parts, tmp_path: Path
) -> None:
    weights = Transformer(CONFIG).state_dict()
    del weights["img_uncond_embedding"]  # LlamaGen's text-to-image weights have none
    torch.save({"model": weights, "config": CONFIG.to_dict()}, tmp_path / "init.pt")
    fields = {
        "model.lora_rank": 2, "model.null_embeddings": "trained", "model.null_seed": 7, "distillation.teacher": "none",
        "data.drop_both": 0.5,
    }  # fmt: skip
    said: list[str] = []
    trained = train(tmp_path / "run", parts, fields, init=tmp_path / "init.pt", report=said.append)["model"]
    drawn = torch.empty(CONFIG.block_size, CONFIG.dim)
    torch.nn.init.normal_(drawn, std=CONFIG.dim**-0.5, generator=torch.Generator().manual_seed(7))
    assert torch.equal(trained["img_uncond_embedding"], drawn)
    assert torch.equal(trained["cls_embedding.uncond_embedding"], weights["cls_embedding.uncond_embedding"])
    assert "lacks img_uncond_embedding (drawn from the seed 7)" in said[0]


def test_fixed_null_embeddings_get_no_gradient_and_are_not_optimized(parts: Parts) -> None:
    source = TokenShards(parts.public, CONFIG, None)
    student = build_student(Transformer(CONFIG), RECIPE, source, Frozen(), None, lambda line: None)
    trained = {name for name, p in student.model.named_parameters() if p.requires_grad}
    assert {name for name, _ in student.model.named_parameters()} - trained == set(NULLS)


# What the teacher sees.


def dinov2(folder: Path, settings: dict[str, Any] | None) -> Path:
    write_dinov2(folder)
    path = folder / "preprocessor_config.json"
    path.unlink()
    if settings is not None:
        path.write_text(json.dumps(settings))
    return folder


def test_the_reference_view_is_the_encoders_own_preprocessing(tmp_path: Path) -> None:
    from transformers import BitImageProcessorPil

    own = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    features = PatchFeatures(dinov2(tmp_path / "dinov2", own), view="reference")
    with np.load(Path(__file__).parents[1] / "golden/canny.npz") as file:
        photographs = file["pictures"][:3]
    processor = BitImageProcessorPil(
        **own, resample=3, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    wanted = torch.from_numpy(np.stack(processor(list(photographs)).pixel_values))
    # Pillow rounds to 8 bits after each direction: up to two steps of 1/255, over a deviation of 0.224.
    torch.testing.assert_close(features.pixels(photographs), wanted, rtol=0, atol=2.5 / 255 / 0.224)


def test_the_reference_view_cuts_the_middle_and_the_whole_view_keeps_everything(tmp_path: Path) -> None:
    own = {"size": {"shortest_edge": 32}, "crop_size": 28}
    picture = np.zeros((1, 64, 64, 3), np.uint8)
    picture[:, :3] = picture[:, -3:] = 255  # what lies within the outer sixteenth
    shown = {
        view: PatchFeatures(dinov2(tmp_path / view, own), view=view).pixels(picture) for view in ("reference", "whole")
    }
    assert shown["whole"][:, :, 0].min() > shown["reference"].max() + 1


@pytest.mark.parametrize(
    ("settings", "resized", "side"),
    [
        (None, 256, 224),  # a folder that says nothing: DINOv2's
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 256, 224),  # DINOv2
        ({"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}, 224, 224),  # CLIP
        ({"size": 224, "crop_size": 224}, 224, 224),  # CLIP, as it was once written
        ({"size": {"height": 224, "width": 224}}, 224, 224),  # ViT
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": False}, 256, 256),
    ],
)
def test_an_encoders_folder_says_its_view(tmp_path: Path, settings: Any, resized: int, side: int) -> None:
    if settings is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    found = read_settings(tmp_path)
    assert (found["resized"], found["side"]) == (resized, side)


@pytest.mark.parametrize(
    ("stored", "wanted", "refused"),
    [
        ({"features_view": "reference"}, "reference", False),
        ({"features_view": "whole"}, "reference", True),
        ({"features_view": "reference"}, "whole", True),
        ({"features_view": "both"}, "reference", False),
        ({}, "reference", True),  # shards from before the view was written
        ({}, "whole", False),
    ],
)
def test_features_of_another_view_are_refused(
    parts: Parts, tmp_path: Path, stored: dict[str, str], wanted: str, refused: bool
) -> None:
    with np.load(parts.public / "shard-00000.npz") as shard:
        np.savez(tmp_path / "shard-0.npz", **shard, features_from="dinov2", **stored)
    recipe = changed(RECIPE, {"distillation.view": wanted})
    source = TokenShards(tmp_path, CONFIG, None)
    if not refused:
        build_student(Transformer(CONFIG), recipe, source, Frozen(), None, lambda line: None)
        return
    message = rf"shard-0.npz holds features of the view \w+, the recipe's teacher has the view {wanted}; choose --set"
    with pytest.raises(TrainingError, match=message):
        build_student(Transformer(CONFIG), recipe, source, Frozen(), None, lambda line: None)


# A teacher whose patches do not divide the grid.


def test_a_teacher_of_14_patches_is_reached_from_32_tokens() -> None:
    """CLIP ViT-B/16 at 224 pixels, the paper's ablation: convolved to half the grid, then interpolated."""
    config = TransformerConfig(
        dim=16, n_layer=1, n_head=1, vocab_size=8, cls_token_num=2, caption_dim=4, multiple_of=8, block_size=1024
    )
    head = FeatureDistillation(Transformer(config), size=6, patches=14)
    assert head.project.kernel_size == head.project.stride == (2, 2)
    hidden, batch = torch.randn(2, 1024, 16), type("B", (), {"features": torch.randn(2, 14, 14, 6)})
    made = head.project(hidden.transpose(1, 2).unflatten(2, (32, 32)))
    assert made.shape[-1] == 16
    reached = torch.nn.functional.interpolate(made, (14, 14), mode="bilinear", align_corners=False)
    wanted = (reached.permute(0, 2, 3, 1) - batch.features).square().mean()
    torch.testing.assert_close(head(hidden, batch, torch.zeros(2), torch.ones(())), wanted)


# The moving average.


def test_without_an_average_the_file_holds_what_was_trained_alone(parts: Parts, tmp_path: Path) -> None:
    found = train(tmp_path, parts, {})
    assert found["weights"] == ["model"] and "ema" not in found
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert all(torch.equal(found["model"][name], value) for name, value in last["model"].items())
    assert not last["average"]
    with pytest.raises(CheckpointError, match="holds no averaged weights; take those that it has"):
        read_weights(tmp_path / "transformer.pt", "ema")


def test_with_an_average_the_file_holds_both_and_says_so(parts: Parts, tmp_path: Path) -> None:
    found = train(tmp_path, parts, {"ema.decay": 0.5})
    assert found["weights"] == ["model", "ema"] and found["step"] == RECIPE.schedule.steps
    path = tmp_path / "transformer.pt"
    for asked, held in (("model", "model"), ("ema", "ema"), (None, "ema")):
        tensors = read_weights(path, asked).tensors
        assert all(torch.equal(tensors[name], value) for name, value in found[held].items())
    assert not torch.equal(found["model"]["output.weight"], found["ema"]["output.weight"])
    assert torch.equal(load_transformer(path).output.weight, found["ema"]["output.weight"])


def test_a_file_from_before_both_were_held_is_read_as_it_was(tmp_path: Path) -> None:
    model = Transformer(CONFIG)
    torch.save({"model": model.state_dict(), "config": CONFIG.to_dict(), "recipe": {}}, tmp_path / "transformer.pt")
    assert torch.equal(load_transformer(tmp_path / "transformer.pt").output.weight, model.output.weight)


@pytest.mark.parametrize(("warmup", "shares"), [(False, [0.1] * 4), (True, [1.0, 1 / 1.1, 1 / 1.2, 1 / 1.3])])
def test_the_decay_in_the_recipe_applies_from_the_first_step_unless_it_warms_up(
    warmup: bool, shares: list[float]
) -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.zero_()
    average, expected = Average(model, Ema(decay=0.9, warmup=warmup)), 0.0
    for step, share in enumerate(shares):
        model.weight.data.fill_(float(step + 1))
        average.update(model, step)
        expected += share * (step + 1 - expected)
        assert average.values["weight"].item() == pytest.approx(expected, rel=1e-6)


# The tokenizer.


def test_codebook_rows_start_with_length_one() -> None:
    rows = VQModel(VQ_PRESETS["VQ-tiny"]).quantize.embedding.weight
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))


def test_kmeans_with_fewer_vectors_than_rows_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_vq, "KMEANS_BATCHES", 1)
    monkeypatch.setattr(train_vq, "KMEANS_PICTURES", 2)
    recipe = changed(VQ, {"data.picture_size": 16})
    message = "k-means cannot place 64 codebook rows on 32 vectors, those of 2 pictures of 4 x 4 tokens; choose"
    with pytest.raises(TrainingError, match=message):
        train_vq.train(tmp_path / "run", recipe, EVERY_STEP)
    assert not (tmp_path / "run/last.pt").exists() and not (tmp_path / "run/log.jsonl").exists()
