"""Patch features of a frozen vision encoder, the teacher of EditAR's distillation, from a local Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from training.data.records import DataError
from training.data.shards import FEATURES_FROM, FEATURES_VIEW
from training.local_networks import blank, load_network, model_type

SIDE, RESIZED = 224, 256  # pixels, where the folder says nothing else: DINOv2's own preprocessing
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
USUAL = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


class PatchFeatures:
    """uint8 pictures [B, H, W, 3] → float16 [B, h, w, F], the last hidden state of every patch, in its place.

    Pictures are resized to the encoder's own size (bicubic) and normalized with its own mean and deviation, which
    `preprocessor_config.json` gives. DINOv2-base makes 16×16 of 768.

    Args:
        folder: DINOv2, DINO, CLIP or another ViT in Hugging Face layout.
        view: what it is shown. `reference`: the shorter edge resized and the middle cut out, as the folder's
            preprocessing says it and EditAR's training has it, for DINOv2 256 pixels and 224, 77 % of a square picture.
            `whole`: all of the picture in that square, so that patches lie where a picture's tokens lie.

    Attributes:
        kind: the type of model that the folder's `config.json` names, such as dinov2.
        view: `both` where nothing is cut off, so that the two views are one.

    Raises:
        DataError: no such encoder there.
    """

    def __init__(self, folder: Path, device: str = "cpu", view: str = "whole") -> None:
        from transformers import AutoModel

        self.kind = model_type(folder)
        settings = read_settings(folder)
        self.side, self.resized = settings["side"], settings["resized"]
        self.view = "both" if self.resized == self.side else view
        wanted = "DINOv2, CLIP or another ViT whole, such as facebook/dinov2-base"
        model = load_network(AutoModel, folder, wanted, (), self._answer)
        self._model = _vision_part(model).to(device).requires_grad_(False)
        self.device = device
        self._mean, self._std = (
            torch.tensor(settings[name], device=device).reshape(3, 1, 1) for name in ("mean", "std")
        )

    @property
    def described(self) -> dict[str, NDArray[np.str_]]:
        """What a shard says of its features, by the names of its arrays."""
        return {FEATURES_FROM: np.asarray(self.kind), FEATURES_VIEW: np.asarray(self.view)}

    def _answer(self, model: Any) -> Tensor:
        part = _vision_part(model)
        return self._patches(part, part(pixel_values=blank(self.side)).last_hidden_state)

    def _patches(self, model: Any, states: Tensor) -> Tensor:
        """Those of the states [B, T, F] that are patches, which come last, [B, h, w, F]."""
        grid = self.side // model.config.patch_size
        return states[:, -grid * grid :].reshape(len(states), grid, grid, -1)  # behind the class token and registers

    @torch.inference_mode()
    def __call__(self, pictures: NDArray[np.uint8]) -> NDArray[np.float16]:
        states: Tensor = self._model(pixel_values=self.pixels(pictures)).last_hidden_state
        return self._patches(self._model, states).to(torch.float16).cpu().numpy()

    def pixels(self, pictures: NDArray[np.uint8]) -> Tensor:
        """What the encoder is shown, float32 [B, 3, side, side]."""
        values = torch.from_numpy(pictures).to(self.device).permute(0, 3, 1, 2).float() / 255
        size = [self.side, self.side]
        if self.view == "reference":
            shorter = min(values.shape[2:])
            size = [max(self.resized, self.resized * n // shorter) for n in values.shape[2:]]
        values = F.interpolate(values, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        top, left = ((n - self.side) // 2 for n in size)
        values = values[:, :, top : top + self.side, left : left + self.side]
        return (values - self._mean) / self._std


def _vision_part(model: Any) -> Any:
    return getattr(model, "vision_model", model)  # of CLIP whole


def read_settings(folder: Path) -> dict[str, Any]:
    """`side`, `resized`, `mean` and `std` of a folder's `preprocessor_config.json`; the usual values without one.

    The shorter edge is `resized`, then a square of `side` pixels is cut out.

    Raises:
        DataError: a file that says something else than sizes and three numbers for the colours.
    """
    path = folder / "preprocessor_config.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        size, crop = _side(found.get("size")), _side(found.get("crop_size"))
        if found.get("do_center_crop") is False:
            crop = None
        side = crop or size or SIDE
        resized = size or (side if found else RESIZED)
        mean, std = ([float(v) for v in found.get(f"image_{k}") or usual] for k, usual in USUAL.items())
        if not (len(mean) == len(std) == 3 and all(std)):
            raise ValueError("image_mean and image_std must be three numbers")
        return {"side": side, "resized": max(side, resized), "mean": mean, "std": std}
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be used: {error}") from None


def _side(size: Any) -> int | None:
    """Of a square, as a number or by name; None where nothing is said."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return int(size) if size else None
