"""Distillation in the procedural world, which knows what every cell shows (`training.data.scenes.meaning`).

The middle layer is taught too: what the condition shows, at the condition's own cells and, where a target cell is about
to be painted, at the same cell of the condition. The heads are thrown away after training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.batches import Batch
from training.models.transformer import Transformer


class WorldDistillation(nn.Module):
    """Linear heads on a transformer's hidden states, and their loss.

    Args:
        model: the student; the output of its middle layer is listened to from now on.
        deviation: standard deviation of each of the M meanings over the training cells, the unit of the errors, [M].
    """

    deviation: Tensor

    def __init__(self, model: Transformer, deviation: Tensor) -> None:
        super().__init__()
        config, size = model.config, len(deviation)
        self.block_size = config.block_size
        self.final = nn.Linear(config.dim, size)  # target cells
        self.middle = nn.Linear(config.dim, 2 * size)  # the condition's and the target's, at target cells
        self.picture = nn.Linear(config.dim, size)  # condition cells
        self.register_buffer("deviation", deviation)
        self.heard: tuple[Tensor, Tensor] | None = None  # pictures and rows
        model.layers[(config.n_layer - 1) // 2].register_forward_hook(self._hear)

    def _hear(self, module: nn.Module, inputs: object, output: tuple[Tensor, Tensor]) -> None:
        if self.heard is None:  # a layer that is recomputed in the backward pass says the same again
            self.heard = output

    def forward(self, hidden: Tensor, batch: Batch, dropped: Tensor, total: Tensor) -> Tensor:
        """The loss of the forward pass that has just run.

        Args:
            hidden: states after the final norm at the predicting positions, [P * K, N, D].
            dropped: bool [P * K], rows that miss the text or the picture: nothing says what they should mean.
            total: what the weights of the rows that are not dropped sum up to, [].
        """
        assert self.heard is not None and batch.condition_meaning is not None and batch.target_meaning is not None
        (picture, rows), self.heard = self.heard, None
        condition, target = batch.condition_meaning / self.deviation, batch.target_meaning / self.deviation
        own = condition.repeat_interleave(len(target) // len(condition), dim=0)
        weights = batch.weights * ~dropped[:, None]
        predicting = rows[:, -self.block_size :]
        errors = (self.final(hidden) - target).square().mean(-1) + (
            self.middle(predicting) - torch.cat((own, target), dim=-1)
        ).square().mean(-1)
        taught = (errors * weights).sum() / total
        return taught + (self.picture(picture[: len(condition)]) - condition).square().mean()
