"""Pictures that a VQ tokenizer is trained on: the procedural world's, or those of a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from editar_rt.images.folders import list_pictures, picture_endings
from training.batches import draw
from training.data.records import PICTURE_FORMATS, BadRecord, BadRecords, read_picture
from training.data.scenes import condition_picture, object_mask, random_scene, render
from training.errors import TrainingError
from training.loop import batch_rng

HELD_OUT = 96  # pictures that are looked at and not trained on


@dataclasses.dataclass
class Pictures:
    """Some of a step's pictures."""

    pixels: Tensor  # [B, 3, H, W] in [-1, 1]
    weights: Tensor | None = None  # [B, 1, H, W], of the errors; their mean over the whole batch is 1


class PictureSource(Protocol):
    """Where pictures come from."""

    bad: BadRecords | None  # met so far; None where there can be none

    def batch(self, step: int, share: slice, count: int | None = None) -> Pictures:
        """A part of a step's batch, or of one of `count`; follows from the seed and the step alone."""

    def held_out(self) -> Tensor:
        """Pictures not trained on, [V, 3, H, W]."""

    def describe(self, step: int, share: slice) -> str:
        """Names that part of the batch, for a message."""


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 [B, H, W, 3] -> [B, 3, H, W] in [-1, 1], in the memory format that is fast on a CPU."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.contiguous(memory_format=torch.channels_last)


def batch_pictures(rng: np.random.Generator, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Pictures of the world and its condition maps: [count, 3, size, size] in [-1, 1], object masks [count, 1, ...]."""
    pictures = np.empty((count, size, size, 3), np.uint8)
    masks = np.zeros((count, 1, size, size), np.float32)
    for i in range(count):
        scene = random_scene(rng, int(rng.choice([1, 2, 3], p=[0.1, 0.3, 0.6])))
        kind = rng.choice(["picture", "depth", "canny", "segmentation"], p=[0.79, 0.06, 0.09, 0.06])
        pictures[i] = render(scene, size) if kind == "picture" else condition_picture(scene, str(kind), size)
        for o in scene.objects if kind != "canny" else ():
            masks[i, 0] = np.maximum(masks[i, 0], object_mask(o, size))
    return to_tensor(pictures), torch.from_numpy(masks)


class WorldPictures:
    """The procedural world, drawn anew at every step.

    Args:
        object_weight: how much more errors at objects count, by the step.
    """

    def __init__(self, seed: int, batch: int, size: int, object_weight: Callable[[int], float]) -> None:
        self.seed, self.count, self.size, self.object_weight = seed, batch, size, object_weight
        self.bad: BadRecords | None = None

    def batch(self, step: int, share: slice, count: int | None = None) -> Pictures:
        # All of it is drawn by every process: one stream of random numbers, whatever their number.
        pixels, masks = batch_pictures(batch_rng(self.seed, step), count or self.count, self.size)
        emphasis = self.object_weight(step)
        weights = (1 + emphasis * masks) / (1 + emphasis * masks.mean())
        return Pictures(pixels[share], weights[share])

    def held_out(self) -> Tensor:
        return batch_pictures(batch_rng(self.seed, 2**40), HELD_OUT, self.size)[0]

    def describe(self, step: int, share: slice) -> str:
        return f"pictures {share.start} to {share.stop - 1} of the world's step {step}"


class FolderPictures:
    """The pictures below a folder: a random square of each, mirrored half of the time.

    A picture that cannot be read is replaced by the next one. The last ones by name, a twentieth of them at most, are
    held out.

    Args:
        size: side in pixels; the shorter side is scaled to between this and 1.25 times this before the cut.
        report: is told of files that are no pictures, and of the first pictures that cannot be read, each once.

    Raises:
        TrainingError: fewer than two pictures.
    """

    def __init__(
        self, folder: Path, seed: int, batch: int, size: int, report: Callable[[str], None] = lambda line: None
    ) -> None:
        listing = list_pictures(folder, deep=True, formats=PICTURE_FORMATS)
        paths = listing.pictures
        if len(paths) < 2:
            endings = ", ".join(picture_endings(PICTURE_FORMATS))
            raise TrainingError(f"{folder} holds {len(paths)} pictures ({endings}); two are needed")
        if listing.sentence is not None:
            report(listing.sentence)
        held = max(1, min(HELD_OUT, len(paths) // 20))
        self.paths, self.held = paths[:-held], paths[-held:]
        self.seed, self.count, self.size = seed, batch, size
        self.folder = folder
        self.bad = BadRecords(tell=report)
        self._unreadable: set[Path] = set()

    def _indices(self, step: int, count: int) -> NDArray[np.int64]:
        return draw([self.seed], step * count, count, len(self.paths))

    def _open(self, path: Path) -> Image.Image | None:
        """A picture; None where it cannot be read, now or before."""
        if path in self._unreadable:
            return None
        try:
            return Image.fromarray(read_picture(path, str(path)))
        except BadRecord as error:
            self._unreadable.add(path)
            self.bad.add(str(self.folder), error, path)
            return None

    def _read(self, index: int) -> Image.Image:
        for offset in range(len(self.paths)):
            if picture := self._open(self.paths[(index + offset) % len(self.paths)]):
                return picture
        raise TrainingError(f"none of the {len(self.paths)} pictures beside {self.paths[0]} can be read")

    def batch(self, step: int, share: slice, count: int | None = None) -> Pictures:
        count = count or self.count
        mine = list(enumerate(self._indices(step, count)))[share]
        cuts = [self._cut(self._read(int(i)), np.random.default_rng([self.seed, step, place])) for place, i in mine]
        return Pictures(to_tensor(np.stack(cuts)))

    def _cut(self, picture: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
        shorter = int(rng.integers(self.size, self.size * 5 // 4 + 1))
        scale = shorter / min(picture.size)
        width, height = (max(self.size, round(side * scale)) for side in picture.size)
        left, top = int(rng.integers(width - self.size + 1)), int(rng.integers(height - self.size + 1))
        cut = picture.resize((width, height), Image.Resampling.LANCZOS)
        square = np.asarray(cut.crop((left, top, left + self.size, top + self.size)))
        return square[:, ::-1] if rng.random() < 0.5 else square

    def held_out(self) -> Tensor:
        from editar_rt.images.fit import fit_square

        opened = (self._open(path) for path in self.held)
        readable = [np.asarray(fit_square(picture, self.size)) for picture in opened if picture]
        if not readable:
            raise TrainingError(f"none of the held-out pictures can be read, such as {self.held[0]}")
        return to_tensor(np.stack(readable))

    def describe(self, step: int, share: slice) -> str:
        return ", ".join(str(self.paths[i]) for i in self._indices(step, self.count)[share])
