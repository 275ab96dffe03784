"""Makes the vision encoders whose features the demo's transformer can be taught, in DINOv2's or CLIP's place.

Neither can see the procedural world the way it sees photographs, so small encoders of their architectures learn it. The
one like DINOv2 learns what every cell of a picture shows (`training.data.scenes.meaning`) through one linear layer. The
one like CLIP learns which caption belongs to a picture, from its class token alone, beside the demo's frozen text
encoder. What they learned through is thrown away; what is left is frozen, as the teacher is in the paper: a folder in
Hugging Face layout, read by `training.data.features`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from editar_rt.text.prompts import build_prompt
from training import train_text
from training.config import VISION_PRESETS
from training.data.edits import caption
from training.data.extract import TextStates
from training.data.scenes import MEANINGS, SHAPES, Scene, meaning, random_scene, render
from training.errors import TrainingError
from training.loop import RunFolder, batch_rng
from training.models.vision_encoder import build_vision_encoder, learns_from_captions
from training.optimizers import MuonAdam
from training.pretraining import BatchLoss, pretrain, replace_folder
from training.provenance import of_model
from training.recipes.fields import check_fields

MEAN, DEVIATION = 0.5, 0.25  # of the pixels that the encoder is shown, in every colour
HELD_OUT = 64  # pictures
SHARED = 64  # dimensions of the space in which pictures and captions are compared


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a vision encoder of the demo's is trained."""

    preset: str = "DINOv2-demo"  # or CLIP-demo
    seed: int = 5
    steps: int = 1000
    batch: int = 16
    muon_lr: float = 4e-3  # of the layers' matrices
    adam_lr: float = 3e-3  # of everything else
    warmup: int = 50

    def __post_init__(self) -> None:
        check_fields(self, {"preset": tuple(VISION_PRESETS)}, at_least_one=("steps", "batch", "warmup"))


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What an encoder learns, through heads that are thrown away."""

    heads: nn.Module
    batch_loss: BatchLoss
    validate: Callable[[], dict[str, float]]


def shown(scenes: list[Scene], side: int) -> Tensor:
    """Pictures as the encoders are shown them, [B, 3, side, side]."""
    pictures = torch.from_numpy(np.stack([render(scene, side) for scene in scenes])).permute(0, 3, 1, 2)
    return (pictures.float() / 255 - MEAN) / DEVIATION


def batch_scenes(rng: np.random.Generator, count: int, preset: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Pictures [count, 3, H, W] as the encoder is shown them, and what their patches show, [count, P, MEANINGS]."""
    side = preset["image_size"]
    scenes = [random_scene(rng) for _ in range(count)]
    meanings = np.stack([meaning(scene, side // preset["patch_size"]) for scene in scenes])
    return shown(scenes, side), torch.from_numpy(meanings).flatten(1, 2).float() / 255


def told(model: nn.Module, head: nn.Module, pixels: Tensor) -> Tensor:
    """Logits of every meaning at every patch, [B, P, MEANINGS]."""
    logits: Tensor = head(model(pixel_values=pixels).last_hidden_state[:, 1:])
    return logits


def shapes_right(logits: Tensor, meanings: Tensor) -> float:
    """Share of the patches that an object covers for the larger part where its shape is told."""
    covered = meanings[..., : len(SHAPES)].sum(-1) > 0.5
    right = logits[..., : len(SHAPES)].argmax(-1) == meanings[..., : len(SHAPES)].argmax(-1)
    return float(right[covered].float().mean())


def patches_lesson(model: nn.Module, recipe: Recipe, preset: dict[str, Any]) -> Lesson:
    """To tell what every patch shows."""
    head = nn.Linear(preset["hidden_size"], len(MEANINGS))

    def batch_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        pixels, meanings = batch_scenes(batch_rng(recipe.seed, step), recipe.batch, preset)
        logits = told(model, head, pixels)
        loss = F.binary_cross_entropy_with_logits(logits, meanings, reduction="none").sum(-1).mean()
        return loss, {"shapes_right": shapes_right(logits, meanings)}

    def validate() -> dict[str, float]:
        pixels, meanings = batch_scenes(batch_rng(recipe.seed, 2**40), HELD_OUT, preset)
        return {"validation_shapes_right": shapes_right(told(model, head, pixels), meanings)}

    return Lesson(head, batch_loss, validate)


class Matching(nn.Module):
    """CLIP's heads: a picture's class token [B, C] and texts [B, D] → logits of their belonging together [B, B]."""

    def __init__(self, picture_dim: int, text_dim: int) -> None:
        super().__init__()
        self.picture = nn.Linear(picture_dim, SHARED, bias=False)
        self.text = nn.Linear(text_dim, SHARED, bias=False)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pictures: Tensor, texts: Tensor) -> Tensor:
        cosines = F.normalize(self.picture(pictures), dim=-1) @ F.normalize(self.text(texts), dim=-1).t()
        return self.scale.exp().clamp(max=100) * cosines


def captions_lesson(model: nn.Module, recipe: Recipe, preset: dict[str, Any], text_encoder: Path) -> Lesson:
    """To tell which caption belongs to a picture, of those of its batch (CLIP, arXiv 2103.00020)."""
    texts = TextStates(text_encoder, train_text.Recipe().text_tokens)
    heads = Matching(preset["hidden_size"], texts([""]).shape[-1])

    def matched(step: int, count: int) -> tuple[Tensor, dict[str, float]]:
        rng = batch_rng(recipe.seed, step)
        scenes = [random_scene(rng) for _ in range(count)]
        prompts = [build_prompt("segmentation", caption(rng, scene)) for scene in scenes]  # as the text encoder knows
        states = torch.from_numpy(texts(prompts)).float().mean(dim=1)  # what EditAR sees of a text, see `train_text`
        logits = heads(model(pixel_values=shown(scenes, preset["image_size"])).pooler_output, states)
        own = torch.arange(count)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own)) / 2
        return loss, {"captions_right": float((logits.argmax(1) == own).float().mean())}

    def validate() -> dict[str, float]:
        return {"validation_captions_right": matched(2**40, HELD_OUT)[1]["captions_right"]}

    return Lesson(heads, lambda step: matched(step, recipe.batch), validate)


