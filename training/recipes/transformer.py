"""The transformer's recipe: what it is made of, what it sees, and how it learns. The defaults are the paper's.

`editar.toml` writes them out, and `demo.toml` what the demo's small model does otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from training.choices import VIEWS
from training.config import TRANSFORMER_PRESETS
from training.errors import TrainingError
from training.recipes.fields import Ema, check_fields

TEACHERS = ("world", "none", "dinov2", "clip")


@dataclasses.dataclass(frozen=True)
class Model:
    """What is trained."""

    preset: str = "GPT-XL"
    token_dropout: float = 0.1  # of the embedded sequence
    token_dropout_on: str = "text"  # the projected text alone, or all: the pictures' tokens too
    resid_dropout: float = 0.1  # of every attention's output
    ffn_dropout: float = 0.1  # of every feed-forward's output
    null_embeddings: str = "fixed"  # stand-ins for a dropped text and picture: constants, or trained
    null_seed: int = 0  # of those that the weights to start from lack
    lora_rank: int = 0  # above 0 trains adapters of this rank and leaves the weights that they stand beside
    lora_alpha: float = 16.0  # over the rank: the adapters' factor

    def __post_init__(self) -> None:
        choices = {
            "preset": tuple(TRANSFORMER_PRESETS),
            "token_dropout_on": ("text", "all"),
            "null_embeddings": ("fixed", "trained"),
        }
        check_fields(self, "model.", choices, shares=("token_dropout", "resid_dropout", "ffn_dropout"))


@dataclasses.dataclass(frozen=True)
class Data:
    """What a step sees."""

    pictures: int = 64  # condition pictures a batch, over all processes, each with all of its instructions
    drop_both: float = 0.05  # share of the rows that miss the text and the picture, which guidance needs
    drop_picture: float = 0.05  # the picture alone
    drop_text: float = 0.05  # the text alone

    def __post_init__(self) -> None:
        check_fields(self, "data.", at_least_one=("pictures",))
        if self.drop_both + self.drop_picture + self.drop_text > 1:
            raise TrainingError("data.drop_both, data.drop_picture and data.drop_text are shares, together at most 1")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How a gradient changes the weights."""

    name: str = "adamw"  # which decays matrices alone; or muon, for the layers' matrices, with adamw for the rest
    lr: float = 1e-4
    muon_lr: float = 4e-3  # of the layers' matrices
    weight_decay: float = 0.05
    clip: float = 1.0  # the gradient's largest norm

    def __post_init__(self) -> None:
        check_fields(self, "optimizer.", {"name": ("muon", "adamw")})


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate over the steps."""

    steps: int = 40_000
    name: str = "constant"  # or cosine, or trapezoid; all of them after the warm-up
    warmup: int = 1  # steps
    decay: float = 0.35  # share of the steps between two restarts, at their end, in which a trapezoid falls to zero

    def __post_init__(self) -> None:
        check_fields(self, "schedule.", {"name": ("trapezoid", "cosine", "constant")}, ("steps", "warmup"))
        if not 0 < self.decay <= 1:
            raise TrainingError(f"schedule.decay is a share above 0 and up to 1, got {self.decay}")


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What is taught beside the token loss."""

    teacher: str = "dinov2"  # or clip, none, or the procedural world's ground truth
    weight: float = 0.5  # of that loss
    view: str = "reference"  # the part of the picture that the teacher sees: its own preprocessing's, or the whole

    def __post_init__(self) -> None:
        check_fields(self, "distillation.", {"teacher": TEACHERS, "view": VIEWS})


@dataclasses.dataclass(frozen=True)
class Stage:
    """From which step on a run draws what."""

    begins: int = 0  # step
    translation_share: float = -1.0  # of the pictures; below 0 the shards' own
    groups: int = 0  # only the first so many are drawn from; 0 is all of them
    restarts: bool = False  # the learning rate, fallen to zero, starts again

    def __post_init__(self) -> None:
        check_fields(self, "demo.stages: ", shares=("translation_share",), any_sign=("translation_share",))


@dataclasses.dataclass(frozen=True)
class Demo:
    """What the demo's training does beside the paper's, all of it off; see `training.demo`."""

    head_start: bool = False  # see `training.head_start`
    object_weight: float = 1.0  # of target tokens where the condition or the target shows an object, or both differ
    blindfolded: float = 0.0  # share of the rows
    blindfold_from: int = 0  # step
    stages: tuple[Stage, ...] = ()  # in their order; none: all groups as the shards share them

    def __post_init__(self) -> None:
        check_fields(self, "demo.", shares=("blindfolded",))
        begins = [stage.begins for stage in self.stages]
        if begins[:1] not in ([], [0]) or begins != sorted(set(begins)):
            raise TrainingError(f"demo.stages begin at step 0 and then later and later, got {begins}")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a transformer is trained."""

    seed: int = 0
    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    distillation: Distillation = dataclasses.field(default_factory=Distillation)
    ema: Ema = dataclasses.field(default_factory=Ema)
    demo: Demo = dataclasses.field(default_factory=Demo)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.model.lora_rank and self.optimizer.name != "adamw":
            raise TrainingError("LoRA's adapters are trained with optimizer.name = adamw, not muon")

    @staticmethod
    def from_earlier(values: Mapping[str, Any]) -> dict[str, Any]:
        """Fields by dotted names, of a checkpoint whose recipe was a flat table.

        What such a run did where a recipe now has a choice is added.
        """
        found = {EARLIER[name]: value for name, value in values.items() if name in EARLIER}
        dropout = values.get("dropout", 0.0)
        return found | {
            "model.token_dropout": dropout,
            "model.resid_dropout": dropout,
            "model.ffn_dropout": dropout,
            "model.token_dropout_on": "all",
            "model.null_embeddings": "trained",
            "distillation.view": "whole",
            "ema.warmup": True,
        }


# Where the fields of a flat recipe are now.
EARLIER = {
    "seed": "seed",
    "preset": "model.preset",
    "lora_rank": "model.lora_rank",
    "lora_alpha": "model.lora_alpha",
    "pictures": "data.pictures",
    "optimizer": "optimizer.name",
    "adam_lr": "optimizer.lr",
    "muon_lr": "optimizer.muon_lr",
    "weight_decay": "optimizer.weight_decay",
    "clip": "optimizer.clip",
    "steps": "schedule.steps",
    "schedule": "schedule.name",
    "warmup": "schedule.warmup",
    "decay": "schedule.decay",
    "teacher": "distillation.teacher",
    "distillation": "distillation.weight",
    "ema": "ema.decay",
    "head_start": "demo.head_start",
    "object_weight": "demo.object_weight",
    "blindfolded": "demo.blindfolded",
    "blindfold_from": "demo.blindfold_from",
    "stages": "demo.stages",
}
