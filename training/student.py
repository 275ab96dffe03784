"""What the transformer's training starts from: the student with its teacher's head, the frozen models, the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from training.batches import Batch, PictureGroups, Source, TokenShards
from training.checkpoints import initialize_from, open_vq
from training.config import TransformerConfig
from training.data.features import PatchFeatures
from training.data.shards import holds_shards
from training.data.sources import read_plan
from training.distillation import FeatureDistillation
from training.distributed import World
from training.errors import TrainingError, first_line
from training.head_start import aim_heads, start_tokens, token_features
from training.lora import add_lora, is_trained
from training.models.text_encoder import load_text_encoder
from training.models.transformer import Transformer
from training.models.vq import VQModel
from training.recipes.transformer import Recipe
from training.world_distillation import WorldDistillation


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What helps in training and is not trained; None where the data do without it."""

    vq: VQModel | None = None
    text_encoder: nn.Module | None = None
    features: PatchFeatures | None = None


@dataclasses.dataclass
class Piece:
    """A part of a batch with what was drawn for it."""

    batch: Batch
    drop_picture: Tensor  # bool [R]
    drop_text: Tensor  # bool [R]
    hide: Tensor | None  # bool [R, N]
    picture_is_dropped: bool  # in some row

    @property
    def dropped(self) -> Tensor:
        return self.drop_picture | self.drop_text

    def to(self, device: torch.device) -> Piece:
        hide = None if self.hide is None else self.hide.to(device, non_blocking=True)
        drops = (drop.to(device, non_blocking=True) for drop in (self.drop_picture, self.drop_text))
        return Piece(self.batch.to(device), *drops, hide, self.picture_is_dropped)


class Student(nn.Module):
    """The transformer and the head that distillation needs: what is trained, in one module with one forward pass."""

    def __init__(self, model: Transformer, teacher: nn.Module | None) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher

    def forward(self, piece: Piece, totals: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """The token loss, the distillation loss if there is one, and which tokens were predicted, bool [R, N]."""
        batch = piece.batch
        logits, hidden = self.model(
            batch.condition,
            batch.text_states,
            batch.target,
            piece.drop_picture,
            piece.drop_text,
            piece.hide,
            return_hidden=True,
            picture_is_dropped=piece.picture_is_dropped,
        )
        losses = F.cross_entropy(logits.flatten(0, 1), batch.target.flatten(), reduction="none")
        loss = (losses * batch.weights.flatten()).sum() / totals[0]
        taught = self.teacher(hidden, batch, piece.dropped, totals[1]) if self.teacher else None
        return loss, taught, logits.detach().argmax(-1) == batch.target


def build_student(
    model: Transformer,
    recipe: Recipe,
    source: Source,
    frozen: Frozen,
    init: Path | None,
    report: Callable[[str], None],
) -> Student:
    """A new model as training starts it: from weights, with a head start, or from nothing; with its teacher."""
    if recipe.model.lora_rank and init is None:
        raise TrainingError("LoRA trains adapters beside finished weights; give those with --init FILE")
    lacking: list[str] = []
    if init is not None:
        lacking = start_from(model, init, recipe.model.null_seed, report)
    elif recipe.demo.head_start:
        if frozen.vq is None:
            raise TrainingError(
                "a head start needs to see what tokens look like; give --vq, or --set demo.head_start=false"
            )
        start_tokens(model, token_features(frozen.vq))
        aim_heads(model)
    else:
        report("training starts from random weights: no --init, and the recipe has no head start")
    teacher: nn.Module | None = None
    if recipe.distillation.teacher == "world":
        if not isinstance(source, TokenShards):
            raise TrainingError("the teacher world knows the procedural world alone; choose none, dinov2 or clip")
        teacher = WorldDistillation(model, source.meaning_deviation())
    elif recipe.distillation.teacher != "none":
        shape = feature_shape(recipe, source, frozen)
        teacher = FeatureDistillation(model, size=shape[-1], patches=shape[0])
    if recipe.model.lora_rank:
        add_lora(model, recipe.model.lora_rank, recipe.model.lora_alpha)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_trained(name, lacking))
    if recipe.model.null_embeddings == "fixed":
        for parameter in model.null_embeddings().values():
            parameter.requires_grad_(False)
    return Student(model, teacher)


def start_from(model: Transformer, path: Path, null_seed: int, report: Callable[[str], None]) -> list[str]:
    """Give a model the weights of a file; returns the names of those that it lacks.

    Args:
        null_seed: of the stand-ins for a dropped text or picture, where the file lacks one; other weights stay as they
            are.
        report: is told what the file lacks.
    """
    lacking = initialize_from(model, path)
    drawn = [name for name in lacking if name in model.null_embeddings()]
    model.draw_null_embeddings(drawn, torch.Generator().manual_seed(null_seed))
    told = [f"{name} (drawn from the seed {null_seed})" if name in drawn else f"{name} (untrained)" for name in lacking]
    report(f"{path} lacks {', '.join(told)}" if lacking else f"{path} has every weight")
    return lacking


