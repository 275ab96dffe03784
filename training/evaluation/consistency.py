"""How well a picture made from a condition shows that condition: the measures ControlNet++ (arXiv 2404.07987) uses.

depth          root mean squared error of 0 … 255 between the condition and the depth estimated from the picture
canny          F1 and structural similarity between the condition's edges and the picture's own
segmentation   mean intersection over union between the condition's classes and those found in the picture
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from editar_rt.images.canny import canny_edges
from editar_rt.images.fit import fit_square
from training.data.features import read_settings
from training.data.records import DataError
from training.local_networks import blank, load_network

Picture = NDArray[np.uint8]  # [H, W, 3]
UNKNOWN = -1  # class of a colour that the palette does not have
COLOUR_TOLERANCE = 12  # greatest difference of a channel, for masks stored as JPEG


class _Pixelwise:
    """A network of the `transformers` library that answers for every pixel, shown pictures as it was trained.

    Args:
        kind: the library's class; wanted, types: as `load_network` has them.
        output: name of what is measured among the network's outputs.
    """

    def __init__(self, kind: Any, folder: Path, device: str, wanted: str, types: tuple[str, ...], output: str) -> None:
        settings = read_settings(folder)
        self._side: int | None = settings["side"] if (folder / "preprocessor_config.json").is_file() else None
        self._output = output

        def answer(model: Any) -> torch.Tensor:
            side = self._side or getattr(model.config, "image_size", None) or settings["side"]
            return getattr(model(pixel_values=blank(side)), output)

        self._model = load_network(kind, folder, wanted, types, answer).to(device)
        self._mean, self._std = (torch.tensor(settings[k], device=device).reshape(3, 1, 1) for k in ("mean", "std"))
        self.device = device

    def outputs(self, picture: Picture) -> torch.Tensor:
        """What the network says about a picture [H, W, 3], with a batch of 1."""
        if self._side is not None:
            # As the library's own processors do it, rounding included.
            size = (self._side, self._side)
            picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
        x = torch.from_numpy(picture.copy()).to(self.device).permute(2, 0, 1)[None].float() / 255
        return getattr(self._model(pixel_values=(x - self._mean) / self._std), self._output)


class DepthEstimator(_Pixelwise):
    """Nearness of every pixel, bright is near, as ControlNet++ has DPT estimate it.

    Args:
        folder: ControlNet++ uses Intel/dpt-large. Networks that estimate distance, bright is far, are refused.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoModelForDepthEstimation

        wanted = "a DPT or a Depth Anything, such as Intel/dpt-large"
        super().__init__(
            AutoModelForDepthEstimation, folder, device, wanted, ("dpt", "depth_anything"), "predicted_depth"
        )
        if getattr(self._model.config, "depth_estimation_type", "relative") != "relative":
            raise DataError(f"{folder} estimates distances in metres, not nearness; give {wanted}")

    @torch.inference_mode()
    def __call__(self, picture: Picture) -> NDArray[np.float32]:
        """uint8 [S, S, 3] → float32 [S, S] of 0 … 255; 255 is the greatest the network says, 0 is its own 0.

        The published code rounds down to whole numbers, then resizes (bilinear, Pillow); so does this.
        """
        depth = self.outputs(picture)[0].float().cpu().numpy()
        greatest = float(depth.max())
        whole = np.clip(255 * depth / greatest, 0, 255) if greatest > 0 else np.zeros_like(depth)
        size = (picture.shape[1], picture.shape[0])
        return np.asarray(Image.fromarray(whole.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR), np.float32)


