"""Sessions, batches and variants: faster ways to the tokens that a fresh edit has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import editar_rt
from editar_rt.errors import OptionError

Sampling = editar_rt.Sampling


@pytest.fixture(scope="module")
def editor(tiny_bundle: Path) -> editar_rt.Editor:
    return editar_rt.load(tiny_bundle, device="cpu", threads=1)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8))


@pytest.mark.parametrize("sampling", [Sampling(seed=2), Sampling(cfg_scale=1.0), Sampling(cfg_interval=3)], ids=str)
def test_every_edit_of_a_session_has_the_tokens_of_a_fresh_one(
    editor: editar_rt.Editor, sampling: editar_rt.Sampling
) -> None:
    session = editor.open(picture(0))
    for instruction in ("make the ball red", "remove the cube", "make the ball red"):
        fresh = editor.edit(picture(0), instruction, sampling=sampling)
        again = session.edit(instruction, sampling=sampling)
        assert np.array_equal(fresh.tokens, again.tokens)
        assert np.array_equal(np.asarray(fresh.image), np.asarray(again.image))
        assert fresh.parameters == again.parameters


def test_a_session_may_change_its_guidance_and_task(editor: editar_rt.Editor) -> None:
    session = editor.open(picture(1))
    for sampling, task in ((Sampling(), "edit"), (Sampling(cfg_scale=1.0), "depth"), (Sampling(seed=4), "canny")):
        fresh = editor.edit(picture(1), "a ball", task, sampling)
        assert np.array_equal(fresh.tokens, session.edit("a ball", task, sampling).tokens)


def test_later_instructions_run_their_text_alone(editor: editar_rt.Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    session = editor.open(picture(0))
    session.edit("make the ball red")
    positions: list[int] = []
    assert session._prefix is not None
    cache: Any = session._prefix.cache
    forward = cache.forward
    monkeypatch.setattr(
        cache, "forward", lambda tokens, *rest: (positions.append(tokens.size), forward(tokens, *rest))[1]
    )
    session.edit("remove the cube")
    text_tokens = editor.model.text_tokens
    # One row of text, then two rows a step.
    assert positions == [text_tokens] + [2] * (editor.picture_tokens - 1)


def test_variants_are_what_their_seeds_give_alone(editor: editar_rt.Editor) -> None:
    variants = editor.open(picture(0)).edit("make the ball red", sampling=Sampling(seed=7), n=3)
    for offset, variant in enumerate(variants):
        alone = editor.edit(picture(0), "make the ball red", sampling=Sampling(seed=7 + offset))
        assert np.array_equal(variant.tokens, alone.tokens)
        assert variant.parameters["seed"] == str(7 + offset)
    assert len({tuple(v.tokens) for v in variants}) == 3


def test_seeds_of_variants_wrap_around(editor: editar_rt.Editor) -> None:
    last = editor.open(picture(0)).edit("x", sampling=Sampling(seed=2**64 - 1), n=2)[1]
    assert last.parameters["seed"] == "0"


@pytest.mark.parametrize("sampling", [Sampling(seed=2), Sampling(cfg_scale=1.0), Sampling(cfg_interval=3)], ids=str)
def test_a_batch_gives_every_picture_what_it_has_alone(editor: editar_rt.Editor, sampling: editar_rt.Sampling) -> None:
    words = ["make the ball red", "remove the cube", ""]
    batch = editor.edit_batch([picture(i) for i in range(3)], words, sampling=sampling)
    for i, result in enumerate(batch):
        alone = editor.edit(picture(i), words[i], sampling=sampling)
        assert np.array_equal(result.tokens, alone.tokens)
        assert result.parameters == alone.parameters


def test_bad_numbers_are_refused(editor: editar_rt.Editor) -> None:
    with pytest.raises(OptionError, match="as many instructions as pictures, and at least one; got 2 and 1"):
        editor.edit_batch([picture(0)], ["a", "b"])
    with pytest.raises(OptionError, match="got 0 and 0"):
        editor.edit_batch([], [])
    for n in (0, 65, "3", 2.0, True):
        with pytest.raises(OptionError, match=f"n must be 1 to 64, got {n!r}"):
            editor.open(picture(0)).edit("x", n=n)  # type: ignore[call-overload]
