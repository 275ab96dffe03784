"""What a transformer predicts of its changes: counted while it trains, and measured on groups kept from training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.batches import Batch, Source
from training.data.kinds import TRANSLATION_TASKS
from training.models.transformer import Transformer

GROUPS = 128  # at most
TOGETHER = 8  # groups a batch

Completed = Callable[[Source, np.ndarray], Batch]
"""The batch of these groups of a source, with all that the model reads, on its device."""


def count_right(
    counts: Tensor, batch: Batch, labels: Sequence[str], right: Tensor, asked: Tensor | None = None
) -> None:
    """Adds how many tokens change (all of them, in translations), a kind, and how many of those are right.

    Args:
        counts: float32 [kinds, 2] on the CPU.
        labels: of the kinds; the translations come last.
        right: bool [R, N].
        asked: rows that count, bool [R]; all when None.
    """
    matters = batch.changed | (batch.kinds >= labels.index(TRANSLATION_TASKS[0]))[:, None]
    if asked is not None:
        matters &= asked[:, None]
    found = torch.stack([matters.sum(1), (right & matters).sum(1)], dim=1).float()
    counts.index_add_(0, batch.kinds.cpu(), found.cpu())


@torch.no_grad()
def validate(
    model: Transformer, kept: Source, trained: Source, completed: Completed, dtype: torch.dtype | None
) -> dict[str, float]:
    """What a model predicts with all of the condition and the tokens before in sight.

    Args:
        kept: groups that training does not see.
        dtype: of products under autocast; None leaves them as they are.

    Returns:
        The token loss on `kept` and on as many groups of `trained`, and the first ones' share of changed tokens (all,
        in translations) that are predicted right, a kind.
    """
    right, values = torch.zeros(len(kept.labels), 2), {}
    values["validation_loss"] = _loss(
        model, kept, completed, dtype, lambda batch, found: count_right(right, batch, kept.labels, found)
    )
    values["seen_loss"] = _loss(model, trained, completed, dtype)
    for label, (all_of_them, found) in zip(kept.labels, right.tolist()):
        if all_of_them:
            values[f"validation_right_{label}"] = found / all_of_them
    return values


def _loss(
    model: Transformer,
    source: Source,
    completed: Completed,
    dtype: torch.dtype | None,
    seen: Callable[[Batch, Tensor], None] = lambda batch, right: None,
) -> float:
    """The weighed token loss on the first groups of a source.

    Args:
        seen: is told every batch, and which tokens were predicted, bool [R, N].
    """
    losses = torch.zeros(2)
    for groups in _batches(min(GROUPS, len(source.is_translation))):
        batch = completed(source, groups)
        dropped = torch.zeros_like(batch.kinds, dtype=torch.bool)
        with torch.autocast(dropped.device.type, dtype, enabled=dtype is not None):
            logits = model(batch.condition, batch.text_states, batch.target, dropped, dropped)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.target.flatten(), reduction="none")
        weights = batch.weights.flatten()
        losses += torch.stack([(loss * weights).sum(), weights.sum()]).cpu()
        seen(batch, logits.argmax(-1) == batch.target)
    return float(losses[0] / losses[1])


def _batches(count: int) -> Iterator[np.ndarray]:
    for begin in range(0, count, TOGETHER):
        yield np.arange(begin, min(begin + TOGETHER, count))
