"""What a picture means, taught beside the token loss: EditAR's distillation, with the world's ground truth as teacher.

EditAR lets a linear map of the last hidden states meet the features that DINOv2 has for the target picture. Tokens
differ for many reasons that do not matter to an edit; such features say which object is where, and the model learns
to find the object that a text names from far fewer pictures. Photographs need DINOv2 for that; the procedural world
knows what every cell shows (`training.data.scenes.meaning`).

Here the middle layer is taught too: what the condition shows, at the condition's own cells and, where a target cell is
about to be painted, at the same cell of the condition. The heads are thrown away after training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.data.scenes import MEANINGS
from training.models.transformer import Transformer


class Distillation(nn.Module):
    """Linear heads on a transformer's hidden states, and their loss.

    Args:
        model: the student; the output of its middle layer is listened to from now on.
        deviation: standard deviation of each of `MEANINGS` over the training cells, the unit of the errors.
    """

    deviation: Tensor

    def __init__(self, model: Transformer, deviation: Tensor) -> None:
        super().__init__()
        config, size = model.config, len(MEANINGS)
        self.block_size = config.block_size
        self.final = nn.Linear(config.dim, size)  # target cells
        self.middle = nn.Linear(config.dim, 2 * size)  # the condition's and the target's, at target cells
        self.picture = nn.Linear(config.dim, size)  # condition cells
        self.register_buffer("deviation", deviation)
        self.heard: list[Tensor] = []
        layer = model.layers[(config.n_layer - 1) // 2]
        layer.register_forward_hook(lambda module, inputs, output: self.heard.append(output))

    def forward(self, hidden: Tensor, condition: Tensor, target: Tensor, weights: Tensor, dropped: Tensor) -> Tensor:
        """The loss of the forward pass that has just run.

        Args:
            hidden: states after the final norm at the predicting positions, [P * K, N, D].
            condition: `meaning` of the condition pictures, [P, N, len(MEANINGS)] in 0..1.
            target: of the targets, [P * K, N, len(MEANINGS)] in 0..1.
            weights: of the target cells, [P * K, N].
            dropped: bool [P * K], rows that miss the text or the picture: nothing says what they should mean.
        """
        picture, rows = self.heard
        self.heard.clear()
        condition, target = condition / self.deviation, target / self.deviation
        own = condition.repeat_interleave(len(target) // len(condition), dim=0)
        weights = weights * ~dropped[:, None]
        predicting = rows[:, -self.block_size :]
        errors = (self.final(hidden) - target).square().mean(-1) + (
            self.middle(predicting) - torch.cat((own, target), dim=-1)
        ).square().mean(-1)
        taught = (errors * weights).sum() / weights.sum().clamp_min(1)
        return taught + (self.picture(picture[: len(condition)]) - condition).square().mean()
