"""How well a VQ tokenizer gives pictures back: PSNR, SSIM, Fréchet distance, and the share of its codebook in use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.data.features import PatchFeatures
from training.evaluation.frechet import InceptionFeatures, frechet_distance
from training.models.vq import VQModel

BATCH = 16


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB a picture of [B, 3, H, W] in [-1, 1]."""
    mse = (a.clamp(-1, 1) - b).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / mse.clamp_min(1e-9))


Features = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # pictures [B, H, W, 3] -> [B, F]


def mean_features(folder: Path) -> Features:
    """The mean of a frozen vision encoder's patch features; errors are those of `PatchFeatures`."""
    encoder = PatchFeatures(folder)
    return lambda pictures: encoder(pictures).astype(np.float32).mean(axis=(1, 2))


def inception_features(weights: Path) -> Features:
    """Those of the Inception-v3 that the published rFID compares."""
    encoder = InceptionFeatures(weights)
    return lambda pictures: np.stack([encoder(picture) for picture in pictures])


class Scores:
    """Takes the scores of a tokenizer on pictures.

    Args:
        fid_encoder: folder of a vision model whose features a Fréchet distance compares; None leaves it out. It is not
            to be set beside the published rFID.
        inception: the TorchScript file of the Inception-v3 over whose features rFID is taken; None leaves it out.

    Raises:
        DataError: no such model there.
    """

    def __init__(self, fid_encoder: Path | None = None, inception: Path | None = None) -> None:
        self.distances: dict[str, Features] = {}
        if fid_encoder is not None:
            self.distances["validation_frechet_distance"] = mean_features(fid_encoder)
        if inception is not None:
            self.distances["validation_rfid"] = inception_features(inception)

    @torch.no_grad()
    def __call__(self, model: VQModel, pixels: Tensor, quantizing: bool) -> dict[str, float]:
        """Numbers for the log; arguments as of `reconstruct`."""
        made, tokens = reconstruct(model, pixels, quantizing)
        ratios = psnr(made, pixels)
        values = {
            "validation_psnr": float(ratios.mean()),
            "validation_psnr_lowest_tenth": float(ratios.sort().values[: max(1, len(ratios) // 10)].mean()),
            "validation_ssim": ssim(made, pixels),
            "codebook_used": len(tokens.unique()) / model.config.codebook_size if quantizing else 0.0,
        }
        for name, features in self.distances.items():
            distance = frechet_distance(*(features(to_bytes(shown)) for shown in (pixels, made)))
            if distance is not None:
                values[name] = distance
        return values


@torch.no_grad()
def reconstruct(model: VQModel, pixels: Tensor, quantizing: bool) -> tuple[Tensor, Tensor]:
    """Pictures through the tokenizer and back [B, 3, H, W], and their tokens [B, N].

    Args:
        pixels: [B, 3, H, W] in [-1, 1].
        quantizing: whether vectors go through the codebook.
    """
    decoded, tokens = [], []
    for part in pixels.split(BATCH):
        vectors = F.normalize(model.encode_features(part.contiguous(memory_format=torch.channels_last)), dim=1)
        tokens.append(model.quantize_features(vectors))
        decoded.append(model.decode_vectors(model.lookup(tokens[-1]) if quantizing else vectors))
    return torch.cat(decoded), torch.cat(tokens)


def to_bytes(pixels: Tensor) -> NDArray[np.uint8]:
    """[B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3]."""
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()
    return values.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean structural similarity of pictures [B, 3, H, W] in [-1, 1], with scikit-image's Gaussian window."""
    from skimage.metrics import structural_similarity

    pairs = zip(a.clamp(-1, 1).cpu().float().numpy(), b.cpu().float().numpy())
    values = [
        structural_similarity(x, y, channel_axis=0, data_range=2.0, gaussian_weights=True, sigma=1.5, win_size=11)
        for x, y in pairs
    ]
    return float(sum(values) / len(values))
