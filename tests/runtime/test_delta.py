"""The loop over engines of fixed shapes: how calls are cut to fit them, what is copied, what is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import editar_rt
from editar_rt import Sampling, names
from editar_rt.backends.engines.backend import DeltaBackend
from editar_rt.backends.engines.device import CaptureError
from editar_rt.backends.engines.emulated import EmulatedEngines, NumpyMemory
from editar_rt.backends.engines.plan import Plan, Shape
from editar_rt.bundle.folder import Bundle
from editar_rt.editor import Editor
from editar_rt.errors import BackendError, MissingPartError, OptionError
from tests.conftest import golden_arrays
from tests.runtime.filled_rows import FilledRows

GOLDEN = golden_arrays("gpt_tiny")
PLANS = [Plan((1,), (1,)), Plan((2,), (7,)), Plan((1, 4), (16, 120)), Plan((3,), (300,))]


def with_plan(folder: Path, plan: Plan) -> Editor:
    bundle = Bundle.open(folder)
    return Editor(bundle, DeltaBackend(bundle, EmulatedEngines(bundle, 1), plan))


@pytest.fixture
def backend(golden_gpt_bundle_delta: Path) -> DeltaBackend:
    backend = with_plan(golden_gpt_bundle_delta, Plan((1, 2), (16,))).backend
    assert isinstance(backend, DeltaBackend)
    return backend


def step(cache: Any, tokens: list[int], first_row: int = 0) -> np.ndarray:
    return cache.forward(np.asarray(tokens, np.int32)[:, None], first_row=first_row).copy()


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_plan_gives_the_golden_tokens(golden_gpt_bundle_delta: Path, plan: Plan) -> None:
    """Chunks longer and shorter than what is asked for, engines with too many rows and too few."""
    editor = with_plan(golden_gpt_bundle_delta, plan)
    for name, sampling in (
        ("cfg3", Sampling(cfg_scale=3.0, greedy=True)),
        ("cfg3_interval8", Sampling(cfg_scale=3.0, cfg_interval=8, greedy=True)),
    ):
        tokens = editor.generate(GOLDEN["text"], GOLDEN["image_tokens"], sampling)
        assert tokens.tolist() == GOLDEN[f"greedy_tokens_{name}"].tolist()


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_plan_scores(golden_gpt_bundle_delta: Path, plan: Plan) -> None:
    editor = with_plan(golden_gpt_bundle_delta, plan)
    answers = editor.score(GOLDEN["text"], GOLDEN["image_tokens"], GOLDEN["forced_tokens"])
    for answer, name in zip(answers, ("forced_logits_cond", "forced_logits_uncond")):
        expected = GOLDEN[name]
        assert np.abs(answer - expected).max() / np.ptp(expected) < 2e-4  # as on every backend


def test_engines_are_chosen_by_what_is_left() -> None:
    plan = Plan((1, 2, 8), (16, 120))
    assert [plan.step(rows) for rows in (1, 2, 3, 7, 8, 20)] == [1, 2, 2, 2, 8, 8]
    assert [plan.chunk(positions) for positions in (2, 16, 17, 120, 500)] == [16, 16, 120, 120, 120]
    assert Plan((2,), (16,)).step(1) == 2
    shapes = [shape.name for shape in plan.shapes([names.DECODER, names.VQ_ENCODER])]
    assert shapes[:3] == ["vq_encoder", "decoder-1x1", "decoder-2x1"] and shapes[-1] == "decoder-1x120"


def test_a_step_of_all_rows_is_placed_by_one_copy(backend: DeltaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, copies = FilledRows(backend, 2, 20), []
    copy = NumpyMemory.copy_2d
    monkeypatch.setattr(NumpyMemory, "copy_2d", lambda *call: (copies.append(call[5:]), copy(*call))[1])
    for token in range(3):
        step(cache, [token, token])
    # 3 layers' keys and values of 2 rows and 4 heads, of 32 float32 each.
    assert copies == [(128, 3 * 2 * 2 * 4)] * 3
    copies.clear()
    step(cache, [1], first_row=1)
    assert copies == [(128, 4)] * 6


def test_a_step_writes_its_rows_and_touches_no_other(backend: DeltaBackend) -> None:
    cache = FilledRows(backend, 2, 20)
    shape = (6, 2, 4, 152, 32)  # layers' keys and values, rows, heads, capacity, width
    memory = np.zeros(shape, np.float32)

    def read() -> np.ndarray:
        backend.engines.memory.to_host(memory, cache.decoder._address)
        return memory.copy()

    assert not read().any()  # zeroed: weight 0 times what lies there must be 0
    step(cache, [1, 2])
    before = read()
    step(cache, [3], first_row=1)
    after = read()
    changed = before != after
    assert changed[:, 1, :, 1].any(axis=-1).all()
    changed[:, 1, :, 1] = False
    assert not changed.any()


def test_recorded_steps_are_the_plain_ones(golden_gpt_bundle_delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = with_plan(golden_gpt_bundle_delta, Plan((2,), (16,))).backend
    replays = []

    def capture(memory: NumpyMemory, work: Any) -> Any:
        replay = NumpyMemory.capture(memory, work)
        return lambda: (replays.append(1), replay())

    monkeypatch.setattr(recorded.engines.memory, "capture", lambda work: capture(recorded.engines.memory, work))
    plain = with_plan(golden_gpt_bundle_delta, Plan((2,), (16,))).backend
    monkeypatch.setattr(plain.engines.memory, "capture", refuse)
    caches = [FilledRows(backend, 2, 20) for backend in (recorded, plain)]
    for token in range(6):
        first, second = (step(cache, [token, token + 1]) for cache in caches)
        assert np.array_equal(first, second)
    assert len(replays) == 5
    assert recorded.uncaptured is None and "not captured" not in recorded.name


def refuse(work: Any) -> Any:
    raise CaptureError("the driver is of another opinion")


def test_steps_that_cannot_be_recorded_run_and_the_name_says_so(
    backend: DeltaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.engines.memory, "capture", refuse)
    cache = FilledRows(backend, 1, 20)
    expected = [step(FilledRows(backend, 1, 20), [1])]
    assert np.array_equal(step(cache, [1]), expected[0])
    step(cache, [2])
    assert backend.name.endswith("; steps are not captured: the driver is of another opinion")


def test_a_full_cache_is_said(backend: DeltaBackend) -> None:
    with pytest.raises(OptionError, match="room for 152 positions, but 153 are needed"):
        backend.make_decoder(1, 153)
    cache = FilledRows(backend, 1, 152)
    cache.lengths[:] = 150
    with pytest.raises(OptionError, match="room for 152 positions, but 153 are needed"):
        cache.forward(np.ones((1, 3), np.int32))


def test_a_cache_gives_its_memory_back(backend: DeltaBackend) -> None:
    memory: Any = backend.engines.memory
    step(FilledRows(backend, 1, 20), [1])
    held = len(memory._blocks)
    step(FilledRows(backend, 2, 20), [1])
    assert len(memory._blocks) == held


def test_the_stand_in_for_device_memory_refuses_what_lies_outside() -> None:
    memory = NumpyMemory()
    block, other = memory.allocate(1024), memory.allocate(1024)
    assert block % 256 == other % 256 == 0
    with pytest.raises(BackendError, match="not inside an allocated block"):
        memory.copy_2d(block, 512, other, 256, 256, 3)
    with pytest.raises(BackendError, match="not inside an allocated block"):
        memory.zero(block, 1025)
    with pytest.raises(BackendError, match="do not fit a pitch"):
        memory.copy_2d(block, 100, other, 256, 128, 2)
    memory.free(block)
    with pytest.raises(BackendError, match="not inside an allocated block"):
        memory.zero(block, 1)


def test_two_dimensional_copies() -> None:
    memory = NumpyMemory()
    source, target = np.arange(64, dtype=np.uint8).reshape(4, 16), np.zeros((4, 32), np.uint8)
    here, there = memory.allocate(64), memory.allocate(128)
    memory.zero(there, 128)
    memory.to_device(here, source)
    memory.copy_2d(there + 8, 32, here + 4, 16, 6, 4)
    memory.to_host(target, there)
    expected = np.zeros((4, 32), np.uint8)
    expected[:, 8:14] = source[:, 4:10]
    assert np.array_equal(target, expected)


def test_devices_and_dialects_that_do_not_fit(golden_gpt_bundle: Path, golden_gpt_bundle_delta: Path) -> None:
    for device in ("tensorrt", "emulated"):
        with pytest.raises(BackendError, match=r"python -m export convert .* --dialect delta -o OUT"):
            editar_rt.load(golden_gpt_bundle, device=device)
    for device in ("cpu", "cuda"):
        with pytest.raises(BackendError, match=f"which runs on tensorrt, not on {device}; .* --device emulated"):
            editar_rt.load(golden_gpt_bundle_delta, device=device)
    with pytest.raises(BackendError, match="has no engines; build .* python -m export tensorrt .* --device emulated"):
        editar_rt.load(golden_gpt_bundle_delta)
    assert "emulating TensorRT" in editar_rt.load(golden_gpt_bundle_delta, device="emulated").backend.name


def test_a_part_that_is_missing_is_said(backend: DeltaBackend) -> None:
    with pytest.raises(MissingPartError, match="no part vq_encoder; its parts are prefix, decoder"):
        backend.run(names.VQ_ENCODER, {names.PIXELS: np.zeros((1, 3, 8, 8), np.float32)})
    assert Shape(names.VQ_ENCODER).name == "vq_encoder"
