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
        patches: the teacher's patches along one side. Where they divide the grid, the convolution's kernel and stride
            are as many tokens as one patch spans, two for 32 x 32 tokens and 16 x 16 patches. Else they are two, and
            its output is interpolated to the patches, as the paper's ablation with CLIP does it: 32 x 32 tokens,
            16 x 16 outputs, 14 x 14 patches.

    Raises:
        TrainingError: more patches than outputs, so that interpolation would make up what they are compared with.
    """

    def __init__(self, model: Transformer, size: int, patches: int) -> None:
        super().__init__()
        self.grid = model.config.grid
        self.patches = patches
        span = self.grid // patches if patches and self.grid % patches == 0 else 2
        if not 0 < patches <= self.grid // span:
            raise TrainingError(
                f"features of {patches} x {patches} patches are too many for {self.grid} x {self.grid} tokens; their "
                f"side must be {self.grid} or at most {self.grid // 2} (set the size in the encoder's "
                "preprocessor_config.json)"
            )
        self.project = nn.Conv2d(model.config.dim, size, span, span)

    def forward(self, hidden: Tensor, batch: Batch, dropped: Tensor, total: Tensor) -> Tensor:
        """Mean squared error of every row, dropped ones too.

        Args:
            hidden: states after the final norm at the predicting positions, [R, N, D].
        """
        assert batch.features is not None
        made = self.project(hidden.transpose(1, 2).unflatten(2, (self.grid, self.grid))).float()  # [R, F, h, w]
        if made.shape[-1] != self.patches:
            made = F.interpolate(made, (self.patches, self.patches), mode="bilinear", align_corners=False)
        return F.mse_loss(made, batch.features.permute(0, 3, 1, 2).float())
