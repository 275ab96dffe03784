"""The C++ runtime's edits have the same tokens and the same pixels as Python's: nothing is close, all is equal."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import editar_rt
from editar_rt.bundle.samples import read_samples
from editar_rt.errors import EmptyMaskWarning, TruncatedTextWarning
from editar_rt.images.pixels import to_pictures
from tests.commands import Command
from tests.cpp.library import MASK_EMPTY, TRUNCATED, Library, Model, Session, as_sampling, open_library
from tests.runtime.demo import BUNDLE, COUNT, GRID, PICTURE, SIDE, WORDS

SETTINGS: list[dict[str, Any]] = [
    {},
    {"cfg_scale": 1.0, "seed": 2**64 - 1},
    {"cfg_scale": "linear:1,5", "temperature": 0.7, "seed": 11},
    {"cfg_scale": "cosine:4.5,1", "top_k": 0, "temperature": 2.0, "seed": 5},
    {"cfg_interval": (10, 20), "top_p": 0.9, "seed": 3},
    {"cfg_interval": 30, "top_k": 3, "cfg_scale": 2.0, "temperature": 1.3},
    {"cfg_scale": "values:" + ",".join(str(1 + n % 7) for n in range(COUNT)), "top_k": 50, "seed": 2**63},
    {"greedy": True},
    {"noise": "gumbel", "top_p": 0.8, "seed": 21},
    {"noise": "gumbel", "cfg_scale": 4.0, "temperature": 1.5},
]


@pytest.fixture(scope="module")
def library() -> Library:
    return open_library()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo in three precisions, the first of which the repository holds."""
    from export.__main__ import main

    folder, made = tmp_path_factory.mktemp("bundles"), {"fp32": BUNDLE}
    for name, options in {"int8": ["--target", "cpu"], "int4": ["--precision", "int4", "--provider", "cpu"]}.items():
        made[name] = folder / name
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["export", "convert", str(BUNDLE), *options, "-o", str(made[name])])
            with pytest.raises(SystemExit) as done:
                main()
            assert done.value.code in (0, None)
    return made


@pytest.fixture(scope="module")
def model(library: Library) -> Iterator[Model]:
    model = library.open(BUNDLE, threads=1)
    yield model
    model.close()


@pytest.fixture(scope="module")
def editor() -> editar_rt.Editor:
    return editar_rt.load(BUNDLE, threads=1)


@pytest.fixture
def session(model: Model) -> Iterator[Session]:
    session = model.session(pixels(PICTURE))
    yield session
    session.close()


@pytest.fixture
def twin(editor: editar_rt.Editor) -> Any:
    """Python's session of the same picture."""
    return editor.session(PICTURE)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def assert_same(edited: Any, results: list[editar_rt.Result]) -> None:
    for n, result in enumerate(results):
        assert edited.tokens[n].tolist() == result.tokens.tolist()
        assert np.array_equal(edited.rgb[n], np.asarray(result.image))
        assert edited.passes[n] == result.passes
    assert not edited.stopped and edited.output.done == len(results[0].tokens)


@pytest.mark.parametrize("name", ["fp32", "int8", "int4"])
def test_every_sample_gets_pythons_tokens_and_pixels(library: Library, bundles: dict[str, Path], name: str) -> None:
    """With every setting, a mask, kept tokens, and any number of threads."""
    editor = editar_rt.load(bundles[name], threads=1)
    models = [library.open(bundles[name], threads=n) for n in (1, 2, 0)]
    for place, (path, task, words) in enumerate(read_samples(editor.bundle)):
        theirs, (mine, *others) = editor.session(path), [model.session(pixels(path)) for model in models]
        assert mine.source()[1].tolist() == theirs.condition_tokens[0].tolist()
        settings = [{"seed": place} | each for each in SETTINGS]
        requests = [editar_rt.Request(image=path, instruction=words, task=task, **each) for each in settings]
        results = editor.edit_batch(requests)
        for own, result in zip(settings, results, strict=True):
            assert_same(mine.edit(words, sampling=as_sampling(own), task=task.encode()), [result])
        for other in others:
            assert_same(other.edit(words, sampling=as_sampling(settings[0]), task=task.encode()), results[:1])
            other.close()
        masked = list(masks().values())[place % 4] if task == "edit" else None
        options = {"cfg_scale": 2.0, "temperature": 1.5, "seed": 100 + place}
        edited = mine.edit(words, sampling=as_sampling(options), task=task.encode(), mask=masked)
        assert_same(edited, [theirs.edit(words, task=task, mask=masked, **options)])
        row = 1 + place % (GRID - 1)
        again = as_sampling(options | {"seed": 2**63 + place})
        kept = edited.tokens[0, : row * GRID]
        resumed = theirs.resume(row, seed=2**63 + place)
        assert_same(mine.edit(words, sampling=again, task=task.encode(), mask=masked, kept=kept), [resumed])
        mine.close()
    for model in models:
        model.close()


