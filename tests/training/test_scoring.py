"""The score is strict: the truth passes, and every way of doing less than what was asked fails."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageFilter

from training.data.edits import EDIT_KINDS, KINDS, SLOTS, TRANSLATION_TASKS, Example, held_out, slot_indices
from training.data.scenes import Object, Scene, render
from training.scoring import score

SIZE = 64


@pytest.mark.parametrize("kind", KINDS)
def test_the_true_picture_passes(kind: str) -> None:
    for example in held_out(kind, 10):
        verdict = score(example, render(example.target, SIZE))
        assert verdict.success and verdict.exact, (example.text, verdict.faults)


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_the_picture_left_as_it_was_fails(kind: str) -> None:
    assert not any(score(e, render(e.source, SIZE)).success for e in held_out(kind, 10))


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_to_another_example_fails(kind: str) -> None:
    examples = held_out(kind, 8)
    others = [render(e.target, SIZE) for e in examples[1:] + examples[:1]]
    assert not any(score(e, other).success for e, other in zip(examples, others, strict=True))


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
        "the background too": dataclasses.replace(example.target, background="beach"),
    }[what]
    verdict = score(example, render(wrong, SIZE))
    assert not verdict.success and fault in verdict.faults, verdict.faults


def test_noise_outside_the_edit_fails_by_its_decibels() -> None:
    example = recoloured()
    right = render(example.target, SIZE).astype(float)
    noise = np.random.default_rng(0).normal(size=right.shape)
    quiet, loud = (np.clip(right + s * noise, 0, 255).astype(np.uint8) for s in (12, 26))
    assert score(example, quiet).success
    verdict = score(example, loud)
    assert verdict.outside_psnr < 22 and "outside changed" in verdict.faults


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
