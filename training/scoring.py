"""Strict scores of edited pictures against the procedural world's ground truth.

Nothing is learned here. What a picture shows is decided by comparing it with renderings: for every object the scene
as it should be, against the same scene with that object in every other colour, texture, shape and size, and without
it. The nearest one (least squares around the object) is what the picture shows. So a picture passes only if no
single property of any object is closer to another value than to the right one.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from training.data.edits import Example
from training.data.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Object, Scene, influence_mask, render

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


def _rendered(scene: Scene, size: int) -> Picture:
    return render(scene, size).astype(np.float32) / 255


def _psnr(a: Picture, b: Picture, mask: NDArray[np.bool_]) -> float:
    error = float(np.square(a - b)[mask].mean()) if mask.any() else 0.0
    return 10 * float(np.log10(1 / max(error, 1e-9)))


def alternatives(o: Object) -> dict[str, Object | None]:
    """Everything an object could be mistaken for by one property, named by that property; and its absence."""
    others: dict[str, Object | None] = {"absent": None}
    for name, values in (("colour", COLOURS), ("texture", TEXTURES), ("shape", SHAPES), ("size", SIZES)):
        for value in values:
            if value != getattr(o, name):
                others[f"{name} {value}"] = dataclasses.replace(o, **{name: value})
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


def object_fault(picture: Picture, scene: Scene, o: Object) -> str | None:
    """What is wrong about an object that `scene` has, or None: a property's nearer value, `absent` or `blot`."""
    size = len(picture)
    others = alternatives(o)
    region = influence_mask(o, size)
    for other in others.values():
        if other is not None:
            region |= influence_mask(other, size)
    right = _rendered(scene, size)
    least, fault = float(np.square(picture - right)[region].mean()), None
    for name, other in others.items():
        error = float(np.square(picture - _rendered(scene.replace(o, other), size))[region].mean())
        if error < least:
            least, fault = error, name
    if fault is None and _psnr(picture, right, influence_mask(o, size)) < OBJECT_PSNR:
        return "blot"
    return fault


def leftover_fault(picture: Picture, scene: Scene, removed: Object) -> str | None:
    """`still there` where a removed object, or any variant of it, is nearer than the empty place."""
    size = len(picture)
    region = influence_mask(removed, size)
    empty = float(np.square(picture - _rendered(scene, size))[region].mean())
    present = [removed, *(o for o in alternatives(removed).values() if o is not None)]
    errors = [float(np.square(picture - _rendered(scene.add(o), size))[region].mean()) for o in present]
    return "still there" if min(errors) < empty else None


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
    found = ((o.shape, object_fault(shown, scene, o)) for o in scene.objects)
    faults += [f"{shape}: {fault}" for shape, fault in found if fault]
    if example.task != "edit":
        minor = [f for f in faults if f.startswith("background") or ": texture" in f or ": size" in f]
        return Score(len(faults) == len(minor), float("nan"), tuple(faults), not faults)
    removed = example.subject if example.kind == "remove" else None
    if removed is not None and (fault := leftover_fault(shown, scene, removed)):
        faults.append(f"{removed.shape}: {fault}")
    before, after = render(example.source, size), render(target, size)
    outside = _psnr(shown, before.astype(np.float32) / 255, (before == after).all(axis=2))
    if outside < OUTSIDE_PSNR:
        faults.append("outside changed")
    return Score(not faults, outside, tuple(faults), not faults)
