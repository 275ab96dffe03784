"""The score is strict: the truth passes, and every way of doing less than what was asked fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from training.data.edits import EDIT_KINDS, KINDS, SLOTS, TRANSLATION_TASKS, Example, held_out, slot_indices
from training.data.scenes import COLOURS, PLACES, SHAPES, Object, Scene, random_scene, render
from training.data.scenes import SIZE as WORLD
from training.scoring import score

SIZE = 64


@pytest.mark.parametrize("kind", KINDS)
def test_the_true_picture_passes(kind: str) -> None:
    for example in held_out(kind, 6):
        verdict = score(example, render(example.target, SIZE))
        assert verdict.success and verdict.exact, (example.text, verdict.faults)


def with_an_object_too_many(example: Example) -> np.ndarray | None:
    """The truth, and a large object where none should be; None where every place is taken."""
    target = example.target
    free = [place for place in PLACES if target.at(place) is None]
    if not free:
        return None
    shape = next(shape for shape in SHAPES if shape not in {o.shape for o in target.objects})
    return render(target.add(Object(shape, "purple", place=free[0])), SIZE)


def with_another_object_in_place_of_the_removed(example: Example) -> np.ndarray | None:
    if example.kind != "remove":
        return None
    removed = example.subject
    assert removed is not None
    shape = next(shape for shape in SHAPES if shape not in {o.shape for o in example.source.objects})
    colour = next(colour for colour in COLOURS if colour != removed.colour)
    other = dataclasses.replace(removed, shape=shape, colour=colour, texture="checked")
    return render(example.target.add(other), SIZE)


def with_a_magenta_disc(example: Example) -> np.ndarray:
    """The truth with a disc of 8 of the world's pixels' radius at its rim, across the fixed 16-pixel grid's lines."""
    picture = render(example.target, SIZE)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    radius = 8 * SIZE // WORLD
    picture[np.square(y - SIZE / 4) + np.square(x - SIZE / 2) <= radius**2] = (255, 0, 255)
    return picture


def mixed_with_its_source(example: Example) -> np.ndarray | None:
    """55 % of the truth and 45 % of the picture left as it was; None for translations, whose source is the truth."""
    if example.kind not in EDIT_KINDS:
        return None
    true, before = (render(scene, SIZE).astype(float) for scene in (example.target, example.source))
    return (0.55 * true + 0.45 * before).round().astype(np.uint8)


def with_another_object_moved(example: Example) -> np.ndarray:
    """The truth, but for an object that is not the edit's, which stands 4 of the world's pixels beside its place."""
    moved = next(o for o in example.target.objects if example.subject is None or o.place != example.subject.place)
    return render(example.target.replace(moved, dataclasses.replace(moved, dx=moved.dx + 4)), SIZE)


def left_as_it_was(example: Example) -> np.ndarray | None:
    return render(example.source, SIZE) if example.kind in EDIT_KINDS else None


def of_a_random_scene(example: Example) -> np.ndarray:
    return render(random_scene(np.random.default_rng(len(example.text))), SIZE)


@pytest.mark.parametrize(
    ("wrong", "kinds"),
    [
        (with_an_object_too_many, tuple(kind for kind in KINDS if kind != "add")),  # which fills the last place
        (with_another_object_in_place_of_the_removed, ("remove",)),
        (with_a_magenta_disc, KINDS),
        (mixed_with_its_source, EDIT_KINDS),
        (with_another_object_moved, KINDS),
        (left_as_it_was, EDIT_KINDS),
        (of_a_random_scene, KINDS),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_picture_fails(wrong: Callable[[Example], np.ndarray | None], kinds: tuple[str, ...]) -> None:
    for kind in kinds:
        made = [(example, wrong(example)) for example in held_out(kind, 12)]
        usable = [(example, picture) for example, picture in made if picture is not None][:3]
        assert len(usable) == 3
        passed = [(kind, example.text) for example, picture in usable if score(example, picture).success]
        assert not passed


def two_objects() -> Scene:
    return Scene("snow", 40, (Object("ball", "red", place="left"), Object("cone", "yellow", place="right")))


def recoloured() -> Example:
    scene = two_objects()
    ball = scene.objects[0]
    target = scene.replace(ball, dataclasses.replace(ball, colour="blue"))
    return Example("recolour", scene, target, "make the ball blue", {}, ball)


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("a neighbouring hue", "ball: colour purple"),
        ("the other object too", "cone: colour blue"),
        ("another shape", "ball: shape cylinder"),
        ("the other object lost", "cone: absent"),
        ("the background too", "background beach"),
        ("the other object moved", "cone: moved"),
        ("a third object", "something else shown"),
    ],
)
def test_each_wrong_property_is_found_and_named(what: str, fault: str) -> None:
    example = recoloured()
    ball, cone = example.target.objects
    wrong = {
        "a neighbouring hue": example.target.replace(ball, dataclasses.replace(ball, colour="purple")),
        "the other object too": example.target.replace(cone, dataclasses.replace(cone, colour="blue")),
        "another shape": example.target.replace(ball, dataclasses.replace(ball, shape="cylinder")),
        "the other object lost": example.target.replace(cone, None),
        "the other object moved": example.target.replace(cone, dataclasses.replace(cone, dy=4)),
        "a third object": example.target.add(Object("gem", "green", place="front")),
        "the background too": dataclasses.replace(example.target, background="beach"),
    }[what]
    verdict = score(example, render(wrong, SIZE))
    assert not verdict.success and set(verdict.faults) - {"outside changed"} == {fault}


def test_noise_outside_the_edit_fails_by_its_decibels() -> None:
    example = recoloured()
    right = render(example.target, SIZE).astype(float)
    noise = np.random.default_rng(0).normal(size=right.shape)
    quiet, loud = (np.clip(right + s * noise, 0, 255).astype(np.uint8) for s in (12, 26))
    assert score(example, quiet).success
    verdict = score(example, loud)
    assert verdict.outside_psnr < 25 and "outside changed" in verdict.faults


def test_a_smear_in_the_right_colour_is_no_object() -> None:
    example = recoloured()
    picture = Image.fromarray(render(example.target, SIZE)).filter(ImageFilter.GaussianBlur(9))
    assert not score(example, np.asarray(picture)).success


def test_translations_forgive_textures_but_not_colours_or_places() -> None:
    scene = two_objects()
    example = Example("depth", scene, scene, "", {})
    ball = scene.objects[0]

    def verdict(**change: str) -> bool:
        return score(example, render(scene.replace(ball, dataclasses.replace(ball, **change)), SIZE)).success

    assert verdict(texture="dotted")
    assert not verdict(colour="cyan") and not verdict(place="front") and not verdict(shape="cube")


def test_held_out_scenes_are_repeatable_and_differ() -> None:
    first, again = held_out("add", 5), held_out("add", 5)
    assert first == again
    assert len({e.text for e in first}) > 1 and held_out("add", 5, seed=1) != first


@pytest.mark.parametrize("kind", KINDS)
def test_texts_say_what_the_slots_claim(kind: str) -> None:
    for example in held_out(kind, 30):
        assert (slot_indices(example.slots) > 0).sum() == len(example.slots)
        for name, value in example.slots.items():
            assert name in SLOTS
            if name in ("new_shape", "new_colour") or (kind in EDIT_KINDS and name == "target"):
                assert value in example.text
        if kind in TRANSLATION_TASKS:
            assert all(o.colour in example.text and o.shape in example.text for o in example.target.objects)
