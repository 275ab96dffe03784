"""The public API on a real bundle of tiny seeded models."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import editar_rt
from editar_rt.errors import BackendError, MissingPartError, OptionError, PictureError, TruncatedTextWarning


@pytest.fixture(scope="module")
def editor(tiny_bundle: Path) -> editar_rt.Editor:
    return editar_rt.load(tiny_bundle, device="cpu", threads=1)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(-1, 1, (count, 3, 32, 32)).astype(np.float32)


def test_an_edit_returns_picture_tokens_and_timings(editor: editar_rt.Editor) -> None:
    seen: list[tuple[int, int]] = []
    result = editor.edit(Image.new("RGB", (50, 40), "red"), "make the ball blue", on_progress=lambda *s: seen.append(s))
    assert result.image.size == (32, 32) and result.image.mode == "RGB"
    assert result.tokens.dtype == np.int32 and result.tokens.shape == (16,)
    assert seen == [(n, 16) for n in range(1, 17)]
    stages = {"text", "encode", "prefill", "decode", "pixels"}
    assert stages | {"total"} == set(result.timings)
    assert sum(result.timings[s] for s in stages) <= result.timings["total"]


def test_an_edit_is_its_parts_put_together(editor: editar_rt.Editor) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    sampling = editar_rt.Sampling(seed=9)
    result = editor.edit(picture, "remove the cube", sampling=sampling)
    states = editor.encode_text(["remove the cube"])
    pixels = picture.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
    tokens = editor.generate(states, editor.encode_pixels(pixels), sampling)
    assert np.array_equal(result.tokens, tokens[0])


def test_what_is_no_text_is_refused(editor: editar_rt.Editor) -> None:
    with pytest.raises(OptionError, match="an instruction must be text, got NoneType"):
        editor.edit(Image.new("RGB", (32, 32)), None)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="texts must be a sequence of texts, got '"):
        editor.encode_text("make the ball red")
    with pytest.raises(OptionError, match="an instruction must be text, got int"):
        editar_rt.Request(Image.new("RGB", (32, 32)), 3)  # type: ignore[arg-type]


def test_what_is_no_picture_and_no_sampling_is_refused(editor: editar_rt.Editor) -> None:
    with pytest.raises(PictureError, match="a picture must be a path, bytes, a binary file, .* array, got NoneType"):
        editor.edit(None, "x")  # type: ignore[call-overload]
    given: Any = {"seed": 1}
    picture = Image.new("RGB", (32, 32))
    for call in (
        lambda: editor.edit(picture, "x", sampling=given),
        lambda: editar_rt.Request(picture, "x", sampling=given),
    ):
        with pytest.raises(OptionError, match="sampling must be an editar_rt.Sampling, got dict"):
            call()


def test_a_batch_takes_an_array_of_pictures(editor: editar_rt.Editor) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    batch = editor.edit_batch([editar_rt.Request(p, t) for p, t in zip(pictures, "xy")])
    assert [np.array_equal(b.tokens, editor.edit(p, t).tokens) for b, p, t in zip(batch, pictures, "xy")] == [True] * 2


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_numpys_numbers_are_taken_as_pythons(editor: editar_rt.Editor, tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 32), "red")
    wanted = editar_rt.Sampling(seed=2**64 - 1, temperature=0.5, top_k=7, top_p=0.5, cfg_interval=(1, 9))
    given = editar_rt.Sampling(
        seed=np.uint64(2**64 - 1),  # type: ignore[arg-type]
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_k=np.int64(7),  # type: ignore[arg-type]
        top_p=np.float64(0.5),
        cfg_interval=(np.int32(1), np.int32(9)),  # type: ignore[arg-type]
        greedy=np.bool_(False),  # type: ignore[arg-type]
    )
    assert given == wanted and [type(v) for v in vars(given).values()] == [type(v) for v in vars(wanted).values()]
    found = editor.edit(picture, "a", sampling=given, trace=tmp_path / "trace.jsonl")
    assert np.array_equal(found.tokens, editor.edit(picture, "a", sampling=wanted).tokens)
    for bad in ({"temperature": None}, {"top_p": "a"}, {"greedy": "no"}, {"temperature": float("inf")}):
        with pytest.raises(OptionError, match=f"{next(iter(bad))} must be"):
            editar_rt.Sampling(**bad)  # type: ignore[arg-type]


def test_tasks_differ_by_their_prompt(editor: editar_rt.Editor) -> None:
    prompt = "Given the depth image, generate an image following the description: a ball"
    assert np.array_equal(editor.encode_text(["a ball"], "depth"), editor.encode_prompts([prompt]))
    with pytest.raises(OptionError, match="task must be one of edit, depth, canny, segmentation, got 'blur'"):
        editor.edit(Image.new("RGB", (32, 32)), "x", task="blur")


def test_the_same_seed_gives_the_same_tokens_run_to_run(editor: editar_rt.Editor, tiny_bundle: Path) -> None:
    again = editar_rt.load(tiny_bundle, device="cpu", threads=1)
    picture = Image.new("RGB", (32, 32), "green")
    results = [
        e.edit(picture, "add a ball", sampling=editar_rt.Sampling(seed=3)).tokens for e in (editor, editor, again)
    ]
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])
    assert not np.array_equal(
        results[0], editor.edit(picture, "add a ball", sampling=editar_rt.Sampling(seed=4)).tokens
    )


@pytest.mark.parametrize("interval", [-1, 5])
def test_a_picture_has_the_same_tokens_alone_and_in_a_batch(editor: editar_rt.Editor, interval: int) -> None:
    states = editor.encode_text(["make the ball red", "remove the cube", "add a ball"])
    condition = editor.encode_pixels(pictures(3))
    sampling = editar_rt.Sampling(seed=1, cfg_interval=interval)
    together = editor.generate(states, condition, sampling)
    for i in range(3):
        alone = editor.generate(states[i : i + 1], condition[i : i + 1], sampling)
        assert np.array_equal(alone[0], together[i])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_greedy_tokens_are_the_largest_guided_scores(editor: editar_rt.Editor, scale: float) -> None:
    states, condition = editor.encode_text(["add a ball", "x"]), editor.encode_pixels(pictures(2))
    tokens = editor.generate(states, condition, editar_rt.Sampling(cfg_scale=scale, greedy=True))
    cond, null = editor.score(states, condition, tokens)
    assert cond.shape == null.shape == (2, 16, 256)
    assert np.array_equal((null + scale * (cond - null)).argmax(-1), tokens)


def test_a_dropped_picture_does_not_matter(editor: editar_rt.Editor) -> None:
    states = editor.encode_text(["a ball"])
    dropped, _ = editor.score(states, None, np.zeros((1, 16), np.int32))
    kept, _ = editor.score(states, editor.encode_pixels(pictures(1)), np.zeros((1, 16), np.int32))
    assert np.abs(dropped - kept).max() > 0.1


def test_text_states_may_come_from_elsewhere(editor: editar_rt.Editor) -> None:
    picture, states = Image.new("RGB", (32, 32)), editor.encode_text(["add a ball"])
    given = editor.edit(picture, "(recorded only)", text_states=states)
    assert np.array_equal(given.tokens, editor.edit(picture, "add a ball").tokens)


def test_an_empty_instruction_works(editor: editar_rt.Editor) -> None:
    assert editor.edit(Image.new("RGB", (32, 32)), "").tokens.shape == (16,)


def test_a_very_long_instruction_is_truncated_with_a_warning(editor: editar_rt.Editor) -> None:
    with pytest.warns(TruncatedTextWarning, match=r"has \d+ tokens; only the first 120 are read"):
        states = editor.encode_text(["ball " * 5000])
    assert states.shape == (1, 120, 64)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda e: e.encode_pixels(np.zeros((1, 3, 16, 16), np.float32)), r"of -1 to 1, \[B, 3, 32, 32\], got float32"),
        (
            lambda e: e.encode_pixels(np.zeros((1, 3, 32, 32), np.uint8)),
            "must be floats of -1 to 1, .*got uint8",
        ),
        (lambda e: e.encode_pixels(np.zeros((0, 3, 32, 32), np.float32)), "pixels must contain at least one picture"),
        (lambda e: e.decode_tokens(np.zeros((0, 16), np.int32)), "tokens must contain at least one picture"),
        (lambda e: e.decode_tokens([[0.5] * 16]), r"tokens must be integers \[B, 16\], got float64"),
        (lambda e: e.decode_tokens(np.zeros((1, 15), np.int32)), r"tokens must be integers \[B, 16\]"),
        (lambda e: e.decode_tokens(np.full((1, 16), 256)), "tokens must be 0 to 255, got 256 to 256"),
        (lambda e: e.generate(np.zeros((1, 120, 3), np.float32), None), r"text_states must be \[B, 120, 64\]"),
        (
            lambda e: e.generate(np.zeros((2, 120, 64), np.float32), np.zeros((1, 16), np.int32)),
            "as many rows, got 1 and 2",
        ),
    ],
)
def test_arrays_of_the_wrong_kind_are_refused_in_one_sentence(editor: editar_rt.Editor, call: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        call(editor)


def test_a_bundle_with_the_vq_alone_encodes_and_decodes_and_says_what_it_lacks(golden_vq_bundle: Path) -> None:
    editor = editar_rt.load(golden_vq_bundle, device="cpu")
    assert editor.decode_tokens(np.zeros((1, 16), np.int32)).shape == (1, 3, 64, 64)
    with pytest.raises(MissingPartError, match="has no text encoder; give text_states"):
        editor.edit(Image.new("RGB", (64, 64)), "x")
    with pytest.raises(MissingPartError, match="has no part prefix; its parts are vq_encoder, vq_decoder"):
        editor.generate(np.zeros((1, 4, 4), np.float32), None)


def test_a_missing_onnxruntime_is_named_with_its_command(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *args: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return found(name, *args)

    found = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(BackendError, match=r'pip install "\.\[cpu\]"'):
        editar_rt.load(tiny_bundle)


def test_unknown_and_absent_devices_are_named(tiny_bundle: Path) -> None:
    with pytest.raises(OptionError, match="device must be one of auto, cpu, cuda, tensorrt, emulated, got 'tpu'"):
        editar_rt.load(tiny_bundle, device="tpu")
    for threads in (0, "2", True, 10**6):
        with pytest.raises(OptionError, match=f"threads must be 1 to [0-9]+, .*got {threads!r}"):
            editar_rt.load(tiny_bundle, device="cpu", threads=threads)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="tensorrt runs bundles of the dialects delta and native, but"):
        editar_rt.load(tiny_bundle, device="tensorrt")
