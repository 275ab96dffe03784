"""Trains the demo's transformer on shards of tokens, as EditAR is trained.

The loss is cross-entropy on the target tokens plus distillation (`training.distillation`). One uniform draw a row
decides the condition dropout that guidance needs. Tokens of objects weigh more than those of the background, which is
most of a picture and learned first. (With more weight on changed tokens alone, all objects get edited: what stays
must weigh as much as what changes.)

In a second round the model is blindfolded: in half of the rows it does not see some of the target tokens that it has
made. With all of them in sight, only an object's first cell needs the text, the others continue what is there; which
colour the text gives to which shape is then learned from one cell in ten.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from editar_rt.prompts import build_prompt
from training.checkpoints import initialize_from, load_vq
from training.config import TRANSFORMER_PRESETS
from training.data.edits import KINDS, TRANSLATION_TASKS
from training.data.scenes import SHAPES
from training.distillation import Distillation
from training.head_start import aim_heads, start_tokens, token_features
from training.loop import Average, MuonAdam, RunFolder, batch_rng, trapezoid_schedule
from training.models.text_encoder import encode, load_text_encoder
from training.models.transformer import Transformer
from training.train_text import tokenize

OBJECT_COVER = 0.05  # share of a cell from which on it shows an object


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the demo's transformer is trained."""

    preset: str = "GPT-demo"
    seed: int = 3
    head_start: bool = True  # see `training.head_start`
    steps: int = 8500
    second_round: int = 5000  # step where the learning rate, fallen to zero, starts again
    pictures: int = 8  # condition pictures a batch, each with all its instructions
    translations_from: int = 1750  # step from which on `translation_share` holds; before, the shards' own share
    translation_share: float = 0.5  # of the pictures; which colour goes with which shape is learned last
    blindfolded: float = 0.5  # share of the rows, in the second round
    muon_lr: float = 4e-3  # of the layers' matrices
    adam_lr: float = 2e-3  # of embeddings, norms and the output
    weight_decay: float = 0.02
    warmup: int = 60
    object_weight: float = 3.0  # of target tokens where the condition or the target shows an object, or both differ
    distillation: float = 1.0  # weight of that loss
    dropout: float = 0.0
    decay: float = 0.35  # share of a round's steps, at its end, over which the learning rate falls to zero
    ema: float = 0.999


@dataclasses.dataclass
class Batch:
    """P condition pictures with K examples each; rows are P * K."""

    condition: Tensor  # int64 [P, N]
    target: Tensor  # int64 [P * K, N]
    text_ids: Tensor  # int64 [P * K, T]
    text_mask: Tensor  # int64 [P * K, T]
    kinds: Tensor  # int64 [P * K], indices into KINDS
    changed: Tensor  # bool [P * K, N], tokens that an edit changes
    weights: Tensor  # float32 [P * K, N], of the loss
    condition_meaning: Tensor  # float32 [P, N, M] in 0..1
    target_meaning: Tensor  # float32 [P * K, N, M] in 0..1


