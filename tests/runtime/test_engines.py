"""The loop over engines of fixed shapes: how calls are cut to fit them, what is copied, what is recorded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import editar_rt
from editar_rt import Sampling, names
from editar_rt.backends.base import Batch
from editar_rt.backends.engines.backend import EngineBackend
from editar_rt.backends.engines.device import CaptureError, Lines
from editar_rt.backends.engines.emulated import EmulatedEngines, NumpyMemory, OnnxRuntimeEngine
from editar_rt.backends.engines.plan import Plan, Shape, Window
from editar_rt.bundle.folder import Bundle
from editar_rt.editor import Editor
from editar_rt.errors import BackendError, MissingPartError, OptionError
from tests.conftest import golden_arrays
from tests.runtime.filled_rows import FilledRows

GOLDEN = golden_arrays("gpt_tiny")
PLANS = [Plan((1,), (1,)), Plan((2,), (7,)), Plan((1, 4), (16, 120), (4,)), Plan((3,), (300,), (2, 8))]
DIALECTS = ["delta", "native"]
ROOMS = {"delta": 152, "native": 319}  # a sequence; of native a capacity of 320, less what unused rows write


def with_plan(folder: Path, plan: Plan) -> Editor:
    bundle = Bundle.open(folder)
    return Editor(bundle, EngineBackend(bundle, EmulatedEngines(bundle, 1), plan))


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(dialect: str, request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(f"golden_gpt_bundle_{dialect}"))


def backend_of(folder: Path, plan: Plan) -> EngineBackend:
    backend = with_plan(folder, plan).backend
    assert isinstance(backend, EngineBackend)
    return backend


@pytest.fixture
def backend(folder: Path) -> EngineBackend:
    return backend_of(folder, Plan((1, 2), (16,)))


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Width, height and depth of every copy on the device from here on."""
    made: list[tuple[int, ...]] = []
    copy = NumpyMemory.copy_lines

    def noted(memory: NumpyMemory, target: Any, source: Any, width: int, height: int, depth: int = 1) -> None:
        made.append((width, height, depth))
        copy(memory, target, source, width, height, depth)

    monkeypatch.setattr(NumpyMemory, "copy_lines", noted)
    return made


def step(cache: Any, tokens: list[int], first_row: int = 0) -> np.ndarray:
    return cache.forward(np.asarray(tokens, np.int32)[:, None], first_row=first_row).copy()


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_plan_gives_the_golden_tokens(folder: Path, plan: Plan) -> None:
    """Chunks longer and shorter than what is asked for, engines with too many rows and too few."""
    editor = with_plan(folder, plan)
    for name, sampling in (
        ("cfg3", Sampling(cfg_scale=3.0, greedy=True)),
        ("cfg3_interval8", Sampling(cfg_scale=3.0, cfg_interval=8, greedy=True)),
    ):
        tokens = editor.generate(GOLDEN["text"], GOLDEN["image_tokens"], sampling)
        assert tokens.tolist() == GOLDEN[f"greedy_tokens_{name}"].tolist()


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_plan_scores(folder: Path, plan: Plan) -> None:
    editor = with_plan(folder, plan)
    answers = editor.score(GOLDEN["text"], GOLDEN["image_tokens"], GOLDEN["forced_tokens"])
    for answer, name in zip(answers, ("forced_logits_cond", "forced_logits_uncond")):
        expected = GOLDEN[name]
        assert np.abs(answer - expected).max() / np.ptp(expected) < 2e-4  # as on every backend


@pytest.mark.parametrize(
    ("rows", "held", "window"),
    [
        ([0], 8, Window(0, 1, 1)),
        ([3, 4], 8, Window(3, 2, 2)),
        ([0, 1, 2], 3, Window(0, 2, 2)),  # then one more
        ([0, 1, 2, 3, 4], 8, Window(0, 8, 5)),  # one run with three unused rows costs less than three
        ([6, 7], 8, Window(6, 2, 2)),
        ([5, 6, 7], 8, Window(5, 2, 2)),
        ([0, 7], 8, Window(0, 8, 2)),  # what lies between is not used
        ([7], 8, Window(7, 1, 1)),
    ],
    ids=str,
)
def test_rows_are_run_by_the_engine_that_costs_least_for_each(rows: list[int], held: int, window: Window) -> None:
    assert Plan((1, 2, 8), ()).window(rows, held) == window


def test_an_engine_of_more_rows_covers_those_before() -> None:
    assert Plan((2,), ()).window([3], 4) == Window(2, 2, 1)


