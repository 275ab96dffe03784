"""Strict scores of edited pictures against the procedural world's ground truth.

Nothing is learned here: a picture is judged by comparing it with renderings. Three questions decide.

1. Is the background what it should be, and every object? Each is rendered with every other value of each of its
   properties, a lattice step away, and absent. The picture fails where it has gone `SHARE` of the way from the right
   rendering to one of those; half of the way would be as near to the wrong one.
2. Is that all? The scene that the picture shows is rendered, and no window of the picture may hold anything that this
   rendering does not explain: no further object, no stain, no object out of shape.
3. Is everything that an edit leaves alone still there? It must keep `OUTSIDE_PSNR`.

Translations leave textures and sizes open: an object may have any of them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from training.data.edits import Example
from training.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    LATTICE,
    SHAPES,
    SIZES,
    TEXTURES,
    WHOLE,
    Object,
    Scene,
    Window,
    extent,
    influence_mask,
    pixels_apart,
    render,
)

SHARE = 0.4  # of the way to a wrong rendering: a picture that is mixed with its source at 45 % has gone too far
MOVED = 0.75  # of a lattice step: an object may be off by less than three of the four pixels
OUTSIDE_PSNR = 25.0  # dB that everything an edit leaves alone must keep
OBJECT_PSNR = 14.0  # dB around an object below which it is a blot, whatever it is nearest to
WINDOW = 16  # side of a window, in the world's pixels
WINDOW_PSNR = 12.0  # dB that every window must have against the scene shown
WINDOW_SHIFT = 0.2  # of a channel's range that a window's mean may be off: noise averages out, a pale object does not

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


def _psnr(a: Picture, b: Picture, mask: NDArray[np.bool_]) -> float:
    error = float(np.square(a - b)[mask].mean()) if mask.any() else 0.0
    return 10 * float(np.log10(1 / max(error, 1e-9)))


def share(picture: Picture, right: Picture, wrong: Picture) -> float:
    """How far a picture has gone from one rendering to another: 0 is the right one, 1 the wrong one.

    It is the picture's projection on the line between them, so noise across that line does not count. 0 where the two
    renderings are the same.
    """
    way = wrong - right
    length = float(np.square(way).sum())
    return float(((picture - right) * way).sum()) / length if length else 0.0


def _error(picture: Picture, rendering: Picture) -> float:
    return float(np.square(picture - rendering).sum())


def _around(o: Object, size: int) -> Window:
    """The rows and columns of a picture in which an object can be, in any size and a lattice step away."""
    n = pixels_apart(size)
    rows, columns = extent(dataclasses.replace(o, size="large"), LATTICE)
    return slice(rows.start // n, -(-rows.stop // n)), slice(columns.start // n, -(-columns.stop // n))


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


def alternatives(o: Object, free: tuple[str, ...] = ()) -> Iterator[tuple[str, Object | None]]:
    """What an object could be mistaken for, and how to name it: absent, moved, or one property not in `free` wrong."""
    yield "absent", None
    for name, values in PROPERTIES.items():
        if name not in free:
            for value in values:
                if value != getattr(o, name):
                    yield f"{name} {value}", dataclasses.replace(o, **{name: value})
    steps = (-LATTICE, 0, LATTICE)
    for dx, dy in itertools.product(steps, steps):
        if dx or dy:
            yield "moved", dataclasses.replace(o, dx=o.dx + dx, dy=o.dy + dy)


def background_shown(picture: Picture, scene: Scene) -> str:
    """The scene's own background, or the nearest of those towards which the picture has gone `SHARE` of the way."""
    size = len(picture)
    right = _rendered(scene, size)
    nearest, shown = np.inf, scene.background
    for name in BACKGROUNDS:
        wrong = _rendered(dataclasses.replace(scene, background=name), size)
        if share(picture, right, wrong) >= SHARE and (error := _error(picture, wrong)) < nearest:
            nearest, shown = error, name
    return shown