def masks() -> dict[str, np.ndarray]:
    """Masks of the demo's picture: a box, scattered pixels, a fine stroke, all and nothing."""
    made = {name: np.zeros((SIDE, SIDE), np.uint8) for name in ("box", "scattered", "stroke", "all", "nothing")}
    made["box"][30:90, 20:71] = 255
    made["scattered"][np.random.default_rng(1).integers(0, SIDE, 9), np.random.default_rng(2).integers(0, SIDE, 9)] = (
        200
    )
    made["stroke"][64, 8:120] = 128
    made["all"][:] = 255
    made["nothing"][:] = 127
    return made


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize(("margin", "composite"), [(1, True), (0, True), (3, False)])
def test_masks(session: Session, twin: Any, name: str, margin: int, composite: bool) -> None:
    mask, settings = masks()[name], {"seed": 9, "cfg_scale": 3.0}
    edited = session.edit(
        WORDS, mask=mask, mask_margin=margin or -1, no_composite=not composite, sampling=as_sampling(settings)
    )
    with pytest.warns(EmptyMaskWarning) if name == "nothing" else contextlib.nullcontext():
        expected = twin.edit(WORDS, mask=mask, mask_margin=margin, composite=composite, **settings)
    assert_same(edited, [expected])
    assert bool(edited.output.flags & MASK_EMPTY) == (name == "nothing")
    assert session.texts() == expected.parameters


def test_a_large_masks_lone_pixel_counts(model: Model, editor: editar_rt.Editor) -> None:
    picture = np.asarray(Image.open(PICTURE).convert("RGB").resize((900, 700)))
    mask = np.zeros((700, 900), np.uint8)
    mask[333, 444] = 255
    session = model.session(picture)
    assert_same(session.edit(WORDS, mask=mask), [editor.edit(picture, WORDS, mask=mask)])
    session.close()


@pytest.mark.parametrize("row", [0, 3, 7])
@pytest.mark.parametrize("seed", [4, 5])
def test_tokens_that_are_kept_and_the_rest_drawn_anew(session: Session, twin: Any, row: int, seed: int) -> None:
    first = twin.edit(WORDS, seed=4)
    assert_same(session.edit(WORDS, sampling=as_sampling({"seed": 4})), [first])
    again = session.edit(WORDS, sampling=as_sampling({"seed": seed}), kept=first.tokens[: row * GRID])
    assert_same(again, [twin.resume(row, seed=seed)])
    other = session.edit("make the ball red", sampling=as_sampling({"seed": seed}), kept=first.tokens[: row * GRID])
    twin.edit(WORDS, seed=4)
    assert_same(other, [twin.resume(row, seed=seed, instruction="make the ball red")])


def test_kept_tokens_with_a_mask(session: Session, twin: Any) -> None:
    mask = masks()["box"]
    first = twin.edit(WORDS, seed=4, mask=mask)
    edited = session.edit(WORDS, sampling=as_sampling({"seed": 8}), mask=mask, kept=first.tokens[: 4 * GRID])
    assert_same(edited, [twin.resume(4, seed=8)])


@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 1.0}, {"cfg_interval": (5, 40), "seed": 2**64 - 2}])
def test_variants(session: Session, twin: Any, settings: dict[str, Any]) -> None:
    for count in (3, 2):
        edited = session.edit(WORDS, variants=count, sampling=as_sampling(settings))
        results = twin.variants(WORDS, count, **settings)
        assert_same(edited, results)
        assert [session.texts(n) for n in range(count)] == [result.parameters for result in results]