def test_a_cache_has_some_rows_more_where_these_fill_an_engine() -> None:
    plan = Plan((2, 4, 8), ())
    assert [plan.padded(rows) for rows in (1, 2, 3, 4, 5, 6, 7, 9)] == [2, 2, 4, 4, 5, 8, 8, 9]


def test_engines_of_chunks_and_drafts_are_chosen_by_what_is_left_and_what_fits() -> None:
    plan = Plan((1, 2, 8), (16, 120), (4,))
    assert [plan.chunk(positions, 500) for positions in (2, 5, 17, 120, 500)] == [4, 16, 120, 120, 120]
    assert [plan.chunk(100, room) for room in (120, 119, 16, 15, 3)] == [120, 16, 16, 4, 1]
    assert [plan.side_by_side(positions) for positions in (1, 2, 4, 5)] == [1, 4, 4, None]
    shapes = [shape.name for shape in plan.shapes([names.DECODER, names.VQ_ENCODER])]
    assert shapes[:3] == ["vq_encoder", "decoder-1x1", "decoder-2x1"] and shapes[-1] == "decoder-1x120"
    assert {"decoder-1x4", "decoder-2x4", "decoder-8x4"} < set(shapes) and len(set(shapes)) == len(shapes)


@pytest.mark.parametrize("plan", [Plan((1, 2), (16,)), Plan((1, 4), (7, 30), (2, 8)), Plan((3,), (20,))], ids=str)
def test_the_number_of_runs_is_known_before(
    golden_gpt_bundle_native: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backend_of(golden_gpt_bundle_native, plan)
    runs: list[str] = []
    enqueue = OnnxRuntimeEngine.enqueue
    monkeypatch.setattr(
        OnnxRuntimeEngine, "enqueue", lambda engine: (runs.append(engine._shape.name), enqueue(engine))[1]
    )
    for rows, positions in ((1, 1), (2, 1), (5, 1), (1, 5), (3, 5), (1, 40), (2, 40)):
        cache = FilledRows(backend, rows, 40)
        runs.clear()
        cache.forward(np.ones((rows, positions), np.int32))
        assert cache.decoder.runs(rows, positions) == len(runs), (rows, positions)


def test_new_keys_of_rows_at_one_position_are_placed_by_one_copy(
    golden_gpt_bundle_delta: Path, copies: list[tuple[int, ...]]
) -> None:
    cache = FilledRows(backend_of(golden_gpt_bundle_delta, Plan((1, 2), (16,))), 2, 20)
    for token in range(3):
        step(cache, [token, token])
    # 2 rows and 4 heads, 32 float32 each; 3 layers' keys and values.
    assert copies == [(128, 2 * 4, 6)] * 3
    copies.clear()
    step(cache, [1], first_row=1)
    assert copies == [(128, 4, 6)]
    copies.clear()
    step(cache, [1, 2])  # at different positions
    assert copies == [(128, 4, 6)] * 2


def test_a_cache_that_is_updated_in_place_needs_no_copies(
    golden_gpt_bundle_native: Path, copies: list[tuple[int, ...]]
) -> None:
    cache = FilledRows(backend_of(golden_gpt_bundle_native, Plan((1, 2), (16,), (4,))), 2, 40)
    cache.forward(np.ones((2, 20), np.int32))
    cache.forward(np.ones((2, 3), np.int32))
    step(cache, [1, 2])
    assert copies == []


def test_a_step_writes_its_rows_and_touches_no_other_position_of_a_sequence(
    backend: EngineBackend, dialect: str
) -> None:
    cache = FilledRows(backend, 2, 20)
    capacity = {"delta": 152, "native": 320}[dialect]
    shape = (6, 2, 4, capacity, 32)  # layers' keys and values, rows, heads, capacity, width
    memory = np.zeros(shape, np.float32)

    def read() -> np.ndarray:
        backend.engines.memory.to_host(memory, cache.decoder._address)
        return memory[..., : ROOMS[dialect], :].copy()

    assert not read().any()  # zeroed: weight 0 times what lies there must be 0
    step(cache, [1, 2])
    before = read()
    step(cache, [3], first_row=1)
    after = read()
    changed = before != after
    assert changed[:, 1, :, 1].any(axis=-1).all()
    changed[:, 1, :, 1] = False
    assert not changed.any()


@pytest.mark.parametrize("positions", [1, 4])
def test_a_row_that_was_not_asked_for_keeps_all_that_a_sequence_may_hold(
    golden_gpt_bundle_native: Path, positions: int
) -> None:
    """An engine of three rows also writes the one between those asked for: behind the last position of a sequence."""
    backend = backend_of(golden_gpt_bundle_native, Plan((1, 3), (16,), (4,)))
    cache = FilledRows(backend, 3, 316)
    cache.forward(np.ones((1, 316), np.int32), first_row=1)
    memory = np.zeros((6, 3, 4, 320, 32), np.float32)  # layers' keys and values, rows, heads, capacity, width

    def read() -> np.ndarray:
        backend.engines.memory.to_host(memory, cache.decoder._address)
        return memory[:, 1].copy()

    before = read()
    rows, none = np.asarray([0, 2], np.int32), np.zeros(2, np.int32)
    cache.decoder.run(Batch(rows, none, none + np.int32(positions), np.full((2, positions), 2, np.int32), None, 1))
    changed = (before != read()).any(axis=(0, 1, 3))
    assert changed.any() and not changed[:316].any()


@pytest.mark.parametrize("drafts", [(2,), (4, 8), (16,)], ids=str)
def test_drafts_run_in_all_rows_at_once_whatever_their_positions(
    folder: Path, drafts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of several rows that begin at different positions have the logits of rows that run alone."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 256, (3, 40), np.int32)
    together = backend_of(folder, Plan((1, 3), (16,), drafts))
    alone = backend_of(folder, Plan((1,), (16,), drafts))
    runs: list[str] = []
    enqueue = OnnxRuntimeEngine.enqueue
    monkeypatch.setattr(
        OnnxRuntimeEngine, "enqueue", lambda engine: (runs.append(engine._shape.name), enqueue(engine))[1]
    )
    rows, past, counts = (
        np.arange(3, dtype=np.int32),
        np.asarray([3, 9, 20], np.int32),
        np.full(3, drafts[-1], np.int32),
    )
    answers = []
    for backend in (together, alone):
        decoder = backend.make_decoder(3, 40)
        for row in rows:
            begin = tokens[row : row + 1, : past[row]]
            decoder.run(Batch(rows[row : row + 1], 0 * past[row : row + 1], past[row : row + 1], begin, None, 1))
        runs.clear()
        chunks = np.stack([tokens[row, past[row] :][: drafts[-1]] for row in rows])
        for start in range(0, drafts[-1], drafts[0]):
            part = chunks[:, start : start + drafts[0]]
            size = np.full(3, part.shape[1], np.int32)
            logits = decoder.run(Batch(rows, past + np.int32(start), size, part, None, int(size[0]))).logits()
            answers.append(logits.copy())
        if backend is together:
            assert set(runs) == {f"decoder-3x{drafts[0]}"} and len(runs) == drafts[-1] // drafts[0]
        whole = decoder.run(Batch(rows, past, counts, chunks, None, drafts[-1])).logits()
        answers.append(whole.copy())
    half = len(answers) // 2
    for here, there in zip(answers[:half], answers[half:]):
        assert np.array_equal(here, there)
    assert np.abs(np.concatenate(answers[: half - 1], axis=1) - answers[half - 1]).max() < 1e-4


def test_padding_behind_a_draft_is_not_seen_later(folder: Path) -> None:
    tokens = np.random.default_rng(1).integers(0, 256, (2, 12), np.int32)
    padded = FilledRows(backend_of(folder, Plan((2,), (16,), (8,))), 2, 20)
    for start in range(0, 12, 3):  # by an engine of eight positions
        logits = padded.forward(tokens[:, start : start + 3])
    whole = FilledRows(backend_of(folder, Plan((2,), (16,))), 2, 20).forward(tokens)
    assert np.abs(logits - whole).max() < 1e-4


def test_a_chunk_behind_which_padding_does_not_fit_goes_in_smaller_pieces(
    golden_gpt_bundle_native: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backend_of(golden_gpt_bundle_native, Plan((1, 2), (16, 120), (4,)))
    sizes: list[int] = []
    program = EngineBackend.program
    monkeypatch.setattr(
        EngineBackend, "program", lambda own, shape: (sizes.append(shape.positions), program(own, shape))[1]
    )
    decoder = backend.make_decoder(1, 316)
    row, tokens = np.zeros(1, np.int32), np.ones((1, 30), np.int32)
    decoder.run(Batch(row, row + 286, row + 30, tokens, None, 1))  # 34 positions are left of the capacity
    assert sizes == [16, 16]
    sizes.clear()
    decoder.run(Batch(row, row + 309, row + 6, tokens[:, :6], None, 1))
    assert sizes == [4, 4]


def test_the_emulated_device_checks_the_cache_that_is_updated_in_place(golden_gpt_bundle_native: Path) -> None:
    """TensorRT relies on both without a check."""
    backend = backend_of(golden_gpt_bundle_native, Plan((1,), (16,)))
    step(FilledRows(backend, 1, 20), [1])
    program = backend.program(Shape(names.DECODER))
    block = backend.engines.memory.allocate(4 * 320 * 32 * 4)
    program.inputs[names.PAST_LENGTH][:] = 320
    program.upload()
    with pytest.raises(BackendError, match=r"1 positions behind \[320\] do not fit the capacity 320"):
        program.engine.enqueue()
    program.engine.bind({names.present_value(2): block})
    with pytest.raises(BackendError, match="present_value_2 must have the address of past_value_2"):
        program.engine.enqueue()


def test_recorded_steps_are_the_plain_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = with_plan(folder, Plan((2,), (16,))).backend
    replays = []

    def capture(memory: NumpyMemory, work: Any) -> Any:
        replay = NumpyMemory.capture(memory, work)
        return lambda: (replays.append(1), replay())

    monkeypatch.setattr(recorded.engines.memory, "capture", lambda work: capture(recorded.engines.memory, work))
    plain = with_plan(folder, Plan((2,), (16,))).backend
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
    backend: EngineBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.engines.memory, "capture", refuse)
    cache = FilledRows(backend, 1, 20)
    expected = [step(FilledRows(backend, 1, 20), [1])]
    assert np.array_equal(step(cache, [1]), expected[0])
    step(cache, [2])
    assert backend.name.endswith("; steps are not captured: the driver is of another opinion")


def test_a_full_cache_is_said(backend: EngineBackend, dialect: str) -> None:
    room = ROOMS[dialect]
    with pytest.raises(OptionError, match=f"room for {room} positions, but {room + 1} are needed"):
        backend.make_decoder(1, room + 1)
    cache = FilledRows(backend, 1, room)
    cache.lengths[:] = room - 2
    with pytest.raises(OptionError, match=f"room for {room} positions, but {room + 1} are needed"):
        cache.forward(np.ones((1, 3), np.int32))


def test_a_cache_of_bfloat16_takes_its_bytes(golden_gpt_bundle_native_fp16: Path, tmp_path: Path) -> None:
    """No CPU runs such an engine, but its memory is laid out here."""
    folder = Path(shutil.copytree(golden_gpt_bundle_native_fp16, tmp_path / "bundle"))
    manifest = folder / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"float16"', '"bfloat16"'))
    backends = [backend_of(each, Plan((2,), (16,))) for each in (golden_gpt_bundle_native_fp16, folder)]
    sizes = [backend.make_decoder(2, 40)._row for backend in backends]
    assert sizes == [4 * 320 * 32 * 2] * 2


def test_a_cache_gives_its_memory_back(backend: EngineBackend) -> None:
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
        memory.copy_lines(Lines(block, 512), Lines(other, 256), 256, 3)
    with pytest.raises(BackendError, match="not inside an allocated block"):
        memory.zero(block, 1025)
    with pytest.raises(BackendError, match="2 lines of 128 bytes do not fit"):
        memory.copy_lines(Lines(block, 100), Lines(other, 256), 128, 2)
    with pytest.raises(BackendError, match="2 lines of 128 bytes do not fit"):
        memory.copy_lines(Lines(block, 128, 128), Lines(other, 128, 512), 128, 2, 2)
    memory.free(block)
    with pytest.raises(BackendError, match="not inside an allocated block"):
        memory.zero(block, 1)


def test_copies_of_lines_and_slices() -> None:
    memory = NumpyMemory()
    source, target = np.arange(64, dtype=np.uint8).reshape(2, 2, 16), np.zeros((2, 4, 32), np.uint8)
    here, there = memory.allocate(64), memory.allocate(256)
    memory.zero(there, 256)
    memory.to_device(here, source)
    memory.copy_lines(Lines(there + 8, 32, 128), Lines(here + 4, 16, 32), 6, 2, 2)
    memory.to_host(target, there)
    expected = np.zeros((2, 4, 32), np.uint8)
    expected[:, :2, 8:14] = source[..., 4:10]
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


def test_a_part_that_is_missing_is_said(backend: EngineBackend) -> None:
    with pytest.raises(MissingPartError, match="no part vq_encoder; its parts are prefix, decoder"):
        backend.run(names.VQ_ENCODER, {names.PIXELS: np.zeros((1, 3, 8, 8), np.float32)})
    assert Shape(names.VQ_ENCODER).name == "vq_encoder"