def object_shown(
    picture: Picture, scene: Scene, o: Object, free: tuple[str, ...] = ()
) -> tuple[Object | None, str | None]:
    """What the picture shows in place of an object of `scene`, and what is wrong about it, or None.

    Args:
        free: properties that may have any value.

    Returns:
        the object as it is shown, None where it is absent; and the fault: `absent`, `moved`, a property's wrong value,
        or `blot`.
    """
    size = len(picture)
    around = _around(o, size)
    seen = picture[around]

    def drawn(candidate: Object | None) -> Picture:
        return _rendered(scene.replace(o, candidate), size, around)

    right = min(variants(o, free), key=lambda candidate: _error(seen, drawn(candidate)))
    rendering = drawn(right)
    nearest, shown, fault = np.inf, right, None
    for name, candidate in alternatives(right, free):
        wrong = drawn(candidate)
        too_far = share(seen, rendering, wrong) >= (MOVED if name == "moved" else SHARE)
        if too_far and (error := _error(seen, wrong)) < nearest:
            nearest, shown, fault = error, candidate, name
    if fault is None and _psnr(seen, rendering, influence_mask(right, size)[around]) < OBJECT_PSNR:
        fault = "blot"
    return shown, fault


def leftover_fault(picture: Picture, scene: Scene, removed: Object) -> str | None:
    """`still there` where the picture has gone from the empty place towards the removed object, or any in its place."""
    size = len(picture)
    around = _around(removed, size)
    empty = _rendered(scene, size, around)
    for candidate in variants(removed, tuple(PROPERTIES)):
        if share(picture[around], empty, _rendered(scene.add(candidate), size, around)) >= SHARE:
            return "still there"
    return None


def unexplained(picture: Picture, scene: Scene) -> bool:
    """Whether some window of the picture holds what the scene does not explain."""
    size = len(picture)
    side = max(1, WINDOW // pixels_apart(size))
    rest = picture - _rendered(scene, size)
    worst = _window_means(np.square(rest).mean(axis=2, keepdims=True), side).max()
    shift = np.abs(_window_means(rest, side)).max()
    return bool(worst > 10 ** (-WINDOW_PSNR / 10) or shift > WINDOW_SHIFT)


def _window_means(values: Picture, side: int) -> NDArray[np.float64]:
    """Means over every window of `side` pixels that lies in the picture, [H - side + 1, W - side + 1, C]."""
    sums = np.pad(values.astype(np.float64), ((1, 0), (1, 0), (0, 0))).cumsum(axis=0).cumsum(axis=1)
    whole = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return whole / side**2


def score(example: Example, picture: NDArray[np.uint8]) -> Score:
    """Judge the picture (uint8 [H, W, 3], H = W) that came out of an example.

    An edit succeeds when the picture shows the target scene, nothing else, and keeps what the edit leaves alone. A
    translation succeeds when every captioned object has its place, shape and colour, and nothing else is shown.
    """
    shown = picture.astype(np.float32) / 255
    size, target = len(shown), example.target
    free = () if example.task == "edit" else ("texture", "size")
    background = background_shown(shown, target)
    # Objects are judged before the background that is there, so that one fault is not counted twice.
    scene = seen = dataclasses.replace(target, background=background)
    faults = []
    for o in scene.objects:
        found, fault = object_shown(shown, scene, o, free)
        seen = seen.replace(o, found)
        if fault:
            faults.append(f"{o.shape}: {fault}")
    removed = example.subject if example.kind == "remove" else None
    if removed is not None and (fault := leftover_fault(shown, scene, removed)):
        faults.append(f"{removed.shape}: {fault}")
    elif unexplained(shown, seen):
        faults.append("something else shown")
    others = [] if background == target.background else [f"background {background}"]
    if example.task != "edit":
        strict = [(o, object_shown(shown, scene, o)[1]) for o in scene.objects]
        others += [f"{o.shape}: {fault}" for o, fault in strict if fault]
        everything = tuple(dict.fromkeys([*faults, *others]))
        return Score(not faults, float("nan"), everything, not everything)
    faults += others
    before, after = render(example.source, size), render(target, size)
    outside = _psnr(shown, before.astype(np.float32) / 255, (before == after).all(axis=2))
    if outside < OUTSIDE_PSNR:
        faults.append("outside changed")
    return Score(not faults, outside, tuple(faults), not faults)
