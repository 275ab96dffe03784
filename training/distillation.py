"""What a picture means, taught beside the token loss, as EditAR does.

EditAR lets a linear map of the last hidden states meet the features that DINOv2 has for the target picture
(`FeatureDistillation`). Tokens differ for many reasons that do not matter to an edit; such features say which object is
where, and the model learns to find the object that a text names from far fewer pictures. Photographs need DINOv2 for
that; the procedural world knows what every cell shows (`training.data.scenes.meaning`), and `WorldDistillation` teaches
that.

There the middle layer is taught too: what the condition shows, at the condition's own cells and, where a target cell is
about to be painted, at the same cell of the condition. The heads are thrown away after training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.batches import Batch
from training.data.scenes import MEANINGS
from training.errors import TrainingError
from training.models.transformer import Transformer

TEACHERS = ("world", "none", "dinov2", "clip")


class WorldDistillation(nn.Module):
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


class FeatureDistillation(nn.Module):
    """The paper's head: one convolution over the hidden states at the predicting positions, laid out as the picture.

    Args:
        size: width of the teacher's features.
        patches: the teacher's patches along one side; the convolution's kernel and stride are as many tokens as one
            patch spans, two for 32 x 32 tokens and 16 x 16 patches.

    Raises:
        TrainingError: patches that do not span a whole number of tokens.
    """

    def __init__(self, model: Transformer, size: int, patches: int) -> None:
        super().__init__()
        self.grid = model.config.grid
        span = self.grid // patches if patches else 0
        if span * patches != self.grid or span < 1:
            raise TrainingError(
                f"features of {patches} x {patches} patches do not fit {self.grid} x {self.grid} tokens; the side in "
                "tokens must be a multiple of that in patches (set the size in the encoder's preprocessor_config.json)"
            )
        self.project = nn.Conv2d(model.config.dim, size, span, span)

    def forward(self, hidden: Tensor, batch: Batch, dropped: Tensor, total: Tensor) -> Tensor:
        """Mean squared error of every row, dropped ones too.

        Args:
            hidden: states after the final norm at the predicting positions, [R, N, D].
        """
        assert batch.features is not None
        made = self.project(hidden.transpose(1, 2).unflatten(2, (self.grid, self.grid)))  # [R, F, h, w]
        return F.mse_loss(made.float(), batch.features.permute(0, 3, 1, 2).float())
