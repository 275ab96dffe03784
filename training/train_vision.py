"""Makes the vision encoder whose features the demo's transformer can be taught, in DINOv2's place.

DINOv2 cannot see the procedural world the way it sees photographs, so a small encoder of its architecture learns what
every cell of a picture shows (`training.data.scenes.meaning`) through one linear layer, which is thrown away. What is
left is frozen, as DINOv2 is in the paper: a folder in Hugging Face layout, read by `training.data.features`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.scenes import MEANINGS, SHAPES, meaning, random_scene, render
from training.loop import RunFolder, batch_rng
from training.models.vision_encoder import VISION_PRESETS, build_vision_encoder
from training.optimizers import MuonAdam
from training.pretraining import pretrain, replace_folder

MEAN, DEVIATION = 0.5, 0.25  # of the pixels that the encoder is shown, in every colour
HELD_OUT = 64  # pictures


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the demo's vision encoder is trained."""

    preset: str = "DINOv2-demo"
    seed: int = 5
    steps: int = 1000
    batch: int = 16
    muon_lr: float = 4e-3  # of the layers' matrices
    adam_lr: float = 3e-3  # of everything else
    warmup: int = 50


def batch_scenes(rng: np.random.Generator, count: int, preset: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Pictures [count, 3, H, W] as the encoder is shown them, and what their patches show, [count, P, MEANINGS]."""
    side = preset["image_size"]
    scenes = [random_scene(rng) for _ in range(count)]
    pictures = torch.from_numpy(np.stack([render(scene, side) for scene in scenes])).permute(0, 3, 1, 2)
    meanings = np.stack([meaning(scene, side // preset["patch_size"]) for scene in scenes])
    return (pictures.float() / 255 - MEAN) / DEVIATION, torch.from_numpy(meanings).flatten(1, 2).float() / 255


def told(model: nn.Module, head: nn.Module, pixels: Tensor) -> Tensor:
    """Logits of every meaning at every patch, [B, P, MEANINGS]."""
    logits: Tensor = head(model(pixel_values=pixels).last_hidden_state[:, 1:])
    return logits


def shapes_right(logits: Tensor, meanings: Tensor) -> float:
    """Share of the patches that an object covers for the larger part where its shape is told."""
    covered = meanings[..., : len(SHAPES)].sum(-1) > 0.5
    right = logits[..., : len(SHAPES)].argmax(-1) == meanings[..., : len(SHAPES)].argmax(-1)
    return float(right[covered].float().mean())


def train(folder: Path | str, recipe: Recipe, log_every: int = 50) -> Path:
    """Train the encoder; returns the finished folder, `vision_encoder/`."""
    preset = VISION_PRESETS[recipe.preset]
    run = RunFolder(folder, recipe)
    torch.manual_seed(recipe.seed)
    model = build_vision_encoder(preset)
    head = nn.Linear(preset["hidden_size"], len(MEANINGS))
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layer." in name]
    optimizer = MuonAdam(nn.ModuleList([model, head]), matrices, recipe.muon_lr, recipe.adam_lr, weight_decay=0.01)

    def batch_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        pixels, meanings = batch_scenes(batch_rng(recipe.seed, step), recipe.batch, preset)
        logits = told(model, head, pixels)
        loss = F.binary_cross_entropy_with_logits(logits, meanings, reduction="none").sum(-1).mean()
        return loss, {"shapes_right": shapes_right(logits, meanings)}

    pretrain(run, model, head, optimizer, batch_loss, recipe.steps, recipe.warmup, log_every)
    with torch.no_grad():
        pixels, meanings = batch_scenes(batch_rng(recipe.seed, 2**40), HELD_OUT, preset)
        run.log(recipe.steps, validation_shapes_right=shapes_right(told(model.eval(), head, pixels), meanings))
    side = preset["image_size"]
    settings = {"crop_size": {"height": side, "width": side}, "image_mean": [MEAN] * 3, "image_std": [DEVIATION] * 3}

    def write(partial: Path) -> None:
        model.save_pretrained(partial, safe_serialization=True)  # type: ignore[operator]
        (partial / "preprocessor_config.json").write_text(json.dumps(settings, indent=1) + "\n")

    return replace_folder(run.folder / "vision_encoder", write)