def feature_shape(recipe: Recipe, source: Source, frozen: Frozen) -> tuple[int, ...]:
    """(h, w, F) of the teacher's features, cached or made on the fly."""
    teacher = recipe.distillation.teacher
    if isinstance(source, TokenShards) and source.features is not None:
        for path, (kind, view) in source.features_from.items():
            check_teacher(recipe, f"{path} holds features of", kind)
            check_view(recipe, path, view)
        return source.features.row_shape[1:]
    if isinstance(source, TokenShards):
        raise TrainingError(
            f"the teacher {teacher} needs features of the target pictures, and {source.paths[0].parent} holds "
            "none; extract them with: python -m training data extract … --features FOLDER, or choose --teacher none"
        )
    if frozen.features is None:
        raise TrainingError(f"the teacher {teacher} is a local model; give its folder with --teacher-folder")
    side = frozen.features.side
    return frozen.features(np.zeros((1, side, side, 3), np.uint8)).shape[1:]


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a text encoder's folder."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TrainingError(f"{folder} has no tokenizer.json; give the text encoder's folder in Hugging Face layout")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise TrainingError(
            f"{path} is not a tokenizer ({first_line(error)}); give the text encoder's folder in Hugging Face layout"
        ) from None


def read_source(
    config: TransformerConfig,
    tokens: Path | None,
    data: Path | None,
    text_encoder: Path | None,
    vq: Path | None,
    report: Callable[[str], None] = lambda line: None,
    encoder: nn.Module | None = None,
) -> tuple[Source, nn.Module | None]:
    """Where batches come from, and the text encoder if it is needed.

    Args:
        report: is told of the first bad records.
        encoder: the one of `text_encoder`, where it is loaded already.
    """
    tokenizer = read_tokenizer(text_encoder) if text_encoder else None
    source: Source
    if tokens is not None:
        source = TokenShards(tokens, config, tokenizer)
        if source.text_states is not None:
            return source, None
    elif data is None or vq is None or tokenizer is None:
        raise TrainingError("pictures are encoded while training by --vq and --text-encoder; give both, or --tokens")
    else:
        with torch.random.fork_rng(devices=[]):  # the student starts as it would beside shards
            spans = open_vq(vq).config.downsampling
        source = PictureGroups(read_plan(data).mixture(config.grid * spans, report), config, tokenizer)
    assert text_encoder is not None
    encoder = encoder or load_text_encoder(text_encoder).requires_grad_(False).eval()
    width = int(encoder.config.d_model)  # type: ignore[union-attr, arg-type]
    if width != config.caption_dim:
        raise TrainingError(
            f"{text_encoder} has states of width {width}, the transformer takes {config.caption_dim}; choose another "
            "preset or encoder"
        )
    return source, encoder


def read_validation(
    config: TransformerConfig, path: Path, text_encoder: Path | None, vq: Path | None, encoder: nn.Module | None
) -> tuple[Source, nn.Module | None]:
    """As `read_source`, of what is not trained on: token shards where the folder has some, and pictures otherwise."""
    tokens, data = (path, None) if holds_shards(path) else (None, path)
    return read_source(config, tokens, data, text_encoder, vq, encoder=encoder)


def read_teacher(recipe: Recipe, folder: Path | None, world: World) -> PatchFeatures | None:
    """The frozen vision encoder of a folder, if it is the one that the recipe names."""
    if folder is None or recipe.distillation.teacher not in ("dinov2", "clip"):
        return None
    with torch.random.fork_rng(devices=[]):  # the student starts as it would beside cached features
        features = PatchFeatures(folder, str(world.device), recipe.distillation.view)
    check_teacher(recipe, f"{folder} holds", features.kind)
    return features


def check_teacher(recipe: Recipe, found: str, kind: str) -> None:
    """Refuse a vision encoder, or features of one, of another type than the recipe's teacher."""
    if not kind.startswith(teacher := recipe.distillation.teacher):
        raise TrainingError(
            f"{found} a model of the type {kind}, the recipe's teacher is {teacher}; choose another --teacher, or the "
            "model that the recipe names"
        )


def check_view(recipe: Recipe, path: Path, view: str) -> None:
    """Refuse features of a shard whose encoder was shown another part of the pictures than the recipe says."""
    if view not in (wanted := recipe.distillation.view, "both"):
        raise TrainingError(
            f"{path} holds features of the view {view}, the recipe's teacher has the view {wanted}; choose --set "
            f"distillation.view={view}, or extract them again with --features-view {wanted}"
        )