class Shards:
    """All shards of a folder in memory, texts tokenized once."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, text_tokens: int, object_weight: float) -> None:
        paths = sorted(folder.glob("shard-*.npz"))
        if not paths:
            raise FileNotFoundError(f"{folder} holds no shard-*.npz; make them with: python -m training tokens")
        parts: dict[str, list[np.ndarray]] = {}
        prompts: list[str] = []
        for path in paths:
            with np.load(path) as shard:
                for name in ("condition", "target", "kind", "meaning"):
                    parts.setdefault(name, []).append(shard[name])
                pairs = zip(shard["task"].ravel().tolist(), shard["text"].ravel().tolist(), strict=True)
                prompts += [build_prompt(task, text) for task, text in pairs]
        self.condition, self.target, self.kinds, self.meaning = (
            np.concatenate(parts[n]) for n in ("condition", "target", "kind", "meaning")
        )
        self.is_translation = self.kinds[:, 0] >= KINDS.index(TRANSLATION_TASKS[0])
        distinct = sorted(set(prompts))
        place = {text: i for i, text in enumerate(distinct)}
        ids, mask = tokenize(tokenizer, distinct, text_tokens)
        self.ids, self.mask = ids.to(torch.int16), mask.to(torch.int8)
        self.text = np.asarray([place[p] for p in prompts], np.int32).reshape(self.kinds.shape)
        self.object_weight = object_weight

    def __len__(self) -> int:
        return len(self.condition)

    def batch(self, groups: np.ndarray) -> Batch:
        condition = torch.from_numpy(self.condition[groups].astype(np.int64))
        target = torch.from_numpy(self.target[groups].astype(np.int64))
        kinds = torch.from_numpy(self.kinds[groups].astype(np.int64))
        text = torch.from_numpy(self.text[groups].ravel())
        edit = kinds < KINDS.index(TRANSLATION_TASKS[0])
        changed = (target != condition[:, None]) & edit[..., None]
        meaning = torch.from_numpy(self.meaning[groups]).float() / 255  # [P, 1 + K, N, M]
        objects = meaning[..., : len(SHAPES)].sum(-1) > OBJECT_COVER  # [P, 1 + K, N]
        matters = changed | objects[:, 1:] | objects[:, :1]
        weights = 1 + (self.object_weight - 1) * matters.float()
        return Batch(
            condition,
            target.flatten(0, 1),
            self.ids[text].long(),
            self.mask[text].long(),
            kinds.flatten(),
            changed.flatten(0, 1),
            weights.flatten(0, 1),
            meaning[:, 0],
            meaning[:, 1:].flatten(0, 1),
        )

    def meaning_deviation(self) -> Tensor:
        """Standard deviation of every meaning over target cells, [M]."""
        some = torch.from_numpy(self.meaning[:2000, 1:]).float() / 255
        return some.flatten(0, -2).std(0).clamp_min(0.01)  # what a small set never shows


def draw(seed: list[int], first: int, count: int, size: int) -> np.ndarray:
    """Draws first..first+count-1 of an endless stream of 0..size-1: one shuffled epoch after the other."""
    indices = np.arange(first, first + count)
    orders = {e: np.random.default_rng([*seed, int(e)]).permutation(size) for e in np.unique(indices // size)}
    return np.asarray([orders[i // size][i % size] for i in indices])


def groups_of_step(recipe: Recipe, step: int, is_translation: np.ndarray) -> np.ndarray:
    """Which groups a step sees, [pictures]; follows from the recipe and the step alone.

    Args:
        is_translation: bool, for every group.
    """
    seed, since = recipe.seed, step - recipe.translations_from
    if since < 0:
        return draw([seed], step * recipe.pictures, recipe.pictures, len(is_translation))
    translations = round(recipe.pictures * recipe.translation_share)
    parts = []
    for which, count in ((True, translations), (False, recipe.pictures - translations)):
        pool = np.flatnonzero(is_translation == which)
        if len(pool) and count:
            parts.append(pool[draw([seed, 1 + which], since * count, count, len(pool))])
    return np.concatenate(parts)


def condition_dropout(rng: np.random.Generator, rows: int) -> tuple[Tensor, Tensor]:
    """(drop picture, drop text), bool [rows]: one draw a row, with the paper's shares."""
    u = torch.from_numpy(rng.random(rows))
    return u < 0.10, (u < 0.05) | (u > 0.95)


def hidden_targets(rng: np.random.Generator, recipe: Recipe, step: int, shape: tuple[int, int]) -> Tensor | None:
    """Which target tokens are hidden, bool [rows, N]: in a blindfolded row each with that row's own probability."""
    if step < recipe.second_round:
        return None
    rows, tokens = shape
    shares = rng.random(rows) * (rng.random(rows) < recipe.blindfolded)
    return torch.from_numpy(rng.random((rows, tokens)) < shares[:, None])


def learning_rate(recipe: Recipe, step: int) -> float:
    """Factor on the learning rates: one trapezoid a round."""
    if step < recipe.second_round:
        return trapezoid_schedule(step, min(recipe.steps, recipe.second_round), recipe.warmup, recipe.decay)
    begun = recipe.second_round
    return trapezoid_schedule(step - begun, recipe.steps - begun, recipe.warmup, recipe.decay)


