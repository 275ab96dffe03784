"""LPIPS, how different two pictures look (arXiv 1801.03924), over SqueezeNet or VGG-16, without torchvision.

The weights of its linear layers come with torchmetrics, whose own LPIPS needs torchvision for the network below them.
Here the network is built from plain layers, and its weights are read from the file that torchvision publishes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.weights_file import CheckpointError, read_weights


class Fire(nn.Module):
    """SqueezeNet's module; parameter names of torchvision."""

    def __init__(self, width: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], dim=1)


def squeezenet_features() -> nn.Sequential:
    """The convolutions of SqueezeNet 1.1, as torchvision's `squeezenet1_1().features`."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2),
        nn.ReLU(),
        pool(),
        Fire(64, 16, 64),
        Fire(128, 16, 64),
        pool(),
        Fire(128, 32, 128),
        Fire(256, 32, 128),
        pool(),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        Fire(512, 64, 256),
    )


def vgg16_features() -> nn.Sequential:
    """The convolutions of VGG-16, as torchvision's `vgg16().features`."""
    layers: list[nn.Module] = []
    width = 3
    for widths in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        for wider in widths:
            layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU()]
            width = wider
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


@dataclasses.dataclass(frozen=True)
class Network:
    """One that LPIPS can look through."""

    title: str
    file: str  # of torchvision's weights
    build: Callable[[], nn.Sequential]
    taps: tuple[int, ...]  # after these layers features are compared


NETWORKS = {
    "squeeze": Network("SqueezeNet 1.1", "squeezenet1_1-b8a52dc0.pth", squeezenet_features, (1, 4, 7, 9, 10, 11, 12)),
    "vgg": Network("VGG-16", "vgg16-397923af.pth", vgg16_features, (3, 8, 15, 22, 29)),
}


class Lpips(nn.Module):
    """The distance, with a gradient towards the pictures and none towards its weights.

    Args:
        name: of `NETWORKS`. PIE-Bench measures with squeeze, LlamaGen's tokenizers were trained with vgg.
        weights: the file of that network.

    Raises:
        CheckpointError: no torchmetrics, or a file of other weights.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, name: str, weights: Path) -> None:
        super().__init__()
        try:
            import torchmetrics.functional.image.lpips as library
        except ImportError:
            raise CheckpointError("LPIPS needs torchmetrics; pip install torchmetrics") from None
        network = NETWORKS[name]
        self.features, self.taps = network.build(), network.taps
        tensors = read_weights(weights).tensors
        own = {key.removeprefix("features."): t for key, t in tensors.items() if key.startswith("features.")}
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in self.features.state_dict().items()}:
            raise CheckpointError(f"{weights} is not {network.title}; give torchvision's {network.file}")
        self.features.load_state_dict(own)
        heads = torch.load(
            Path(library.__file__).parent / "lpips_models" / f"{name}.pth", map_location="cpu", weights_only=True
        )
        for i in range(len(self.taps)):
            self.register_buffer(f"head{i}", heads[f"lin{i}.model.1.weight"], persistent=False)
        scaling = library.ScalingLayer()
        self.register_buffer("shift", scaling.shift, persistent=False)
        self.register_buffer("scale", scaling.scale, persistent=False)
        self.requires_grad_(False).eval()

    def _tapped(self, pictures: Tensor) -> list[Tensor]:
        x = (pictures - self.shift) / self.scale
        found = []
        for number, layer in enumerate(self.features[: self.taps[-1] + 1]):
            x = layer(x)
            if number in self.taps:
                found.append(x / (1e-8 + x.square().sum(dim=1, keepdim=True)).sqrt())
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] -> the distance of each pair, [B]."""
        pairs = zip(self._tapped(a), self._tapped(b), strict=True)
        parts = [
            F.conv2d((one - other).square(), self.get_buffer(f"head{i}")).mean(dim=(1, 2, 3))
            for i, (one, other) in enumerate(pairs)
        ]
        return torch.stack(parts).sum(0)