class Segmenter(_Pixelwise):
    """The class of every pixel: any semantic segmentation model of `transformers`."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoModelForSemanticSegmentation

        super().__init__(
            AutoModelForSemanticSegmentation, folder, device, "a semantic segmenter with its decoder", (), "logits"
        )
        self.classes = int(self._model.config.num_labels)

    @torch.inference_mode()
    def __call__(self, picture: Picture, side: int) -> NDArray[np.int64]:
        """uint8 [S, S, 3] → classes, int64 [side, side]."""
        logits = F.interpolate(self.outputs(picture), (side, side), mode="bilinear", align_corners=False)
        return logits[0].argmax(0).cpu().numpy()


def depth_error(condition: Picture, depth: NDArray[np.float32]) -> float:
    """Root mean squared error of 0 … 255 between an estimate and the condition [S, S, 3], which is grey.

    The condition is stretched to 0 … 255 and rounded down first, the estimate is not, as in the published code.
    """
    grey = condition.astype(np.float64).mean(axis=2)
    low, high = grey.min(), grey.max()
    wanted = np.floor(255 * (grey - low) / (high - low)) if high > low else np.zeros_like(grey)
    return float(np.sqrt(np.square(wanted - depth).mean()))


def edge_agreement(condition: Picture, picture: Picture) -> dict[str, float]:
    """`f1` and `edge_ssim` of the picture's own Canny edges against the condition's; both [S, S, 3].

    Published SSIM of edges is the multi-scale kind, which pictures of less than 161 pixels do not have: it is measured
    from there on as `edge_ms_ssim`.
    """
    from torchmetrics.functional.classification import binary_f1_score
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure,
        structural_similarity_index_measure,
    )

    wanted, shown = (torch.from_numpy(p[..., 0] > 127) for p in (condition, canny_edges(picture)))
    maps = [p[None, None].float() for p in (shown, wanted)]
    values = {
        "f1": binary_f1_score(shown.flatten(), wanted.flatten()).item(),
        "edge_ssim": structural_similarity_index_measure(*maps, data_range=1.0).item(),
    }
    if min(wanted.shape) > 160:
        values["edge_ms_ssim"] = multiscale_structural_similarity_index_measure(*maps, data_range=1.0).item()
    return values


def read_palette(path: Path) -> NDArray[np.int64]:
    """Colours by class, [classes, 3], from a JSON list of [red, green, blue].

    Raises:
        DataError: no such list.
    """
    try:
        colours = np.asarray(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if colours.ndim != 2 or colours.shape[1:] != (3,) or colours.dtype.kind != "i" or not 0 <= colours.max() <= 255:
        raise DataError(f"{path} must be a list with [red, green, blue] of 0 to 255 for every class")
    return colours.astype(np.int64)


def classes_of(mask: Picture, palette: NDArray[np.int64]) -> NDArray[np.int64]:
    """The class of every pixel of a colour mask's middle square, int64 [S, S]; `UNKNOWN` for colours of no class."""
    square = np.asarray(fit_square(Image.fromarray(mask), min(mask.shape[:2])))
    colours, place = np.unique(square.reshape(-1, 3), axis=0, return_inverse=True)
    distances = np.abs(colours[:, None].astype(np.int64) - palette).max(axis=2)  # [colours, classes]
    nearest = np.where(distances.min(axis=1) <= COLOUR_TOLERANCE, distances.argmin(axis=1), UNKNOWN)
    return nearest[place.ravel()].reshape(square.shape[:2])


def overlap(wanted: NDArray[np.int64], found: NDArray[np.int64]) -> dict[str, list[int]]:
    """`class: [intersection, union]` in pixels of one picture; pixels of unknown class are left out."""
    known = wanted != UNKNOWN
    present = np.union1d(wanted[known], found[known])
    return {
        str(c): [int(((wanted == c) & (found == c) & known).sum()), int((((wanted == c) | (found == c)) & known).sum())]
        for c in present.tolist()
    }


def overlap_counts(records: Sequence[Iterable[dict[str, list[int]]]]) -> NDArray[np.float64]:
    """Intersection and union of every class, summed over each record's pictures, [records, classes, 2]."""
    names = sorted({name for pictures in records for one in pictures for name in one})
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(records), len(names), 2))
    for row, pictures in zip(counts, records, strict=True):
        for one in pictures:
            for name, pixels in one.items():
                row[place[name]] += pixels
    return counts


def mean_iou(counts: NDArray[np.float64]) -> float:
    """Mean over classes of the intersection over the union, 0 … 1; classes without a pixel are left out.

    Args:
        counts: both of every class, summed over all pictures, [classes, 2].
    """
    shown = counts[counts[:, 1] > 0]
    return float((shown[:, 0] / shown[:, 1]).mean())