def train(
    folder: Path | str,
    tokens: Path,
    text_encoder: Path,
    vq: Path,
    recipe: Recipe,
    log_every: int = 50,
    save_every: int = 250,
    init: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train (or go on training) a transformer; returns the path of the finished checkpoint, `transformer.pt`.

    Args:
        init: weights to start from (`training.checkpoints.initialize_from`), such as LlamaGen's for text to image.
        report: is told what those weights lack.
    """
    run = RunFolder(folder, dataclasses.asdict(recipe))
    torch.manual_seed(recipe.seed)
    config = TRANSFORMER_PRESETS[recipe.preset]
    tokenizer = Tokenizer.from_file(str(text_encoder / "tokenizer.json"))
    data = Shards(tokens, tokenizer, config.cls_token_num, recipe.object_weight)
    encoder = load_text_encoder(text_encoder).requires_grad_(False).eval()
    model = Transformer(config, recipe.dropout, recipe.dropout, recipe.dropout)
    if init is not None:
        lacking = initialize_from(model, init)
        report(f"{init} lacks {', '.join(lacking)}: starts untrained" if lacking else f"{init} has every weight")
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    if recipe.head_start and init is None:
        start_tokens(model, token_features(load_vq(vq)))
        aim_heads(model)
    teacher = Distillation(model, data.meaning_deviation())
    optimizer = MuonAdam(nn.ModuleList([model, teacher]), matrices, recipe.muon_lr, recipe.adam_lr, recipe.weight_decay)
    average = Average(model, recipe.ema)
    first = 0
    if state := run.load_last():
        first = state["step"]
        model.load_state_dict(state["model"])
        teacher.load_state_dict(state["teacher"])
        optimizer.load_state_dict(state["optimizer"])
        average.values = state["average"]
    sums = torch.zeros(len(KINDS), 3)  # rows, changed tokens, those predicted right
    for step in range(first, recipe.steps):
        rng = batch_rng(recipe.seed, step)
        batch = data.batch(groups_of_step(recipe, step, data.is_translation))
        drop_picture, drop_text = condition_dropout(rng, len(batch.target))
        with torch.no_grad():
            states = encode(encoder, batch.text_ids, batch.text_mask)
        hide = hidden_targets(rng, recipe, step, (len(batch.target), config.block_size))
        logits, hidden = model(batch.condition, states, batch.target, drop_picture, drop_text, hide, return_hidden=True)
        losses = F.cross_entropy(logits.flatten(0, 1), batch.target.flatten(), reduction="none")
        weights = batch.weights.flatten()
        loss = (losses * weights).sum() / weights.sum()
        dropped = drop_picture | drop_text
        taught = teacher(hidden, batch.condition_meaning, batch.target_meaning, batch.weights, dropped)
        (loss + recipe.distillation * taught).backward()
        norm = optimizer.step(learning_rate(recipe, step))
        average.update(model, step)

        done = step + 1
        count_right(sums, batch, logits.detach(), dropped)
        if done % log_every == 0:
            right = {
                f"changed_right_{kind}": (sums[i, 2] / sums[i, 1].clamp_min(1)).item() for i, kind in enumerate(KINDS)
            }
            losses_now = {"loss": loss.item(), "distillation": taught.item(), "gradient": norm}
            run.log(done, **losses_now, samples=float(done * len(batch.target)), **right)
            sums.zero_()
        if done % save_every == 0 or done == recipe.steps:
            run.save_last(
                done,
                model=model.state_dict(),
                teacher=teacher.state_dict(),
                optimizer=optimizer.state_dict(),
                average=average.values,
            )
            save_checkpoint(run, model, average)
    return save_checkpoint(run, model, average)


@torch.no_grad()
def count_right(sums: Tensor, batch: Batch, logits: Tensor, dropped: Tensor) -> None:
    """Adds, a kind, how many changed tokens (all, in translations) the undropped rows predict."""
    right = logits.argmax(-1) == batch.target
    matters = batch.changed | (batch.kinds >= KINDS.index(TRANSLATION_TASKS[0]))[:, None]
    matters &= ~dropped[:, None]
    columns = torch.stack([torch.ones(len(right)), matters.sum(1).float(), (right & matters).sum(1).float()], dim=1)
    sums.index_add_(0, batch.kinds, columns)


def save_checkpoint(run: RunFolder, model: Transformer, average: Average) -> Path:
    """The averaged weights in the official layout, with the configuration beside them."""
    return run.save("transformer.pt", {"model": average.values, "config": model.config.to_dict(), "recipe": run.recipe})


def read_log(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
