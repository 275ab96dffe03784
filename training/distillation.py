"""What a picture means, taught beside the token loss, as EditAR does.

A linear map of the last hidden states is to meet the features that a frozen vision encoder, DINOv2 in the paper, has
for the target picture. Tokens differ for many reasons that do not matter to an edit; such features say which object is
where, and the model learns to find the object that a text names from far fewer pictures. The head is thrown away after
training. (The procedural world's own truth is taught by `training.world_distillation`.)
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.batches import Batch
from training.errors import TrainingError
from training.models.transformer import Transformer


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
