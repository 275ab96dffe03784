"""Sessions, batches and variants: faster ways to the tokens that a fresh edit has."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import editar_rt
from editar_rt.errors import BackendError, BusyError, OptionError
from editar_rt.request import FIELDS, Options, Request
from tests.runtime.demo import PICTURE, WORDS
from tests.runtime.watching import forwarded_positions

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
    session = editor.session(picture(0))
    for instruction in ("make the ball red", "remove the cube", "make the ball red"):
        fresh = editor.edit(picture(0), instruction, sampling=sampling)
        again = session.edit(instruction, sampling=sampling)
        assert np.array_equal(fresh.tokens, again.tokens)
        assert np.array_equal(np.asarray(fresh.image), np.asarray(again.image))
        assert fresh.parameters == again.parameters


def test_a_session_may_change_its_guidance_and_task(editor: editar_rt.Editor) -> None:
    session = editor.session(picture(1))
    for sampling, task in ((Sampling(), "edit"), (Sampling(cfg_scale=1.0), "depth"), (Sampling(seed=4), "canny")):
        fresh = editor.edit(picture(1), "a ball", task=task, sampling=sampling)
        assert np.array_equal(fresh.tokens, session.edit("a ball", task=task, sampling=sampling).tokens)


def test_later_instructions_run_their_text_alone(editor: editar_rt.Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    session = editor.session(picture(0))
    session.edit("make the ball red")
    seen = forwarded_positions(session, monkeypatch)
    session.edit("remove the cube")
    # One row of text, then two rows a step.
    assert seen == [(1, editor.model.text_tokens)] + [(2, 1)] * (editor.picture_tokens - 1)


def test_variants_are_what_their_seeds_give_alone(editor: editar_rt.Editor) -> None:
    variants = editor.session(picture(0)).variants("make the ball red", 3, sampling=Sampling(seed=7))
    for offset, variant in enumerate(variants):
        alone = editor.edit(picture(0), "make the ball red", sampling=Sampling(seed=7 + offset))
        assert np.array_equal(variant.tokens, alone.tokens)
        assert variant.seed == 7 + offset
    assert len({tuple(v.tokens) for v in variants}) == 3


def test_seeds_of_variants_wrap_around(editor: editar_rt.Editor) -> None:
    last = editor.session(picture(0)).variants("x", 2, sampling=Sampling(seed=2**64 - 1))[1]
    assert last.seed == 0


@pytest.mark.parametrize("sampling", [Sampling(seed=2), Sampling(cfg_scale=1.0), Sampling(cfg_interval=3)], ids=str)
def test_a_batch_gives_every_picture_what_it_has_alone(editor: editar_rt.Editor, sampling: editar_rt.Sampling) -> None:
    words = ["make the ball red", "remove the cube", ""]
    requests = [Request(picture(i), words[i], sampling=sampling) for i in range(3)]
    batch = editor.edit_batch(requests)
    for i, result in enumerate(batch):
        alone = editor.edit(picture(i), words[i], sampling=sampling)
        assert np.array_equal(result.tokens, alone.tokens)
        assert result.parameters == alone.parameters


def test_bad_numbers_are_refused(editor: editar_rt.Editor) -> None:
    with pytest.raises(OptionError, match="requests must be at least one of editar_rt.Request"):
        editor.edit_batch([])
    for bad, says in (
        (picture(0), "requests must be"),
        (Request(instruction="x"), "requests must have an image"),
    ):
        with pytest.raises(OptionError, match=says):
            editor.edit_batch([bad])
    for n in (0, 65, "3", 2.0, True):
        with pytest.raises(OptionError, match=f"n must be 1 to 64, got {n!r}"):
            editor.session(picture(0)).variants("x", n)


def test_every_picture_of_a_batch_has_its_own_request(editor: editar_rt.Editor) -> None:
    """Tasks, seeds, guidance of all kinds and masks side by side, each as it is alone."""
    options: list[dict[str, Any]] = [
        {"seed": 3},
        {"cfg_scale": 1.0, "temperature": 1.5},
        {"mask": (4, 4, 20, 12), "mask_margin": 0, "seed": 8},
        {"cfg_interval": (2, 9), "cfg_scale": 5.0},
        {"task": "depth", "cfg_scale": "linear:1,5", "greedy": True},
        {"mask": (0, 0, 32, 8), "composite": False, "top_k": 5},
    ]
    batch = editor.edit_batch([Request(picture(n), "a ball", **each) for n, each in enumerate(options)])
    for n, (result, each) in enumerate(zip(batch, options)):
        alone = editor.edit(picture(n), "a ball", **each)
        assert np.array_equal(result.tokens, alone.tokens) and result.parameters == alone.parameters
        assert np.array_equal(np.asarray(result.image), np.asarray(alone.image))
        assert result.request.mask == each.get("mask") and result.seed == each.get("seed", 0)


def test_a_picture_of_a_batch_that_is_cancelled_changes_no_other(editor: editar_rt.Editor) -> None:
    cancel = threading.Event()
    stopped = Request(picture(0), "a", cancel=cancel, on_progress=lambda done, _: done == 4 and cancel.set())
    first, second = editor.edit_batch([stopped, Request(picture(1), "b", seed=5)])
    assert not first.finished and np.array_equal(first.tokens[4:], editor.session(picture(0)).condition_tokens[0, 4:])
    assert second.finished and np.array_equal(second.tokens, editor.edit(picture(1), "b", seed=5).tokens)


def test_options_that_are_not_given_are_the_bundles(demo_editor: editar_rt.Editor) -> None:
    """Also beside a seed: the demo's own guidance and temperature stay."""
    defaults = demo_editor.default_sampling
    result = demo_editor.edit(PICTURE, WORDS, seed=1)
    assert (result.parameters["cfg_scale"], result.parameters["temperature"]) == ("2.0", "0.3")
    expected = demo_editor.edit(PICTURE, WORDS, sampling=dataclasses.replace(defaults, seed=1))
    assert np.array_equal(result.tokens, expected.tokens)


