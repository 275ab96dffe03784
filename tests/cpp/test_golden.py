"""The reference's golden numbers through the C++ runtime, with Python's own bits: exact functions, transformer, VQ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import editar_rt
from editar_rt import Sampling
from editar_rt.errors import BackendError
from editar_rt.images.pixels import to_pictures, to_pixels
from tests.conftest import golden_arrays
from tests.cpp.inside import Inside
from tests.cpp.library import BACKEND, Library, Model, Refused, as_sampling, open_library, pointer
from tests.golden import make_exact

# Largest error of the logits over their spread, as in tests/runtime/test_backends.py.
BUNDLES = {
    "ort": ("golden_gpt_bundle", 2e-4),
    "ort, fp16": ("golden_gpt_bundle_fp16", 5e-3),
    "ort, fp16 for CUDA": ("golden_gpt_bundle_cuda", 5e-3),
    "standard": ("golden_gpt_bundle_standard", 2e-4),
    "standard, fp16": ("golden_gpt_bundle_standard_fp16", 5e-3),
}
GREEDY = {
    "cfg1": ({"cfg_scale": 1.0}, True),
    "cfg3": ({"cfg_scale": 3.0}, True),
    "cfg3_interval8": ({"cfg_scale": 3.0, "cfg_interval": 8}, True),
    "cfg3_image_dropped": ({"cfg_scale": 3.0}, False),
}
DRAWN: list[dict[str, Any]] = [
    {"seed": 5},
    {"seed": 2**64 - 1, "cfg_scale": "linear:1,5", "temperature": 2.0, "top_p": 0.9},
    {"seed": 1, "cfg_scale": 1.0, "top_k": 7},
    {"seed": 3, "noise": "gumbel", "cfg_interval": (2, 9)},
]
GOLDEN, VQ = golden_arrays("gpt_tiny"), golden_arrays("vq16")
Pair = tuple[Model, editar_rt.Editor]


@pytest.fixture(scope="module")
def library() -> Library:
    return open_library()


def opened(library: Library, bundle: Path) -> Iterator[Pair]:
    """A bundle in both runtimes; weights that are large enough are not kept."""
    model = library.open(bundle, threads=1, device=b"cpu", cache_folder=b"")
    yield model, editar_rt.load(bundle, "cpu", 1, cache=False)
    model.close()


@pytest.fixture(scope="module", params=BUNDLES)
def case(request: pytest.FixtureRequest, library: Library) -> Iterator[tuple[Pair, float]]:
    bundle, bound = BUNDLES[request.param]
    for pair in opened(library, request.getfixturevalue(bundle)):
        yield pair, bound


@pytest.fixture(scope="module")
def quantized(golden_gpt_bundle_quantized: Path, library: Library) -> Iterator[Pair]:
    """In int8, int8 with an int8 cache, and int4."""
    yield from opened(library, golden_gpt_bundle_quantized)


@pytest.fixture(scope="module")
def vq(golden_vq_bundle: Path, library: Library) -> Iterator[Pair]:
    yield from opened(library, golden_vq_bundle)


def test_exact_functions_have_the_committed_bits(inside: Inside) -> None:
    lines = [line.split() for line in make_exact.FILE.read_text(encoding="ascii").splitlines()]
    assert {name for name, *_ in lines} == {"exp", "log", "gumbel"}
    for name in ("exp", "log", "gumbel"):
        given, expected = (
            np.asarray([int(line[column], 16) for line in lines if line[0] == name], np.uint64) for column in (1, 2)
        )
        found = np.zeros_like(expected)
        inside.call("exact", name.encode(), pointer(given), len(given), pointer(found))
        assert [f"{x:016x}" for x in found.tolist()] == [f"{x:016x}" for x in expected.tolist()]


def assert_same_logits(pair: Pair) -> list[np.ndarray]:
    """Both runtimes give the same bits. Returns them: [pictures, N, V] with and without text."""
    model, editor = pair
    inputs = GOLDEN["text"], GOLDEN["image_tokens"], GOLDEN["forced_tokens"]
    theirs = editor.score(*inputs)
    mine = [np.stack(logits) for logits in zip(*(model.score(*each) for each in zip(*inputs)))]
    for own, expected in zip(mine, theirs, strict=True):
        assert np.array_equal(own, expected)
    return mine


def assert_same_tokens(pair: Pair, settings: dict[str, Any], picture: bool = True) -> np.ndarray:
    model, editor = pair
    condition = GOLDEN["image_tokens"] if picture else None
    theirs = editor.generate(GOLDEN["text"][:1], None if condition is None else condition[:1], Sampling(**settings))
    own = None if condition is None else condition[0]
    mine = model.generate(GOLDEN["text"][0], own, as_sampling(settings))
    assert mine.tolist() == theirs[0].tolist()
    return mine


def test_the_golden_transformers_logits(case: tuple[Pair, float]) -> None:
    pair, bound = case
    for found, name in zip(assert_same_logits(pair), ("forced_logits_cond", "forced_logits_uncond"), strict=True):
        expected = GOLDEN[name]
        assert np.abs(found - expected).max() / (expected.max() - expected.min()) < bound


@pytest.mark.parametrize("name", GREEDY)
def test_the_golden_transformers_tokens(case: tuple[Pair, float], name: str) -> None:
    settings, has_picture = GREEDY[name]
    model, sampling = case[0][0], as_sampling(settings | {"greedy": True})
    for text, picture, expected in zip(GOLDEN["text"], GOLDEN["image_tokens"], GOLDEN[f"greedy_tokens_{name}"]):
        found = model.generate(text, picture if has_picture else None, sampling)
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("settings", DRAWN, ids=str)
def test_tokens_that_are_drawn(case: tuple[Pair, float], settings: dict[str, Any]) -> None:
    assert_same_tokens(case[0], settings)
    assert_same_tokens(case[0], settings, picture=False)


def test_quantized_weights_give_pythons_bits(quantized: Pair) -> None:
    assert_same_logits(quantized)
    for settings in DRAWN:
        assert_same_tokens(quantized, settings)


def test_known_tokens_stay_and_the_rest_is_drawn_as_without_them(case: tuple[Pair, float]) -> None:
    model = case[0][0]
    text, picture, sampling = GOLDEN["text"][0], GOLDEN["image_tokens"][0], as_sampling({"seed": 4})
    fresh = model.generate(text, picture, sampling)
    known = fresh.copy()
    known[[0, 5, 6, 12]] = -1
    assert model.generate(text, picture, sampling, known).tolist() == fresh.tolist()


def test_bfloat16_is_refused_on_a_cpu_like_in_python(library: Library, golden_gpt_bundle_bf16: Path) -> None:
    """ONNX Runtime has no kernels for it there."""
    says = r"does not run .* on cpu: its decoder \(precision bf16, dialect ort\) is for cuda; export it again with"
    with pytest.raises(BackendError, match=says):
        editar_rt.load(golden_gpt_bundle_bf16, "cpu").score(GOLDEN["text"], None, GOLDEN["forced_tokens"])
    model = library.open(golden_gpt_bundle_bf16, device=b"cpu")
    with pytest.raises(Refused, match=says) as refused:
        model.score(GOLDEN["text"][0], None, GOLDEN["forced_tokens"][0])
    assert refused.value.status == BACKEND
    model.close()


def test_the_golden_vqs_tokens(vq: Pair) -> None:
    """The C ABI takes bytes, so the picture is rounded; the closest call is a cosine gap of 1e-3."""
    model, editor = vq
    (square,) = to_pictures(VQ["image"])
    found = model.encode_square(square).tolist()
    assert found == editor.encode_pixels(to_pixels(square[None]))[0].tolist() == VQ["tokens"].tolist()


def test_the_golden_vqs_picture(vq: Pair) -> None:
    model, editor = vq
    (found,) = model.decode_tokens(VQ["tokens"][None])
    assert np.array_equal(found, to_pictures(editor.decode_tokens(VQ["tokens"][None]))[0])
    assert np.abs(found.astype(int) - to_pictures(VQ["decoded"])[0]).max() <= 1
