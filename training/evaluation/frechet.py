"""Fréchet inception distance between what a bundle makes and the true pictures (arXiv 1706.08500)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from training.data.records import DataError
from training.errors import first_line

SIDE = 299
ENOUGH = 2048  # pictures: with fewer the covariance of Inception's features is singular, and the distance only a hint


class InceptionFeatures:
    """The 2048 features of the original FID's Inception, from the TorchScript file that clean-fid and StyleGAN use.

    Pictures are resized as clean-fid does it (arXiv 2104.11222): each channel in floating point, Pillow's bicubic
    filter with anti-aliasing, no rounding in between.

    Args:
        weights: `inception-2015-12-05.pt`. A TorchScript file is a program: take it from its publisher alone.

    Raises:
        DataError: not that file.
    """

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        try:
            self._model = torch.jit.load(str(weights), map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise DataError(f"{weights} is no TorchScript file: {first_line(error)}") from None
        if not hasattr(self._model, "layers"):
            raise DataError(f"{weights} has no `layers`; give inception-2015-12-05.pt as clean-fid uses it")
        self.device = device

    @torch.inference_mode()
    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [H, W, 3] → float32 [F]."""
        x = torch.from_numpy(resize(picture)).to(self.device).permute(2, 0, 1)[None]
        return self._model.layers.forward((x - 128) / 128).reshape(-1).float().cpu().numpy()


def resize(picture: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.float32]:
    """uint8 [H, W, 3] → float32 [side, side, 3] of 0 … 255."""
    channels = [Image.fromarray(c.astype(np.float32)) for c in np.moveaxis(picture, 2, 0)]
    resized = [np.asarray(c.resize((side, side), Image.Resampling.BICUBIC)) for c in channels]
    return np.clip(np.stack(resized, axis=2), 0, 255)


def frechet_distance(real: NDArray[np.float32], made: NDArray[np.float32]) -> float | None:
    """Distance of the normal distributions through two sets of features [B, F], by torchmetrics.

    None for fewer than two pictures of either.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(real), len(made)) < 2:
        return None
    metric = FrechetInceptionDistance(_Given(real.shape[1])).set_dtype(torch.float64)
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(made).double(), real=False)
    return metric.compute().item()


class _Given(nn.Module):
    """Stands in for a network where the features are there already."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x