@pytest.mark.parametrize("size", [2, 8, 16])
@pytest.mark.parametrize("settings", [{}, {"noise": "gumbel"}, {"cfg_interval": (5, 40)}, {"cfg_scale": 1.0}])
def test_speculation(session: Session, twin: Any, size: int, settings: dict[str, Any]) -> None:
    settings = {"seed": 2, "temperature": 1.0} | settings
    edited = session.edit(WORDS, speculate=size, sampling=as_sampling(settings))
    assert_same(edited, [twin.edit(WORDS, speculate=size, **settings)])
    assert edited.passes[0] < COUNT


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_auto_and_masks_with_integer_weights(library: Library, bundles: dict[str, Path], name: str) -> None:
    """The int8 bundle has an int8 cache, with which passes have the bits of steps; the int4 one has a float cache."""
    model = library.open(bundles[name], threads=1)
    session, mask = model.session(pixels(PICTURE)), masks()["box"]
    for seed in range(4):
        settings = as_sampling({"seed": seed, "temperature": 1.5})
        plain, left_to_it = (session.edit(WORDS, sampling=settings, mask=mask, speculate=way) for way in (0, -1))
        assert left_to_it.tokens[0].tolist() == plain.tokens[0].tolist()
        assert name == "int8" or left_to_it.passes == plain.passes
    session.close()
    model.close()


def test_speculation_with_a_mask_and_variants(session: Session, twin: Any) -> None:
    mask, settings = masks()["box"], {"seed": 3}
    edited = session.edit(WORDS, speculate=8, mask=mask, sampling=as_sampling(settings), variants=2)
    assert_same(edited, twin.variants(WORDS, 2, speculate=8, mask=mask, **settings))
    assert session.edit(WORDS, speculate=-1).output.done == COUNT  # auto


@pytest.mark.parametrize("settings", SETTINGS)
def test_how_an_edit_was_made_is_told_in_the_same_words(session: Session, twin: Any, settings: dict[str, Any]) -> None:
    session.edit(WORDS, sampling=as_sampling(settings), pictures=False)
    expected = twin.edit(WORDS, **settings).parameters
    if settings.get("cfg_interval") == 30:  # the C API has one form of the guided tokens
        expected |= {"cfg_interval": "[0, 32]"}
    assert session.texts() == expected


def test_text_states_and_token_ids_from_outside(session: Session, editor: editar_rt.Editor, twin: Any) -> None:
    from tokenizers import Tokenizer

    expected = [twin.edit(WORDS, seed=1)]
    seed = as_sampling({"seed": 1})
    assert_same(session.edit(WORDS, sampling=seed, text_states=editor.encode_text([WORDS])), expected)
    ids = Tokenizer.from_file(str(BUNDLE / "tokenizer.json")).encode(WORDS).ids
    assert_same(session.edit(WORDS, sampling=seed, token_ids=np.asarray(ids)), expected)


def test_a_prompt_that_is_too_long_is_cut_like_pythons(session: Session, twin: Any) -> None:
    words = " and then ".join(["make the ball green"] * 20)
    edited = session.edit(words)
    with pytest.warns(TruncatedTextWarning, match=f"has {edited.output.prompt_tokens} tokens"):
        assert_same(edited, [twin.edit(words)])
    assert edited.output.flags & TRUNCATED


def test_progress_comes_after_every_token(session: Session, twin: Any) -> None:
    mine: list[tuple[int, int]] = []
    theirs: list[tuple[int, int]] = []
    mask = masks()["box"]

    def watch(done: int, total: int, tokens: np.ndarray) -> int:
        mine.append((done, total))
        assert (tokens[done:] == source[done:]).all()
        return 0

    source = session.source()[1]
    session.edit(WORDS, on_progress=watch, mask=mask)
    twin.edit(WORDS, on_progress=lambda done, total: theirs.append((done, total)), mask=mask)
    assert mine == theirs


@pytest.mark.parametrize("stop_at", [1, 20, COUNT - 1])
def test_an_edit_that_is_stopped_keeps_what_it_has_and_continues_later(
    session: Session, twin: Any, stop_at: int
) -> None:
    whole = twin.edit(WORDS, seed=6)
    settings = as_sampling({"seed": 6})
    stopped = session.edit(WORDS, sampling=settings, on_progress=lambda done, *_: int(done >= stop_at))
    assert stopped.stopped and stopped.output.done == stop_at
    assert stopped.tokens[0, :stop_at].tolist() == whole.tokens[:stop_at].tolist()
    assert stopped.tokens[0, stop_at:].tolist() == session.source()[1][stop_at:].tolist()
    continued = session.edit(WORDS, sampling=settings, kept=stopped.tokens[0, :stop_at])
    assert continued.tokens[0].tolist() == whole.tokens.tolist()
    assert np.array_equal(continued.rgb[0], np.asarray(whole.image))
    assert continued.passes[0] == COUNT - stop_at


