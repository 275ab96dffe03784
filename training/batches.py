"""What a step of the transformer's training sees: batches from token shards or from pictures, in an order of its own.

Which examples a step sees follows from the recipe's seed and the step alone; so do the condition dropout and whatever
else is drawn for them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from editar_rt.text.prompts import build_prompt
from training.config import TransformerConfig
from training.data import mixture
from training.data.arrays import OpenFiles, ShardArray, read_array, read_shard
from training.data.kinds import KINDS, TRANSLATION_TASKS
from training.data.records import BadRecords, Sample
from training.data.shards import FEATURES_FROM, FEATURES_VIEW, SETTINGS_FILE, read_settings, shard_files
from training.errors import TrainingError
from training.models.text_encoder import tokenize

EARLIER_VIEW = "whole"  # what a model was shown where the shard does not say it
TASK_LABELS = ("edit", *TRANSLATION_TASKS)


@dataclasses.dataclass
class Batch:
    """P condition pictures with K examples each; rows are R = P * K. What a source does not have is None."""

    condition: Tensor  # int64 [P, N]; from pictures not yet encoded: uint8 [P, H, W, 3]
    target: Tensor  # int64 [R, N], or uint8 [R, H, W, 3]
    kinds: Tensor  # int64 [R], indices into the source's labels
    weights: Tensor  # float32 [R, N], of the loss
    changed: Tensor  # bool [R, N], tokens that an edit changes
    text_ids: Tensor | None = None  # int64 [R, T]
    text_mask: Tensor | None = None  # int64 [R, T]
    text_states: Tensor | None = None  # [R, T, C]
    condition_meaning: Tensor | None = None  # float32 [P, N, M] in 0..1
    target_meaning: Tensor | None = None  # float32 [R, N, M] in 0..1
    features: Tensor | None = None  # [R, h, w, F], what a frozen vision encoder has for the target

    def pieces(self, count: int) -> list[Batch]:
        """The batch in `count` equal parts."""
        parts = {name: [None] * count if value is None else value.chunk(count) for name, value in vars(self).items()}
        return [Batch(**{name: values[i] for name, values in parts.items()}) for i in range(count)]

    def to(self, device: torch.device) -> Batch:
        return Batch(**{k: None if v is None else v.to(device, non_blocking=True) for k, v in vars(self).items()})


class Source(Protocol):
    """Where batches come from: groups of one condition picture and `examples` on it."""

    labels: tuple[str, ...]  # of `Batch.kinds`; the translations come last
    examples: int  # K
    is_translation: NDArray[np.bool_]  # of every group
    mixed: tuple[Sequence[NDArray[np.int64]], Sequence[float]] | None  # groups of each data set, and its share
    bad: BadRecords | None  # met so far; None where they were left out before

    def batch(self, groups: NDArray[np.int64]) -> Batch:
        """The batch of these groups."""

    def describe(self, groups: NDArray[np.int64]) -> str:
        """Where they lie, for a message."""


class TokenShards:
    """The shards of a folder, as `training.data.tokens` and `training.data.extract` write them.

    Kinds are in memory, texts are tokenized once; all else stays on disk until a batch asks for it
    (`training.data.arrays`). `features_from` is, by each shard's path, the type of model that its features are of and
    what that was shown (`training.data.features`); shards made before it was written are not in it.

    Args:
        tokenizer: None where the shards hold text states.

    Raises:
        TrainingError: no shards, some that do not fit each other, or tokens and states of other sizes than the model's.
        DataError: a shard that is not whole, or a file beside them that does not say how they are mixed.
    """

    def __init__(self, folder: Path, config: TransformerConfig, tokenizer: Tokenizer | None) -> None:
        self.paths = shard_files(folder)
        if not self.paths:
            raise TrainingError(
                f"{folder} holds no shard-*.npz; make them with: python -m training tokens, or python -m training data "
                "extract"
            )
        self.shards = [read_shard(path) for path in self.paths]
        everywhere = set.intersection(*(set(shard.arrays) for shard in self.shards))
        lacking = {"condition", "target", "text", "task"} - everywhere
        if lacking:
            raise TrainingError(f"{folder}: not every shard has {', '.join(sorted(lacking))}: no token shards")
        files = OpenFiles()

        def rows(name: str) -> ShardArray | None:
            return ShardArray(self.shards, name, files) if name in everywhere else None

        condition, target, text, task = (rows(name) for name in ("condition", "target", "text", "task"))
        assert condition and target and text and task
        self.condition, self.target = condition, target
        self.vocab_size = config.vocab_size
        self._check(config)
        self.text_states, self.features, self.meaning = rows("text_states"), rows("features"), rows("meaning")
        self.features_from = {
            shard.path: tuple(
                str(read_array(shard, name, files)) if name in shard.arrays else EARLIER_VIEW
                for name in (FEATURES_FROM, FEATURES_VIEW)
            )
            for shard in self.shards
            if FEATURES_FROM in shard.arrays
        }
        if kinds := rows("kind"):
            self.labels, self.kinds = KINDS, np.concatenate(list(kinds.each()))
        else:
            self.labels, self.kinds = TASK_LABELS, np.concatenate([self._kinds_of(part) for part in task.each()])
        self.first_translation = self.labels.index(TRANSLATION_TASKS[0])
        self.is_translation = self.kinds[:, 0] >= self.first_translation
        self.bad: BadRecords | None = None
        self.mixed = self._shares(folder, rows("source"))
        self.ids: Tensor | None = None
        if self.text_states is None:
            if tokenizer is None:
                raise TrainingError(f"{folder} holds no text states; give the text encoder, --text-encoder FOLDER")
            self._tokenize(text, task, tokenizer, config.cls_token_num)
        elif self.text_states.row_shape[1:] != (config.cls_token_num, config.caption_dim):
            found = " x ".join(map(str, self.text_states.row_shape[1:]))
            raise TrainingError(
                f"{folder} holds text states of {found}, the transformer takes {config.cls_token_num} x "
                f"{config.caption_dim}; extract them with the text encoder it is trained for"
            )

    def _kinds_of(self, tasks: NDArray[Any]) -> NDArray[np.uint8]:
        """Tasks [G, K] as indices into the labels."""
        unknown = sorted(set(tasks.ravel().tolist()) - set(TASK_LABELS))
        if unknown:
            folder = self.paths[0].parent
            raise TrainingError(f"{folder} has tasks {', '.join(unknown)}; allowed: {', '.join(TASK_LABELS)}")
        return np.stack([tasks == label for label in TASK_LABELS]).argmax(0).astype(np.uint8)

    def _check(self, config: TransformerConfig) -> None:
        for name, tokens in (("condition", self.condition), ("target", self.target)):
            if tokens.row_shape[-1] != config.block_size:
                raise TrainingError(
                    f"{self.paths[0]}: a {name} has {tokens.row_shape[-1]} tokens, the transformer's pictures have "
                    f"{config.block_size} ({config.grid} x {config.grid}); extract pictures of another size, or "
                    "choose another preset"
                )

    @property
    def examples(self) -> int:
        return self.target.row_shape[0]

    def __len__(self) -> int:
        return len(self.condition)

    def _shares(self, folder: Path, sources: ShardArray | None) -> Any:
        """Groups of each data set and its share, where the shards were made with a mixture."""
        settings = None if sources is None else read_settings(folder)
        if sources is None or settings is None:
            return None
        shares = settings.get("shares")
        if not isinstance(shares, dict) or not all(type(share) in (int, float) for share in shares.values()):
            raise TrainingError(
                f"{folder / SETTINGS_FILE} does not say the shares of the data sets; run `python -m training data "
                "extract` again as it was run for these shards, which writes them"
            )
        names = np.concatenate(list(sources.each()))
        groups = {name: np.flatnonzero(names == name) for name in shares}
        # To go on without it would give its share to the others.
        if lacking := [f"{name} (share {shares[name]:g})" for name, found in groups.items() if not len(found)]:
            raise TrainingError(
                f"{folder} holds no group of {', '.join(lacking)}; finish the extraction, or take what has no good "
                f'record out of "shares" in {SETTINGS_FILE} to train without it'
            )
        return list(groups.values()), list(shares.values())

    def _tokenize(self, text: ShardArray, task: ShardArray, tokenizer: Tokenizer, length: int) -> None:
        prompts = [
            build_prompt(of_task, words)
            for tasks, texts in zip(task.each(), text.each())
            for of_task, words in zip(tasks.ravel().tolist(), texts.ravel().tolist())
        ]
        distinct = sorted(set(prompts))
        place = {text: i for i, text in enumerate(distinct)}
        ids, mask = tokenize(tokenizer, distinct, length)
        self.ids, self.mask = ids.to(torch.int32), mask.to(torch.int8)
        self.text = np.asarray([place[p] for p in prompts], np.int32).reshape(-1, *text.row_shape)

    def batch(self, groups: NDArray[np.int64]) -> Batch:
        condition = torch.from_numpy(self.condition[groups].astype(np.int64))
        target = torch.from_numpy(self.target[groups].astype(np.int64))
        largest = max(int(condition.max()), int(target.max()))
        if largest >= self.vocab_size:
            raise TrainingError(
                f"token {largest} in {self.describe(groups)} is not in the transformer's vocabulary of "
                f"{self.vocab_size}; the shards are of another VQ tokenizer"
            )
        kinds = torch.from_numpy(self.kinds[groups].astype(np.int64))
        edit = kinds < self.first_translation
        changed = (target != condition[:, None]) & edit[..., None]
        rows = target.flatten(0, 1)
        batch = Batch(condition, rows, kinds.flatten(), torch.ones(rows.shape), changed.flatten(0, 1))
        if self.ids is not None:
            text = torch.from_numpy(self.text[groups].ravel())
            batch.text_ids, batch.text_mask = self.ids[text].long(), self.mask[text].long()
        elif self.text_states:
            batch.text_states = torch.from_numpy(self.text_states[groups]).flatten(0, 1)
        if self.features:
            batch.features = torch.from_numpy(self.features[groups]).flatten(0, 1)
        if self.meaning:
            meaning = torch.from_numpy(self.meaning[groups]).float() / 255  # [P, 1 + K, N, M]
            batch.condition_meaning, batch.target_meaning = meaning[:, 0], meaning[:, 1:].flatten(0, 1)
        return batch

    def describe(self, groups: NDArray[np.int64]) -> str:
        places = [self.condition.place(int(i)) for i in groups]
        return ", ".join(f"{self.paths[part].name} {row}" for part, row in places)

    def meaning_deviation(self) -> Tensor:
        """Standard deviation of every meaning over target cells, [M]."""
        if self.meaning is None:
            raise TrainingError(
                f"{self.paths[0]} does not say what its pictures show, which --teacher world needs; choose none, "
                "dinov2 or clip"
            )
        some = torch.from_numpy(self.meaning[np.arange(min(2000, len(self)))][:, 1:]).float() / 255
        return some.flatten(0, -2).std(0).clamp_min(0.01)  # what a small set never shows


class PictureGroups:
    """A mixture of data sets of pictures, encoded while training: nothing is extracted before."""

    labels = TASK_LABELS
    examples = 1

    def __init__(self, data: mixture.Mixture, config: TransformerConfig, tokenizer: Tokenizer) -> None:
        self.data, self.config, self.tokenizer = data, config, tokenizer
        starts = np.cumsum([0, *data.sizes])
        self.starts = starts[:-1]
        self.is_translation = np.zeros(int(starts[-1]), bool)  # not known before a record is read
        groups = [np.arange(first, first + size) for first, size in zip(starts, data.sizes)]
        self.mixed = (groups, data.shares)
        self.bad = data.bad

    def _place(self, group: int) -> tuple[int, int]:
        source = int(np.searchsorted(self.starts, group, side="right")) - 1
        return source, int(group - self.starts[source])

    def batch(self, groups: NDArray[np.int64]) -> Batch:
        samples: list[Sample] = [self.data.sample(*self._place(int(g))) for g in groups]
        ids, mask = tokenize(self.tokenizer, [build_prompt(s.task, s.text) for s in samples], self.config.cls_token_num)
        tokens = (len(samples), self.config.block_size)
        return Batch(
            torch.from_numpy(np.stack([s.condition for s in samples])),
            torch.from_numpy(np.stack([s.target for s in samples])),
            torch.tensor([TASK_LABELS.index(s.task) for s in samples]),
            torch.ones(tokens),
            torch.zeros(tokens, dtype=torch.bool),  # known after encoding
            ids,
            mask,
        )

    def describe(self, groups: NDArray[np.int64]) -> str:
        places = [self._place(int(g)) for g in groups]
        return ", ".join(f"{self.data.datasets[source].name} {record}" for source, record in places)


@functools.lru_cache(maxsize=8)  # of a few streams, where one epoch goes over into the next
def _epoch_order(seed: tuple[int, ...], epoch: int, size: int) -> NDArray[np.int32]:
    return np.random.default_rng([*seed, epoch]).permutation(size).astype(np.int32)


def draw(seed: Sequence[int], first: int, count: int, size: int) -> NDArray[np.int64]:
    """Draws first..first+count-1 of an endless stream of 0..size-1: one shuffled epoch after the other."""
    epochs, places = np.divmod(np.arange(first, first + count), size)
    orders = {epoch: _epoch_order(tuple(seed), int(epoch), size) for epoch in np.unique(epochs)}
    return np.asarray([orders[epoch][place] for epoch, place in zip(epochs, places)], np.int64)


def mixed_groups(source: Source, seed: int, first: int, count: int) -> NDArray[np.int64]:
    """Groups first..first+count-1 of the stream in which every data set has its share."""
    assert source.mixed is not None
    groups, shares = source.mixed
    picked = mixture.draw(seed, [len(g) for g in groups], shares, first, count)
    return np.asarray([groups[which][record] for which, record in picked])


def condition_dropout(
    rng: np.random.Generator, rows: int, both: float = 0.05, picture: float = 0.05, text: float = 0.05
) -> tuple[Tensor, Tensor]:
    """(drop picture, drop text), bool [rows]: one draw a row.

    Args:
        both, picture, text: shares of the rows that miss both, the picture alone, the text alone; the paper's if not
            given.
    """
    u = torch.from_numpy(rng.random(rows))
    return u < both + picture, (u < both) | (u > 1 - text)
