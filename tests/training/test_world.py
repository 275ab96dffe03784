"""The procedural world is exact: a property changes the picture where it should, and nowhere else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from training.data.scenes import (
    COLOURS,
    MEANINGS,
    SHAPES,
    SIZE,
    Object,
    Scene,
    condition_picture,
    influence_mask,
    meaning,
    object_mask,
    random_scene,
    render,
    segmentation,
)

SCENE = Scene("meadow", 40, (Object("ball", "red", place="left"), Object("cube", "blue", "striped", place="front")))


def test_rendering_is_repeatable_and_leaves_nothing_behind() -> None:
    first = render(SCENE, 64)
    render(random_scene(np.random.default_rng(1)), 64)
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert np.array_equal(first, render(SCENE, 64))


@pytest.mark.parametrize("size", [SIZE, 32])
def test_a_window_shows_what_the_whole_picture_has_there(size: int) -> None:
    n = SIZE // size
    for window in ((slice(40 // n, 96 // n), slice(16 // n, 64 // n)), (slice(0, size), slice(100 // n, size))):
        assert np.array_equal(render(SCENE, size, window), render(SCENE, size)[window])


@pytest.mark.parametrize(
    "change", [{"colour": "green"}, {"texture": "dotted"}, {"shape": "cone"}, {"size": "small"}, None], ids=str
)
def test_a_change_stays_inside_what_the_object_influences(change: dict[str, str] | None) -> None:
    old = SCENE.objects[0]
    new = None if change is None else dataclasses.replace(old, **change)
    allowed = influence_mask(old, 64)
    if new is not None:
        allowed |= influence_mask(new, 64)
    changed = (render(SCENE, 64) != render(SCENE.replace(old, new), 64)).any(axis=2)
    assert changed.any() and not (changed & ~allowed).any()


def test_every_colour_looks_like_itself() -> None:
    for name, colour in COLOURS.items():
        scene = Scene("night", 40, (Object("ball", name, place="front"),))
        mean = render(scene)[object_mask(scene.objects[0])].mean(axis=0)
        distances = {c: np.linalg.norm(mean / mean.max() - np.asarray(v) / max(v)) for c, v in COLOURS.items()}
        assert min(distances, key=lambda c: distances[c]) == name, (name, mean, colour)


def test_nearer_objects_hide_farther_ones() -> None:
    behind, front = (
        Object("cube", "red", place="left", dx=8, dy=4),
        Object("ball", "green", place="front", dx=-8, dy=-4),
    )
    both = segmentation(Scene("room", 40, (front, behind)))
    assert np.array_equal(both, segmentation(Scene("room", 40, (behind, front))))
    covered = object_mask(front)
    assert (both[covered] == both[covered][0]).all()


@pytest.mark.parametrize("task", ["depth", "canny", "segmentation"])
def test_condition_pictures_do_not_tell_colours(task: str) -> None:
    def painted(colour: str) -> np.ndarray:
        objects = tuple(dataclasses.replace(o, colour=colour, texture="plain") for o in SCENE.objects)
        return condition_picture(dataclasses.replace(SCENE, objects=objects), task, 64)

    assert painted("red").shape == (64, 64, 3)
    if task != "canny":  # edges depend on contrast
        assert np.array_equal(painted("red"), painted("cyan"))


def test_meaning_covers_every_cell_once() -> None:
    cells = meaning(SCENE, 8).astype(int)
    background = cells[..., MEANINGS.index("meadow")]
    shapes = cells[..., [MEANINGS.index(s) for s in SHAPES]].sum(axis=-1)
    assert np.abs(background + shapes - 255).max() <= 2  # rounding
    ball = object_mask(SCENE.objects[0], 8)
    assert (cells[ball][:, MEANINGS.index("red")] > 127).all()
    assert cells[..., MEANINGS.index("green")].max() == 0


def test_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=f"must divide {SIZE}, got 48"):
        render(SCENE, 48)
