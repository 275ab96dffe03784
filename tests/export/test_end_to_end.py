"""Bundles answer through the runtime what the reference implementation answered for the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import editar_rt
from editar_rt import Sampling
from editar_rt.editor import Editor
from editar_rt.errors import MissingPartError
from tests.conftest import golden_arrays

FP32_BOUND = 2e-4  # of the logits' spread (largest minus smallest); 3e-7 was measured
FP16_BOUND = 5e-3  # likewise; 3e-4 was measured with these 3 layers, and nearly all of it is rounding of the weights


@pytest.fixture(scope="module", params=["ort", "standard"])
def gpt(request: pytest.FixtureRequest, golden_gpt_bundle: Path, golden_gpt_bundle_standard: Path) -> Editor:
    """The golden transformer in every dialect that ONNX Runtime runs."""
    bundle = golden_gpt_bundle if request.param == "ort" else golden_gpt_bundle_standard
    return editar_rt.load(bundle, device="cpu")


@pytest.fixture(scope="module")
def gpt_golden() -> dict[str, np.ndarray]:
    return golden_arrays("gpt_tiny")


@pytest.fixture(scope="module")
def vq(golden_vq_bundle: Path) -> Editor:
    return editar_rt.load(golden_vq_bundle, device="cpu")


@pytest.fixture(scope="module")
def vq_golden() -> dict[str, np.ndarray]:
    return golden_arrays("vq16")


def score_errors(editor: Editor, golden: dict[str, np.ndarray]) -> list[float]:
    """Largest errors of the forced logits, with and without the text, over the spread of what is expected."""
    answers = editor.score(golden["text"], golden["image_tokens"], golden["forced_tokens"])
    expected = (golden["forced_logits_cond"], golden["forced_logits_uncond"])
    return [float(np.abs(a - e).max() / (e.max() - e.min())) for a, e in zip(answers, expected)]


def test_forced_logits(gpt: Editor, gpt_golden: dict[str, np.ndarray]) -> None:
    assert max(score_errors(gpt, gpt_golden)) < FP32_BOUND


def test_forced_logits_of_a_float16_bundle(golden_gpt_bundle_fp16: Path, gpt_golden: dict[str, np.ndarray]) -> None:
    errors = score_errors(editar_rt.load(golden_gpt_bundle_fp16, device="cpu"), gpt_golden)
    assert max(errors) < FP16_BOUND
    assert min(errors) > 1e-5  # else it would not have been float16


@pytest.mark.parametrize(
    ("name", "sampling", "picture"),
    [
        ("cfg1", Sampling(cfg_scale=1.0, greedy=True), True),
        ("cfg3", Sampling(cfg_scale=3.0, greedy=True), True),
        ("cfg3_interval8", Sampling(cfg_scale=3.0, cfg_interval=8, greedy=True), True),
        ("cfg3_image_dropped", Sampling(cfg_scale=3.0, greedy=True), False),
    ],
)
def test_greedy_tokens(
    gpt: Editor, gpt_golden: dict[str, np.ndarray], name: str, sampling: Sampling, picture: bool
) -> None:
    condition = gpt_golden["image_tokens"] if picture else None
    tokens = gpt.generate(gpt_golden["text"], condition, sampling)
    assert tokens.tolist() == gpt_golden[f"greedy_tokens_{name}"].tolist()


def test_picture_to_tokens(vq: Editor, vq_golden: dict[str, np.ndarray]) -> None:
    # The closest call is a cosine gap of 1e-3 between the two best rows; float32 errs by about 1e-6, so all must agree.
    assert vq.encode_pixels(vq_golden["image"])[0].tolist() == vq_golden["tokens"].tolist()


def test_tokens_to_picture(vq: Editor, vq_golden: dict[str, np.ndarray]) -> None:
    decoded = vq.decode_tokens(vq_golden["tokens"][None])
    # These weights' picture spans 5.
    assert np.abs(decoded - vq_golden["decoded"]).max() < 5e-4


def test_a_bundle_without_a_part_says_so(gpt: Editor, vq: Editor) -> None:
    with pytest.raises(MissingPartError, match="has no VQ tokenizer"):
        _ = gpt.image_size
    with pytest.raises(MissingPartError, match="no part prefix; its parts are vq_encoder, vq_decoder"):
        vq.generate(np.zeros((1, 120, 64), np.float32), None)


def test_an_instruction_edits_a_picture(tiny_bundle: Path) -> None:
    """All five graphs, from a picture and a sentence to a picture; the same seed gives the same one."""
    editor = editar_rt.load(tiny_bundle, device="cpu")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    first, second, other = (
        editor.edit(picture, "make the ball red", sampling=Sampling(seed=seed)) for seed in (1, 1, 2)
    )
    assert first.image.size == (32, 32)
    assert first.tokens.tolist() == second.tokens.tolist()
    assert first.tokens.tolist() != other.tokens.tolist()


def test_another_instruction_reaches_the_decoder(tiny_bundle: Path) -> None:
    editor = editar_rt.load(tiny_bundle, device="cpu")
    states = editor.encode_text(["make the ball red", "add a small blue cube"])
    condition = np.zeros((2, editor.picture_tokens), np.int32)
    cond, null = editor.score(states, condition, condition)
    assert np.abs(cond[0] - cond[1]).max() > 1e-3
    assert np.array_equal(null[0], null[1])  # the text is all that differs