def test_the_stop_flag(session: Session) -> None:
    import ctypes

    flag = ctypes.c_int32(0)

    def set_flag(done: int, total: int, tokens: np.ndarray) -> int:
        flag.value = done == 5
        return 0

    edited = session.edit(WORDS, on_progress=set_flag, stop=ctypes.pointer(flag))
    assert edited.stopped and edited.output.done == 5
    flag.value = 1
    edited = session.edit(WORDS, stop=ctypes.pointer(flag))
    assert edited.stopped and edited.output.done == 0
    assert edited.tokens[0].tolist() == session.source()[1].tolist()


def test_previews_show_what_is_there(session: Session, editor: editar_rt.Editor) -> None:
    shown: list[tuple[int, np.ndarray]] = []
    tokens: dict[int, np.ndarray] = {}
    edited = session.edit(
        WORDS,
        on_progress=lambda done, total, now: tokens.update({done: now}) or 0,
        on_preview=lambda picture, done, total: shown.append((done, picture.copy())) or 0,
        preview_share=1.0,
        mask=masks()["box"],
    )
    assert shown and all(done % GRID == 0 and done < COUNT for done, _ in shown)
    assert edited.output.preview_seconds > 0
    outside = masks()["box"] == 0
    for _, picture in shown:
        assert np.array_equal(picture[outside], session.source()[0][outside])
    shown.clear()
    session.edit(
        WORDS,
        on_progress=lambda done, total, now: tokens.update({done: now}) or 0,
        on_preview=lambda picture, done, total: shown.append((done, picture.copy())) or 1,
        preview_share=1.0,
    )
    (done, picture), *others = shown
    assert not others  # it asked to stop
    assert np.array_equal(picture, to_pictures(editor.decode_tokens(tokens[done][None]))[0])


def test_a_session_gives_the_same_after_other_edits_as_a_new_one(session: Session, editor: editar_rt.Editor) -> None:
    for words, settings in itertools.product([WORDS, "remove the ball"], [{}, {"cfg_scale": 1.0}, {"greedy": True}]):
        edited = session.edit(words, sampling=as_sampling(settings))
        assert_same(edited, [editor.edit(PICTURE, words, **settings)])


@pytest.mark.parametrize("size", [(128, 128), (200, 130), (61, 300), (1000, 90), (37, 41)])
def test_pictures_of_other_shapes(model: Model, editor: editar_rt.Editor, size: tuple[int, int]) -> None:
    picture = np.asarray(Image.open(PICTURE).convert("RGB").resize(size))
    session, theirs = model.session(picture), editor.session(picture)
    square, tokens = session.source()
    assert np.array_equal(square, np.asarray(theirs.source))
    assert tokens.tolist() == theirs.condition_tokens[0].tolist()
    session.close()


def test_other_models_too(library: Library, tiny_bundle: Path) -> None:
    """A random model of other sizes: 32×32 pixels, 16 tokens, 120 text positions."""
    editor, model = editar_rt.load(tiny_bundle, threads=1), library.open(tiny_bundle, threads=1)
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    session, theirs = model.session(picture), editor.session(picture)
    for seed, words in enumerate(["make the ball red", "on left add a small shiny cube", ""]):
        settings = {"seed": seed, "cfg_scale": 4.0, "temperature": 3.0}
        assert_same(session.edit(words, sampling=as_sampling(settings)), [theirs.edit(words, **settings)])
    session.close()
    model.close()


def test_a_converted_bundle_is_refused_by_name_where_its_dialect_is_tensorrts(
    library: Library, golden_gpt_bundle_delta: Path, exporter: Command
) -> None:
    from tests.cpp.library import BACKEND, Refused

    with pytest.raises(Refused, match="TensorRT") as refused:
        library.open(golden_gpt_bundle_delta, device=b"cpu")
    assert refused.value.status == BACKEND
