"""The tokenizer's recipe. The defaults are LlamaGen's for VQ-16, but for its perceptual distance and discriminator.

Those two need files or memory that are asked for by name: `vq-16.toml` has them, `vq-8.toml` too, and `vq-demo.toml`
what the demo's small tokenizer does otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from training.config import VQ_PRESETS
from training.errors import TrainingError
from training.recipes.fields import Ema, check_fields

RECONSTRUCTIONS = ("l1", "l2", "colour")  # the last is the demo's weighing of colours and objects


@dataclasses.dataclass(frozen=True)
class Model:
    """What is trained."""

    preset: str = "VQ-16"

    def __post_init__(self) -> None:
        check_fields(self, "model.", {"preset": tuple(VQ_PRESETS)})


@dataclasses.dataclass(frozen=True)
class Data:
    """What a step sees."""

    picture_size: int = 256  # side in pixels
    batch: int = 128  # pictures, over all processes

    def __post_init__(self) -> None:
        check_fields(self, "data.", at_least_one=("picture_size", "batch"))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How a gradient changes the weights."""

    name: str = "adam"  # or muon, for the convolutions, with adam for norms, biases and the codebook
    lr: float = 1e-4
    muon_lr: float = 4e-3  # of the convolutions

    def __post_init__(self) -> None:
        check_fields(self, "optimizer.", {"name": ("muon", "adam")})


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate over the steps."""

    steps: int = 400_000
    name: str = "constant"  # or cosine; both after the warm-up
    warmup: int = 1  # steps

    def __post_init__(self) -> None:
        check_fields(self, "schedule.", {"name": ("cosine", "constant")}, ("steps", "warmup"))


@dataclasses.dataclass(frozen=True)
class Losses:
    """What is to become small, and how much each of it weighs."""

    reconstruction: str = "l2"  # or l1, or colour
    perceptual: str = "none"  # see `training.vq_losses.perceptual_term`
    perceptual_weight: float = 1.0
    codebook: float = 0.125  # of the squared distance that pulls rows to their vectors
    commitment: float = 0.03125  # of the one that pulls vectors to their rows
    entropy: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "losses.", {"reconstruction": RECONSTRUCTIONS})


@dataclasses.dataclass(frozen=True)
class Discriminator:
    """The patch discriminator."""

    weight: float = 0.0  # of the loss that it adds; 0 trains without one
    begins: int = 20_000  # step
    channels: int = 64
    adaptive: bool = False  # whether gradients at the decoder's last layer scale the weight

    def __post_init__(self) -> None:
        check_fields(self, "discriminator.", at_least_one=("channels",))


@dataclasses.dataclass(frozen=True)
class Demo:
    """What the demo's training does beside LlamaGen's, all of it off; see `training.train_vq`."""

    continuous_steps: int = 0  # before the codebook is placed; 0 trains with it from the start
    restart_every: int = 0  # steps between restarts of unused rows; 0 never does
    chroma_weight: float = 1.5  # of colour over brightness, where the reconstruction is colour
    object_weight: float = 0.0  # how much more errors at objects count
    decoder_from: int = 0  # step from which on the decoder alone is trained, for the averaged encoder; 0: never
    decoder_object_weight: float = 8.0  # while the decoder alone is trained, as the next two
    decoder_reconstruction: str = "l2"
    decoder_lr_factor: float = 0.5  # on both learning rates

    def __post_init__(self) -> None:
        check_fields(self, "demo.", {"decoder_reconstruction": RECONSTRUCTIONS})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a tokenizer is trained."""

    seed: int = 0
    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    losses: Losses = dataclasses.field(default_factory=Losses)
    discriminator: Discriminator = dataclasses.field(default_factory=Discriminator)
    ema: Ema = dataclasses.field(default_factory=Ema)
    demo: Demo = dataclasses.field(default_factory=Demo)

    def __post_init__(self) -> None:
        check_fields(self)
        spans = VQ_PRESETS[self.model.preset].downsampling
        if self.data.picture_size % spans:
            raise TrainingError(
                f"data.picture_size must be a multiple of {spans}, the side of a token of {self.model.preset} in "
                f"pixels, got {self.data.picture_size}"
            )

    def drawing(self, step: int) -> bool:
        """Whether the decoder alone is trained."""
        return 0 < self.demo.decoder_from <= step

    def object_weight_of(self, step: int) -> float:
        return self.demo.decoder_object_weight if self.drawing(step) else self.demo.object_weight

    def reconstruction_of(self, step: int) -> str:
        return self.demo.decoder_reconstruction if self.drawing(step) else self.losses.reconstruction

    @staticmethod
    def from_earlier(values: Mapping[str, Any]) -> dict[str, Any]:
        """Fields by dotted names, of a checkpoint whose recipe was a flat table.

        What such a run did where a recipe now has a choice is added.
        """
        return {EARLIER[name]: value for name, value in values.items() if name in EARLIER} | {"ema.warmup": True}


# Where the fields of a flat recipe are now.
EARLIER = {
    "seed": "seed",
    "preset": "model.preset",
    "picture_size": "data.picture_size",
    "batch": "data.batch",
    "optimizer": "optimizer.name",
    "adam_lr": "optimizer.lr",
    "muon_lr": "optimizer.muon_lr",
    "steps": "schedule.steps",
    "schedule": "schedule.name",
    "warmup": "schedule.warmup",
    "reconstruction": "losses.reconstruction",
    "perceptual": "losses.perceptual",
    "perceptual_weight": "losses.perceptual_weight",
    "codebook_weight": "losses.codebook",
    "commitment": "losses.commitment",
    "entropy_weight": "losses.entropy",
    "discriminator_weight": "discriminator.weight",
    "discriminator_from": "discriminator.begins",
    "discriminator_channels": "discriminator.channels",
    "adaptive": "discriminator.adaptive",
    "ema": "ema.decay",
    "continuous_steps": "demo.continuous_steps",
    "restart_every": "demo.restart_every",
    "chroma_weight": "demo.chroma_weight",
    "object_weight": "demo.object_weight",
    "decoder_from": "demo.decoder_from",
    "decoder_object_weight": "demo.decoder_object_weight",
    "decoder_reconstruction": "demo.decoder_reconstruction",
    "decoder_lr_factor": "demo.decoder_lr_factor",
}
