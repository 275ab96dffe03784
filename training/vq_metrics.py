"""How well a VQ tokenizer gives pictures back: PSNR, SSIM, Fréchet distance, and the share of its codebook in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.features import PatchFeatures
from training.errors import TrainingError
from training.models.vq import VQModel

BATCH = 16


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB a picture of [B, 3, H, W] in [-1, 1]."""
    mse = (a.clamp(-1, 1) - b).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / mse.clamp_min(1e-9))


class MeanFeatures(nn.Module):
    """uint8 pictures [B, 3, H, W] -> the mean of a frozen encoder's patch features [B, F], float32."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.encoder = PatchFeatures(folder)

    def forward(self, pictures: Tensor) -> Tensor:
        features = self.encoder(pictures.permute(0, 2, 3, 1).cpu().numpy())
        return torch.from_numpy(features).float().mean(dim=(1, 2))


class Scores:
    """Takes the scores of a tokenizer on pictures.

    Args:
        fid_encoder: folder of the vision model whose features the Fréchet distance compares; None leaves it out. The
            published rFID compares features of Inception-v3, and is not to be set beside that of another model.

    Raises:
        TrainingError: no torchmetrics, which computes the distance.
    """

    def __init__(self, fid_encoder: Path | None = None) -> None:
        self.distance: Any = None
        if fid_encoder is not None:
            try:
                from torchmetrics.image.fid import FrechetInceptionDistance
            except ImportError:
                raise TrainingError("the Fréchet distance needs torchmetrics; pip install torchmetrics") from None
            self.distance = FrechetInceptionDistance(feature=MeanFeatures(fid_encoder))

    @torch.no_grad()
    def __call__(self, model: VQModel, pixels: Tensor, quantizing: bool) -> tuple[dict[str, float], Tensor]:
        """Numbers for the log, and the decoded pictures.

        Args:
            pixels: [B, 3, H, W] in [-1, 1].
            quantizing: whether vectors go through the codebook.
        """
        decoded, tokens = [], []
        for part in pixels.split(BATCH):
            vectors = F.normalize(model.encode_features(part.contiguous(memory_format=torch.channels_last)), dim=1)
            tokens.append(model.quantize_features(vectors))
            decoded.append(model.decode_vectors(model.lookup(tokens[-1]) if quantizing else vectors))
        made = torch.cat(decoded)
        ratios = psnr(made, pixels)
        values = {
            "validation_psnr": float(ratios.mean()),
            "validation_psnr_lowest_tenth": float(ratios.sort().values[: max(1, len(ratios) // 10)].mean()),
            "validation_ssim": ssim(made, pixels),
            "codebook_used": len(torch.cat(tokens).unique()) / model.config.codebook_size if quantizing else 0.0,
        }
        if self.distance is not None and len(pixels) > 1:
            self.distance.reset()
            for shown, real in ((pixels, True), (made, False)):
                self.distance.update(((shown.clamp(-1, 1) + 1) * 127.5).round().byte(), real=real)
            values["validation_frechet_distance"] = float(self.distance.compute())
        return values, made


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean structural similarity of pictures [B, 3, H, W] in [-1, 1], with scikit-image's Gaussian window."""
    from skimage.metrics import structural_similarity

    pairs = zip(a.clamp(-1, 1).cpu().float().numpy(), b.cpu().float().numpy())
    values = [
        structural_similarity(x, y, channel_axis=0, data_range=2.0, gaussian_weights=True, sigma=1.5, win_size=11)
        for x, y in pairs
    ]
    return float(sum(values) / len(values))