def train(folder: Path | str, recipe: Recipe, text_encoder: Path | None = None, log_every: int = 50) -> Path:
    """Train an encoder; returns the finished folder, `vision_encoder/`.

    Args:
        text_encoder: folder of the demo's, for CLIP alone.

    Raises:
        TrainingError: CLIP without a text encoder.
    """
    preset = VISION_PRESETS[recipe.preset]
    torch.manual_seed(recipe.seed)
    model = build_vision_encoder(preset)
    if not learns_from_captions(preset):
        lesson = patches_lesson(model, recipe, preset)
    elif text_encoder is not None:
        lesson = captions_lesson(model, recipe, preset, text_encoder)
    else:
        raise TrainingError(f"{recipe.preset} learns from captions; give the demo's text encoder with --text-encoder")
    with RunFolder(folder, recipe) as run:
        run.inputs = {"text_encoder": of_model(text_encoder)} if text_encoder else {}
        return _train(run, model, lesson, recipe, preset["image_size"], log_every)


def _train(run: RunFolder, model: nn.Module, lesson: Lesson, recipe: Recipe, side: int, log_every: int) -> Path:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and (".layer." in name or ".layers." in name)]
    trained = nn.ModuleList([model, lesson.heads])
    optimizer = MuonAdam(trained, matrices, recipe.muon_lr, recipe.adam_lr, weight_decay=0.01)
    pretrain(run, model, lesson.heads, optimizer, lesson.batch_loss, recipe.steps, recipe.warmup, log_every)
    model.eval()
    with torch.no_grad():
        run.log(recipe.steps, **lesson.validate())
    settings = {"crop_size": {"height": side, "width": side}, "image_mean": [MEAN] * 3, "image_std": [DEVIATION] * 3}

    def write(partial: Path) -> None:
        model.save_pretrained(partial, safe_serialization=True)  # type: ignore[operator]
        (partial / "preprocessor_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    return replace_folder(run.folder / "vision_encoder", write)
