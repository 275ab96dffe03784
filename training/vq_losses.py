"""What a VQ tokenizer minimizes: pixels, perception, an adversary's verdict, and how its codebook is used.

Terms and their defaults are LlamaGen's (its tokenizer's training code), which are VQGAN's: reconstruction, a perceptual
distance, a patch discriminator with hinge losses whose weight may follow the gradients at the last layer, and entropy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.features import PatchFeatures
from training.errors import TrainingError
from training.lpips import Lpips

# RGB to one brightness and two colour-difference channels, ITU-R BT.601.
_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])


def reconstruction_loss(
    kind: str, decoded: Tensor, pixels: Tensor, weights: Tensor | None = None, chroma_weight: float = 1.0
) -> Tensor:
    """Mean absolute (`l1`) or squared error (`l2`), or both in brightness and colour plus that of 4x4 means (`colour`).

    Args:
        decoded, pixels: [B, 3, H, W].
        weights: of the pixels' errors, [B, 1, H, W], but for the means'; None: all alike.
        chroma_weight: of the two colour-difference channels' errors; of `colour` alone.
    """
    emphasis = 1.0 if weights is None else weights
    error = decoded - pixels
    if kind == "l1":
        return (emphasis * error.abs()).mean()
    if kind == "l2":
        return (emphasis * error.square()).mean()
    channels = torch.tensor([1.0, chroma_weight, chroma_weight], device=pixels.device)[None, :, None, None]
    error = (torch.einsum("bchw,dc->bdhw", error, _YCC.to(pixels.device)) * channels).contiguous()
    fine = (emphasis * (error.abs() + 2 * error.square())).mean()
    coarse = F.avg_pool2d(error, 4).abs().mean()
    return fine + coarse


class PatchDiscriminator(nn.Module):
    """Pictures [B, 3, H, W] -> one logit a patch [B, 1, h, w], high where it looks real (PatchGAN, 70 pixels).

    Args:
        channels: of the first layer; they double in every layer, up to eight times.
        layers: that halve the side.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            blocks += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.main(pictures)


def discriminator_hinge(real: Tensor, made: Tensor) -> Tensor:
    """Logits of real pictures shall be above 1, of made ones below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean())


def generator_hinge(made: Tensor) -> Tensor:
    """Logits of made pictures shall be high."""
    return -made.mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """The factor at which both losses pull the decoder's last layer equally hard, at most 10⁴; no gradient."""
    losses = (reconstruction, adversarial)
    first, second = (torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in losses)
    return (first / (second + 1e-4)).clamp(0, 1e4).detach()


def entropy_loss(vectors: Tensor, rows: Tensor, temperature: float = 0.01) -> Tensor:
    """Low where each vector is sure of its row and all rows are chosen alike (MaskGIT's form).

    Args:
        vectors: unit vectors [M, d]; rows: unit codebook rows [V, d].
        temperature: of the softmax over minus squared distances.
    """
    affinity = (2 * vectors @ rows.t() - 2) / temperature  # minus squared distances of unit vectors
    logs, probabilities = affinity.log_softmax(-1), affinity.softmax(-1)
    each = -(probabilities * logs).sum(-1).mean()
    mean = probabilities.mean(0)
    return each + (mean * (mean + 1e-5).log()).sum()


class EdgeDistance(nn.Module):
    """Mean absolute difference of brightness gradients (Sobel) at three scales: needs no weights, sees no objects."""

    kernels: Tensor

    def __init__(self) -> None:
        super().__init__()
        across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]) / 8
        self.register_buffer("kernels", torch.stack((across, across.t()))[:, None], persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] -> []."""
        difference = (a - b).mean(dim=1, keepdim=True)  # gradients are linear
        total = torch.zeros((), device=a.device)
        for _ in range(3):
            total = total + F.conv2d(F.pad(difference, (1, 1, 1, 1), mode="replicate"), self.kernels).abs().mean()
            difference = F.avg_pool2d(difference, 2)
        return total / 3


class FeatureDistance(nn.Module):
    """Mean squared difference of a frozen vision encoder's normalized patch features.

    Args:
        folder: a local DINOv2 or CLIP model in Hugging Face layout.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.encoder = _Encoder(folder)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.encoder.move(fn)
        return super()._apply(fn, recurse)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] -> []."""
        with torch.no_grad():
            wanted = self.encoder.patches(b)
        return (self.encoder.patches(a) - wanted).square().sum(-1).mean()


class _Encoder(PatchFeatures):
    """With a gradient towards the pictures."""

    def move(self, fn: Any) -> None:
        self._model._apply(fn)
        self._mean, self._std = fn(self._mean), fn(self._std)

    def patches(self, pictures: Tensor) -> Tensor:
        size = (self.side, self.side)
        shown = F.interpolate((pictures + 1) / 2, size, mode="bicubic", align_corners=False, antialias=True)
        states = self._model(pixel_values=(shown - self._mean) / self._std).last_hidden_state
        return F.normalize(self._patches(self._model, states).float(), dim=-1)


class LpipsDistance(Lpips):
    """LPIPS over VGG-16, mean over the pictures."""

    def __init__(self, weights: Path) -> None:
        super().__init__("vgg", weights)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] -> []."""
        return super().forward(a, b).mean()


def perceptual_term(name: str) -> nn.Module | None:
    """`none`, `edges`, `lpips:VGG_WEIGHTS` or `dino:FOLDER` (any local DINOv2 or CLIP).

    Raises:
        TrainingError, CheckpointError: another name, or what it needs is not there.
    """
    kind, _, path = name.partition(":")
    if kind == "none":
        return None
    if kind == "edges" and not path:
        return EdgeDistance()
    if kind == "lpips":
        if not path:
            raise TrainingError(
                "LPIPS needs torchvision's VGG-16 weights in a file: --perceptual lpips:vgg16-397923af.pth, or choose "
                "none, edges or dino:FOLDER"
            )
        return LpipsDistance(Path(path))
    if kind == "dino" and path:
        return FeatureDistance(Path(path))
    raise TrainingError(f"perceptual is none, edges, lpips:FILE or dino:FOLDER, got {name!r}")
