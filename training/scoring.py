"""Strict scores of edited pictures against the procedural world's ground truth.

Nothing is learned here. What a picture shows is decided by comparing it with renderings: for every object the scene
as it should be, against the same scene with that object in every other colour, texture, shape and size, and without
it. The nearest one (least squares around the object) is what the picture shows. So a picture passes only if no
single property of any object is closer to another value than to the right one. Translations leave textures and sizes
open: there every colour, shape and absence is compared in all textures and sizes.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from numpy.typing import NDArray

from training.data.edits import Example
from training.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    WHOLE,
    Object,
    Scene,
    Window,
    influence_mask,
    render,
)

OUTSIDE_PSNR = 22.0  # dB that everything an edit leaves alone must keep
OBJECT_PSNR = 14.0  # dB around an object below which it is a blot, whatever it is nearest to

Picture = NDArray[np.float32]  # [H, W, 3], 0..1


@dataclasses.dataclass(frozen=True)
class Score:
    """The verdict on one picture."""

    success: bool
    outside_psnr: float  # dB against the source where the edit changes nothing; nan for translations
    faults: tuple[str, ...]  # what is wrong, empty on success
    exact: bool  # every property right: for translations textures, sizes and background too


def _rendered(scene: Scene, size: int, window: Window = WHOLE) -> Picture:
    return render(scene, size, window).astype(np.float32) / 255


def _box(mask: NDArray[np.bool_]) -> Window:
    """The rows and columns that hold all of a mask: what lies outside of them need not be compared."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _psnr(a: Picture, b: Picture, mask: NDArray[np.bool_]) -> float:
    error = float(np.square(a - b)[mask].mean()) if mask.any() else 0.0
    return 10 * float(np.log10(1 / max(error, 1e-9)))


PROPERTIES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "texture": TEXTURES,
    "shape": SHAPES,
    "size": tuple(SIZES),
}


def variants(o: Object, free: tuple[str, ...]) -> list[Object]:
    """The object with every combination of values of the properties in `free`."""
    values = itertools.product(*(PROPERTIES[name] for name in free))
    return [dataclasses.replace(o, **dict(zip(free, v, strict=True))) for v in values]


def alternatives(o: Object, free: tuple[str, ...] = ()) -> dict[str, list[Object | None]]:
    """Everything an object could be mistaken for by one property that is not free, named by it; and its absence."""
    others: dict[str, list[Object | None]] = {"absent": [None]}
    for name, values in PROPERTIES.items():
        for value in values:
            if name not in free and value != getattr(o, name):
                others[f"{name} {value}"] = [*variants(dataclasses.replace(o, **{name: value}), free)]
    return others


def shown_background(picture: Picture, scene: Scene) -> str:
    """The background nearest to the picture, away from the objects."""
    size = len(picture)
    away = np.ones((size, size), bool)
    for o in scene.objects:
        away &= ~influence_mask(o, size)
    errors = {
        name: float(np.square(picture - _rendered(dataclasses.replace(scene, background=name), size))[away].mean())
        for name in BACKGROUNDS
    }
    return min(errors, key=lambda name: errors[name])


def object_fault(picture: Picture, scene: Scene, o: Object, free: tuple[str, ...] = ()) -> str | None:
    """What is wrong about an object that `scene` has, or None: a property's nearer value, `absent` or `blot`.

    Properties in `free` may have any value.
    """
    size = len(picture)
    rights, others = variants(o, free), alternatives(o, free)
    region = np.zeros((size, size), bool)
    for candidate in (*rights, *(c for candidates in others.values() for c in candidates)):
        if candidate is not None:
            region |= influence_mask(candidate, size)

    box = _box(region)
    seen, counted = picture[box], region[box]

    def error(candidate: Object | None) -> float:
        return float(np.square(seen - _rendered(scene.replace(o, candidate), size, box))[counted].mean())

    right = min(rights, key=error)
    least, fault = error(right), None
    for name, candidates in others.items():
        for candidate in candidates:
            if (e := error(candidate)) < least:
                least, fault = e, name
    shown_as = _rendered(scene.replace(o, right), size)
    if fault is None and _psnr(picture, shown_as, influence_mask(right, size)) < OBJECT_PSNR:
        return "blot"
    return fault


def leftover_fault(picture: Picture, scene: Scene, removed: Object) -> str | None:
    """`still there` where a removed object, or any variant of it, is nearer than the empty place."""
    size = len(picture)
    region = influence_mask(removed, size)
    box = _box(region)

    def error(shown: Scene) -> float:
        return float(np.square(picture[box] - _rendered(shown, size, box))[region[box]].mean())

    present = [removed, *(o for candidates in alternatives(removed).values() for o in candidates if o is not None)]
    return "still there" if min(error(scene.add(o)) for o in present) < error(scene) else None


def score(example: Example, picture: NDArray[np.uint8]) -> Score:
    """Judge the picture (uint8 [H, W, 3], H = W) that came out of an example.

    An edit succeeds when every object and the background are what the target scene has and what the edit leaves
    alone keeps `OUTSIDE_PSNR`. A translation succeeds when every captioned object has its place, shape and colour.
    """
    shown = picture.astype(np.float32) / 255
    size = len(shown)
    target = example.target
    background = shown_background(shown, target)
    faults = [] if background == target.background else [f"background {background}"]
    # Objects are judged before the background that is there, so that one fault is not counted twice.
    scene = dataclasses.replace(target, background=background)
    faults += [f"{o.shape}: {fault}" for o in scene.objects if (fault := object_fault(shown, scene, o))]
    if example.task != "edit":
        open_ones = ("texture", "size")
        major = [f"{o.shape}: {fault}" for o in scene.objects if (fault := object_fault(shown, scene, o, open_ones))]
        return Score(not major, float("nan"), tuple(dict.fromkeys([*major, *faults])), not faults and not major)
    removed = example.subject if example.kind == "remove" else None
    if removed is not None and (fault := leftover_fault(shown, scene, removed)):
        faults.append(f"{removed.shape}: {fault}")
    before, after = render(example.source, size), render(target, size)
    outside = _psnr(shown, before.astype(np.float32) / 255, (before == after).all(axis=2))
    if outside < OUTSIDE_PSNR:
        faults.append("outside changed")
    return Score(not faults, outside, tuple(faults), not faults)
