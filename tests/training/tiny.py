"""Models and data so small that a training step takes milliseconds, and `python -m tests.training.tiny …`, which is
`python -m training …` with their sizes among the presets."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.conftest import write_text_encoder
from training import train_transformer, train_vq
from training.checkpoints import open_vq
from training.config import TRANSFORMER_PRESETS, VQ_PRESETS, TransformerConfig, VQConfig
from training.data.tokens import write_shard
from training.engine import Execution
from training.models.vq import VQModel
from training.recipes import files
from training.recipes.fields import changed, flat

SIZE = 32  # pixels
VQ_PRESETS["VQ-tiny"] = VQConfig(
    channels=8, channel_multipliers=(1, 1, 2), res_blocks=1, z_channels=8, codebook_size=64, norm_groups=4
)
TRANSFORMER_PRESETS["GPT-tiny"] = TransformerConfig(
    dim=32, n_layer=2, n_head=2, vocab_size=64, block_size=64, cls_token_num=12, caption_dim=16, multiple_of=8
)
# What the published recipe is, but for sizes, rates and what needs files.
RECIPE = changed(
    train_transformer.Recipe(),
    {
        "model.preset": "GPT-tiny",
        "model.token_dropout": 0.0,
        "model.resid_dropout": 0.0,
        "model.ffn_dropout": 0.0,
        "schedule.steps": 4,
        "data.pictures": 4,
        "optimizer.lr": 3e-3,
    },
)
# The demo's tokenizer, through both of its stages; and LlamaGen's with a discriminator.
VQ = changed(
    files.combined(train_vq.Recipe, "vq-demo", "vq", {})[0],
    {
        "model.preset": "VQ-tiny",
        "data.picture_size": SIZE,
        "data.batch": 4,
        "schedule.steps": 4,
        "demo.decoder_from": 0,
        "demo.continuous_steps": 2,
        "demo.restart_every": 0,
    },
)
GAN = changed(
    VQ,
    {
        "demo.continuous_steps": 0,
        "optimizer.name": "adam",
        "losses.reconstruction": "l2",
        "losses.perceptual": "edges",
        "discriminator.weight": 0.5,
        "discriminator.begins": 1,
        "discriminator.channels": 4,
        "discriminator.adaptive": True,
    },
)
EVERY_STEP = Execution(device="cpu", log_every=1, save_every=2)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a transformer is trained from."""

    vq: Path
    text_encoder: Path
    world: Path  # shards of the procedural world, which know what cells show
    public: Path  # shards as of public data: one example a picture, text states, features


def make(folder: Path) -> Parts:
    """Random models, and eight groups of each kind of shard."""
    torch.manual_seed(0)
    config = VQ_PRESETS["VQ-tiny"]
    torch.save({"model": VQModel(config).state_dict(), "config": config.to_dict()}, folder / "vq.pt")
    parts = Parts(
        folder / "vq.pt", write_text_encoder(folder / "text", states_dim=16), folder / "world", folder / "public"
    )
    for shards in (parts.world, parts.public):
        shards.mkdir()
    for index in range(2):
        path = parts.world / f"shard-{index:05d}.npz"
        write_shard(path, open_vq(parts.vq), SIZE, seed=0, index=index, groups=4)
        with np.load(path) as shard:
            rng = np.random.default_rng(index)
            np.savez(
                parts.public / path.name,
                condition=shard["condition"],
                target=shard["target"][:, :1],
                text=shard["text"][:, :1],
                task=shard["task"][:, :1],
                text_states=rng.normal(size=(4, 1, 12, 16)).astype(np.float16),
                features=rng.normal(size=(4, 1, 4, 4, 6)).astype(np.float16),
            )
    return parts


def read_log(run: Path) -> list[dict[str, float]]:
    """The lines of a run's log, each of which must be whole."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def write_recipe(path: Path) -> Path:
    """`RECIPE` as a file."""
    return write_toml(path, RECIPE, "transformer")


def write_toml(path: Path, recipe: Any, trains: str) -> Path:
    """A recipe as a file, every field by its dotted name."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in flat(dataclasses.asdict(recipe)).items()]
    path.write_text("\n".join([f'trains = "{trains}"', *lines]), encoding="utf-8")
    return path


if __name__ == "__main__":
    from training.__main__ import main

    sys.argv[0] = "python -m training"
    main()