def test_fields_that_a_sampling_is_not_given_are_the_bundles(demo_editor: editar_rt.Editor) -> None:
    """In edits, in what is drawn anew, and in `generate`; and what is given stays, be it `Sampling`'s own default."""
    session = demo_editor.session(PICTURE)
    for result in (session.edit(WORDS, sampling=Sampling(seed=1)), session.resume(2, top_p=0.5)):
        assert (result.parameters["cfg_scale"], result.parameters["temperature"]) == ("2.0", "0.3")
    assert session.edit(WORDS, sampling=Sampling(cfg_scale=3.0)).parameters["cfg_scale"] == "3.0"
    states, tokens = demo_editor.encode_text([WORDS]), session.condition_tokens
    drawn = demo_editor.generate(states, tokens, Sampling(seed=1))
    assert np.array_equal(drawn[0], demo_editor.edit(PICTURE, WORDS, seed=1).tokens)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sampling": Sampling(), "seed": 1}, "give either sampling or seed, not both"),
        ({"seed": "1"}, "seed must be 0 to"),
        ({"cfg_scale": 1e39}, "cfg_scale must be 0 to 1e[+]06"),
        ({"mask_margin": 1.5}, "mask_margin must be 0 or more, got 1.5"),
        ({"preview_share": "a"}, "preview_share must be 0 to 1, got 'a'"),
        ({"composite": 3}, "composite must be True or False, got 3"),
        ({"on_progress": 3}, "on_progress must be a function, got int"),
        ({"cancel": True}, "cancel must have a method is_set"),
        ({"trace": 3}, "trace must be a path, got int"),
        ({"task": 3}, "task must be one of"),
    ],
)
def test_options_of_a_wrong_kind_are_refused(editor: editar_rt.Editor, options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        editor.edit(picture(0), "x", **options)


def test_an_unknown_option_is_named_with_those_there_are(editor: editar_rt.Editor) -> None:
    with pytest.raises(TypeError, match="unknown option 'sed'; the options are task, seed, cfg_scale"):
        editor.edit(picture(0), "x", sed=1)  # type: ignore[call-arg]


def test_the_options_for_type_checkers_are_the_fields_of_a_request() -> None:
    assert list(Options.__annotations__) == [name for name in FIELDS if name not in ("image", "instruction")]


def test_a_session_that_is_in_use_says_so_and_goes_on(editor: editar_rt.Editor) -> None:
    """From another thread, and from a callback of its own."""
    session, refused = editor.session(picture(0)), []

    def use(*_: object) -> None:
        with pytest.raises(BusyError, match="another call is using this session"):
            session.edit("b")
        refused.append(1)

    def progress(done: int, total: int) -> None:
        if done == 3:
            use()
            thread = threading.Thread(target=use)
            thread.start()
            thread.join()

    result = session.edit("a", on_progress=progress)
    assert refused == [1, 1] and np.array_equal(result.tokens, editor.edit(picture(0), "a").tokens)


def test_sessions_of_several_threads_take_turns(editor: editar_rt.Editor) -> None:
    found: dict[int, np.ndarray] = {}
    sessions = [editor.session(picture(n)) for n in range(4)]

    def run(n: int) -> None:
        found[n] = sessions[n].edit("a", seed=n).tokens

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, tokens in found.items():
        assert np.array_equal(tokens, editor.edit(picture(n), "a", seed=n).tokens)


def test_an_editor_frees_its_weights_at_the_end_of_a_block(tiny_bundle: Path) -> None:
    with editar_rt.load(tiny_bundle, device="cpu", threads=1) as editor:
        editor.edit(picture(0), "x")
    with pytest.raises(BackendError, match="the editor is closed; load the bundle again"):
        editor.edit(picture(0), "x")


def test_pixels_that_are_not_numbers_are_an_error(editor: editar_rt.Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor, "decode_tokens", lambda tokens: np.full((1, 3, 32, 32), np.nan, np.float32))
    with pytest.raises(BackendError, match="pixels that are not finite"):
        editor.edit(picture(0), "x")


def test_spellings_of_version_0_1_work_and_say_what_to_write(editor: editar_rt.Editor) -> None:
    with pytest.warns(DeprecationWarning, match=r"use editor.session\(image\)"):
        session = editor.open(picture(0))
    with pytest.warns(DeprecationWarning, match="use task=, sampling="):
        old = session.edit("x", "edit", Sampling(seed=3))
    assert np.array_equal(old.tokens, session.edit("x", sampling=Sampling(seed=3)).tokens)
    with pytest.warns(DeprecationWarning, match=r"use variants\(..., n\)"):
        (variant,) = session.edit("x", sampling=Sampling(seed=3), n=1)  # type: ignore[call-arg, misc]
    assert np.array_equal(variant.tokens, old.tokens)
    with pytest.warns(DeprecationWarning, match=r"use session.resume"):
        again = session.rewind(2).reroll(seed=4)
    assert np.array_equal(again.tokens[: 2 * editor.grid], old.tokens[: 2 * editor.grid])
    with pytest.warns(DeprecationWarning, match="use edit_batch"):
        batch = editor.edit_batch([picture(0)], ["x"], sampling=Sampling(seed=3))  # type: ignore[call-arg]
    assert np.array_equal(batch[0].tokens, old.tokens)
    with pytest.warns(DeprecationWarning, match="use Result"):
        assert editar_rt.EditResult is editar_rt.Result  # type: ignore[attr-defined]
