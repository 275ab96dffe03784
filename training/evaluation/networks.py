"""The frozen networks that measure: CLIP, DINO's self-similarity and LPIPS, all from local files.

Each is optional: a measure whose network is not given is left out and named, never replaced by another.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.data.features import IMAGENET_MEAN, IMAGENET_STD
from training.local_networks import blank, load_from, load_network
from training.lpips import Lpips
from training.provenance import fingerprint

Picture = NDArray[np.uint8]  # [H, W, 3]


class ClipSimilarity:
    """100 times the cosine of a picture's and a text's CLIP embeddings, not below 0, as torchmetrics' CLIPScore has it.

    Pictures are resized by Pillow, as they were for the published numbers, also where torchvision is installed.

    Args:
        folder: PIE-Bench uses openai/clip-vit-large-patch14.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoTokenizer, CLIPModel

        def answer(model: Any) -> Tensor:
            out = model(input_ids=torch.zeros(1, 2).long(), pixel_values=blank(model.config.vision_config.image_size))
            return torch.cat([out.image_embeds, out.text_embeds])

        wanted = "CLIP whole, with its text half, such as openai/clip-vit-large-patch14"
        self._model = load_network(CLIPModel, folder, wanted, ("clip",), answer).to(device)
        self._tokenizer = load_from(AutoTokenizer, folder, wanted)
        self._resizer = load_from(_pillow_processor(), folder, wanted)
        self.device = device

    def pixels(self, picture: Picture) -> Tensor:
        """What the network is shown of a picture [H, W, 3], float32 [1, 3, side, side]."""
        return self._resizer(images=[picture], return_tensors="pt")["pixel_values"].to(self.device)

    @torch.inference_mode()
    def __call__(self, picture: Picture, text: str) -> float:
        length = self._model.config.text_config.max_position_embeddings
        words = self._tokenizer([text], return_tensors="pt", truncation=True, max_length=length).to(self.device)
        out = self._model(**words, pixel_values=self.pixels(picture))
        return max(0.0, 100 * F.cosine_similarity(out.image_embeds, out.text_embeds).item())


def _pillow_processor() -> Any:
    """The library's picture processor for CLIP that uses Pillow: it has a name of its own from version 5 on."""
    import transformers

    name = "CLIPImageProcessorPil" if int(transformers.__version__.partition(".")[0]) >= 5 else "CLIPImageProcessor"
    return getattr(transformers, name)


class StructureDistance:
    """How far two pictures' layouts lie apart: the mean squared difference of the cosine similarities between the keys
    of all positions in DINO's last layer (Splice, arXiv 2201.00424, as PIE-Bench measures it).

    PIE-Bench's own code hands over values of 0 to 255 where the network expects 0 to 1; published distances are made
    that way, so it is done here too. It has torchvision resize tensors to 224, which version 0.13, pinned there, does
    without anti-aliasing, and version 0.17 and later, as EditAR's environment has it, with. Both are offered.

    Args:
        folder: PIE-Bench uses facebook/dino-vitb8.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import ViTModel

        def answer(model: Any) -> Tensor:
            return model(pixel_values=blank(model.config.image_size)).last_hidden_state

        # Other ViTs have the same layers and give other distances; those trained to classify tell by their head.
        self._model = load_network(
            ViTModel,
            folder,
            "DINO, such as facebook/dino-vitb8",
            ("vit",),
            answer,
            foreign=("classifier.", "decoder."),
            add_pooling_layer=False,
        ).to(device)
        self.device = device
        self._mean, self._std = (torch.tensor(v, device=device).reshape(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        keys = [m for name, m in self._model.named_modules() if name.endswith((".k_proj", "attention.key"))]
        keys[-1].register_forward_hook(lambda module, inputs, output: self._heard.append(output))
        self._heard: list[Tensor] = []

    @torch.inference_mode()
    def keys(self, picture: NDArray[Any], antialias: bool = False) -> Tensor:
        """Keys of the last layer, [1 + patches, D], of a picture [H, W, 3] of 0 … 255."""
        side = self._model.config.image_size
        values = torch.from_numpy(np.ascontiguousarray(picture, np.float32)).to(self.device).permute(2, 0, 1)[None]
        values = F.interpolate(values, (side, side), mode="bilinear", align_corners=False, antialias=antialias)
        self._heard.clear()
        self._model(pixel_values=(values - self._mean) / self._std)
        return self._heard.pop()[0]

    def __call__(self, one: NDArray[Any], other: NDArray[Any], antialias: bool = False) -> float:
        """Distance of two pictures [H, W, 3] of 0 … 255.

        Args:
            antialias: resize with anti-aliasing, which makes a difference to pictures that are larger than 224.
        """
        similar = (self_similarity(self.keys(picture, antialias)) for picture in (one, other))
        return F.mse_loss(*similar).item()


def self_similarity(keys: Tensor) -> Tensor:
    """Cosine of every pair of rows, [T, D] → [T, T]."""
    lengths = keys.norm(dim=1, keepdim=True)
    return (keys @ keys.t()) / (lengths @ lengths.t()).clamp_min(1e-8)


class PictureLpips:
    """LPIPS with SqueezeNet, which PIE-Bench uses, of pictures as arrays.

    Args:
        weights: torchvision's `squeezenet1_1-b8a52dc0.pth`.
    """

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        self._distance = Lpips("squeeze", weights).to(device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        """Distance of two pictures [H, W, 3] of 0 … 1."""
        pair = (torch.from_numpy(np.ascontiguousarray(x)).to(self.device).permute(2, 0, 1)[None] for x in (one, other))
        return float(self._distance(*(2 * x - 1 for x in pair)))


@dataclasses.dataclass(frozen=True)
class Networks:
    """What there is to measure PIE-Bench with."""

    clip: ClipSimilarity | None = None
    structure: StructureDistance | None = None
    lpips: PictureLpips | None = None
    fingerprints: dict[str, str] = dataclasses.field(default_factory=dict)  # of those there are

    @classmethod
    def load(cls, clip: Path | None, dino: Path | None, lpips: Path | None, device: str = "cpu") -> Networks:
        given = {"clip": clip, "dino": dino, "lpips": lpips}
        return cls(
            ClipSimilarity(clip, device) if clip else None,
            StructureDistance(dino, device) if dino else None,
            PictureLpips(lpips, device) if lpips else None,
            {name: fingerprint(path) for name, path in given.items() if path},
        )

    def missing(self) -> list[str]:
        """A sentence for each measure that is left out."""
        absent = {
            "CLIP similarity is not measured: give --clip FOLDER (openai/clip-vit-large-patch14)": self.clip,
            "structure distance is not measured: give --dino FOLDER (facebook/dino-vitb8)": self.structure,
            "LPIPS is not measured: give --lpips FILE (torchvision's squeezenet1_1-b8a52dc0.pth)": self.lpips,
        }
        return [sentence for sentence, network in absent.items() if network is None]
