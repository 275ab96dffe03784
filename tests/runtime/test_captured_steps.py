"""Decode steps as CUDA graphs, over a stand-in for ONNX Runtime whose CUDA provider computes on the CPU."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import editar_rt
from editar_rt import names
from editar_rt.errors import BackendError
from editar_rt.generation.sampling import Sampling
from tests.cuda_stand_in import Provider, tokens
from tests.runtime.filled_rows import FilledRows


@pytest.fixture(scope="module")
def expected(golden_gpt_bundle_cuda: Path) -> np.ndarray:
    """What the bundle draws on the CPU, where nothing is captured."""
    return tokens(editar_rt.load(golden_gpt_bundle_cuda, "cpu"))


def test_steps_are_captured_once_and_replayed_with_the_same_tokens(
    golden_gpt_bundle_cuda: Path, provider: Provider, expected: np.ndarray
) -> None:
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    assert np.array_equal(tokens(editor), expected)
    assert editor.backend.name.endswith("(CUDA); steps are captured")
    decoder = provider.capturing
    steps = editor.picture_tokens - 1
    # Picture and two texts are plain; before the first step its graph is captured, replayed and compared.
    assert decoder.launched == ["-1"] * 3 + ["1", "1", "-1"] + ["1"] * steps


def test_what_changes_lies_on_the_device_and_the_number_on_the_host_is_the_capacity(
    golden_gpt_bundle_cuda: Path, provider: Provider
) -> None:
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    tokens(editor)
    decoder = provider.capturing
    (bound,) = decoder.graphs.values()  # every replay was asserted to have the same
    assert "host" not in bound.values()
    capacity = 2 * editor.picture_tokens + (editor.model.text_tokens or 0) - 1
    assert [value[2] for value in bound.values() if len(value) == 3 and value[2] is not None] == [capacity]
    wanted = {tensor.name for tensor in editor.bundle.manifest.parts[names.DECODER].inputs}
    assert wanted < set(bound) and bound[names.past_key(0)] == bound[names.present_key(0)]


def test_each_number_of_rows_and_each_cache_has_its_own_graph_until_it_goes(
    golden_gpt_bundle_cuda: Path, provider: Provider
) -> None:
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    tokens(editor, Sampling(cfg_interval=6))
    tokens(editor)
    gc.collect()
    decoder = provider.capturing
    assert list(decoder.graphs) == ["1", "2", "3"]
    assert sorted(decoder.released) == [1, 2, 3]


def test_a_step_copies_its_logits_from_the_device_once(golden_gpt_bundle_cuda: Path, provider: Provider) -> None:
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    tokens(editor)
    (logits,) = (value for value in provider.values if len(value.shape()) == 3 and value.shape()[0] == 2)
    # Every step, and once more each for the graph's capture and for the replay that is compared.
    assert logits.moved == (editor.picture_tokens - 1 + 2) * logits.value.tensor_size_in_bytes()


@pytest.mark.parametrize("where", ["refuses", "breaks"])
def test_a_provider_that_cannot_capture_runs_plainly_and_it_is_said(
    golden_gpt_bundle_cuda: Path, provider: Provider, expected: np.ndarray, where: str
) -> None:
    setattr(provider, where, "no capture of this")
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    assert np.array_equal(tokens(editor), expected)
    assert "(CUDA); steps are not captured: " in editor.backend.name and "no capture of this" in editor.backend.name
    assert not provider.sessions[-1].captures and np.array_equal(tokens(editor), expected)


@pytest.mark.parametrize("how", ["freezes", "mistakes"])
def test_a_replay_that_is_wrong_is_found_before_its_tokens_are_drawn(
    golden_gpt_bundle_cuda: Path, provider: Provider, expected: np.ndarray, how: str
) -> None:
    """Also where every run with the capacity as total_length is wrong, captured or not."""
    setattr(provider, how, True)
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    assert np.array_equal(tokens(editor), expected)
    assert "steps are not captured: a replay differs from an ordinary step by " in editor.backend.name


def test_a_replay_is_compared_with_a_step_that_counts_what_is_filled(
    golden_gpt_bundle_cuda: Path, provider: Provider
) -> None:
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    tokens(editor)
    decoder = provider.capturing
    prefix = editor.picture_tokens + (editor.model.text_tokens or 0)
    assert decoder.totals == [editor.picture_tokens, prefix, prefix, prefix + 1]  # picture, two texts, the comparison


def test_caches_that_were_captured_before_it_was_given_up_go_on(
    golden_gpt_bundle_cuda: Path, provider: Provider, expected: np.ndarray
) -> None:
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    cache = FilledRows(editor.backend, 2, 40)
    editor.backend.give_up_capture("another one failed")  # type: ignore[attr-defined]
    cache.forward(np.ones((2, 1), np.int32))
    assert provider.sessions[-1].launched == ["-1"] and not provider.sessions[-1].captures


def test_capture_can_be_refused(golden_gpt_bundle_cuda: Path, provider: Provider, expected: np.ndarray) -> None:
    editor = editar_rt.load(golden_gpt_bundle_cuda, "cuda")
    editor.backend.capture = False  # type: ignore[attr-defined]
    assert np.array_equal(tokens(editor), expected)
    assert editor.backend.name.endswith("steps are not captured: CUDA graphs are disabled")


def test_graphs_that_compute_lengths_on_the_host_are_not_tried(
    golden_gpt_bundle_fp16: Path, provider: Provider
) -> None:
    editor = editar_rt.load(golden_gpt_bundle_fp16, "cuda")
    tokens(editor)
    assert not any(session.captures for session in provider.sessions)
    assert "its graph computes lengths on the host" in editor.backend.name


def test_the_graph_for_cuda_computes_no_shapes(golden_gpt_bundle_cuda: Path, golden_gpt_bundle_fp16: Path) -> None:
    """Their results lie on the host, and what is computed from them is copied: the provider captures no copies."""
    plain, cuda = (
        {node.op_type for node in onnx.load(bundle / "decoder.onnx", load_external_data=False).graph.node}
        for bundle in (golden_gpt_bundle_fp16, golden_gpt_bundle_cuda)
    )
    assert "Shape" in plain and "Shape" not in cuda


def test_an_error_that_is_not_of_capture_is_raised(
    golden_gpt_bundle_cuda: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(provider, "InferenceSession", fails)
    with pytest.raises(BackendError, match="out of memory"):
        editar_rt.load(golden_gpt_bundle_cuda, "cuda").backend.make_decoder(1, 8)


def chunks_of_drafts(cache: FilledRows, sizes: list[int]) -> list[np.ndarray]:
    """Logits of chunks of these sizes in two rows that are filled unevenly."""
    tokens = np.random.default_rng(5).integers(0, 256, (2, 40), np.int32)
    cache.forward(tokens[:1, :9])
    cache.forward(tokens[1:, :6], first_row=1)
    answers, done = [], 9
    for size in sizes:
        answers.append(cache.forward(tokens[:, done : done + size], outputs=size).copy())
        done += size
    return answers


def test_chunks_of_drafts_are_captured_by_their_size(golden_gpt_bundle_cuda: Path, provider: Provider) -> None:
    sizes = [4, 4, 1, 2, 4, 2, 1]
    expected = chunks_of_drafts(FilledRows(editar_rt.load(golden_gpt_bundle_cuda, "cpu").backend, 2, 40), sizes)
    cache = FilledRows(editar_rt.load(golden_gpt_bundle_cuda, "cuda").backend, 2, 40)
    assert cache.decoder.runs(2, 4) == 1
    found = chunks_of_drafts(cache, sizes)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    four, one, two = (["1", "1", "-1"], ["2", "2", "-1"], ["3", "3", "-1"])  # capture, replay, ordinary run
    prefills = ["-1"] * 2
    assert provider.capturing.launched == [
        *prefills, *four, "1", "1", *one, "2", *two, "3", "1", "3", "2",
    ]  # fmt: skip


def test_a_chunk_that_only_wants_its_last_logits_is_not_captured(
    golden_gpt_bundle_cuda: Path, provider: Provider
) -> None:
    cache = FilledRows(editar_rt.load(golden_gpt_bundle_cuda, "cuda").backend, 2, 40)
    cache.forward(np.ones((2, 4), np.int32))
    assert provider.capturing.launched == ["-1"]
