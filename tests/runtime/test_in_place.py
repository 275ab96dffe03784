"""The decoder's cache on ONNX Runtime: written where it lies, and nothing new in the loop after its first step."""

from __future__ import annotations

import resource
import tracemalloc
from typing import Any

import numpy as np
import pytest

import editar_rt
from editar_rt.backends.ort import decoder
from editar_rt.editor import Editor
from tests.runtime.filled_rows import FilledRows

ROWS = 2


@pytest.fixture(params=["golden_gpt_bundle", "golden_gpt_bundle_standard"])
def editor(request: pytest.FixtureRequest) -> Editor:
    return editar_rt.load(request.getfixturevalue(request.param), device="cpu")


def step(cache: FilledRows, token: int) -> np.ndarray:
    """One token in every row."""
    return cache.forward(np.full((ROWS, 1), token, np.int32))


def test_a_step_writes_its_rows_and_touches_no_other(editor: Editor) -> None:
    cache = FilledRows(editor.backend, ROWS, 40)
    step(cache, 1)
    before = [buffer.numpy().copy() for buffer in cache.decoder._buffers]
    places = [buffer.data_ptr() for buffer in cache.decoder._buffers]
    step(cache, 2)
    assert [buffer.data_ptr() for buffer in cache.decoder._buffers] == places
    for old, buffer in zip(before, cache.decoder._buffers, strict=True):
        new = buffer.numpy()
        assert np.array_equal(new[:, :, :1], old[:, :, :1])
        assert (new[:, :, 1] != old[:, :, 1]).any()  # the step's keys or values, where the graph was to put them
        assert np.array_equal(new[:, :, 2:], old[:, :, 2:])


def test_logits_do_not_depend_on_the_capacity(editor: Editor) -> None:
    answers = []
    for capacity in (8, 600):
        cache = FilledRows(editor.backend, ROWS, capacity)
        answers.append([step(cache, token).copy() for token in range(6)])
    np.testing.assert_allclose(answers[0], answers[1], rtol=0, atol=1e-5)


def test_the_loop_allocates_nothing_that_stays(editor: Editor) -> None:
    cache = FilledRows(editor.backend, ROWS, 150)

    def run(steps: int) -> np.ndarray:
        cache.lengths[:] = 0
        for token in range(steps):
            logits = step(cache, token)
        return logits

    logits = run(150)
    assert np.shares_memory(logits, run(2))  # one array, written over by every step
    tracemalloc.start()
    run(150)
    before, resident = tracemalloc.get_traced_memory()[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        run(150)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    # The cache has 0.9 MB; a copy of it a step that is not freed would be 400 MB.
    assert after - before < 20_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 20_000  # KiB


@pytest.mark.parametrize("chunk", [7, 50])
def test_a_long_prefill_in_pieces_gives_the_same_logits_and_tokens(
    editor: Editor, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rng = editor.model, np.random.default_rng(0)
    states = rng.standard_normal((2, model.text_tokens, model.text_dim)).astype(np.float32)
    picture, target = rng.integers(0, model.vocab_size, (2, 2, model.picture_tokens), np.int32)
    whole = *editor.score(states, picture, target), editor.generate(states, picture, editar_rt.Sampling(seed=1))
    monkeypatch.setattr(decoder, "CHUNK", chunk)
    pieces = *editor.score(states, picture, target), editor.generate(states, picture, editar_rt.Sampling(seed=1))
    for one, other in zip(whole[:2], pieces[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)  # sums in another order
    assert np.array_equal(whole[2], pieces[2])


def test_what_a_long_chunk_took_is_given_back_and_what_steps_take_is_kept(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FilledRows(editor.backend, ROWS, 150)
    trimmed: list[None] = []
    monkeypatch.setattr(decoder, "trim_heap", lambda: trimmed.append(None))
    given: list[str | None] = []

    class Noted:
        def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
            given.append(options and options.get_run_config_entry("memory.enable_memory_arena_shrinkage"))
            session.run_with_iobinding(binding, options)

        def io_binding(self) -> Any:
            return session.io_binding()

    session, cache.decoder._session = cache.decoder._session, Noted()
    cache.forward(np.zeros((1, decoder.LONG), np.int32))
    cache.lengths[:] = decoder.LONG
    step(cache, 1)
    assert given == ["cpu:0", None] and len(trimmed) == 1
