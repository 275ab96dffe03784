"""The sampling head: on the device, the tokens that the host would draw; what it cannot tell, the host draws."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import editar_rt
from editar_rt import Sampling, names
from editar_rt.backends.engines.backend import EngineBackend
from editar_rt.backends.engines.decoder import EngineDecoder
from editar_rt.backends.engines.emulated import EmulatedEngines, NumpyMemory
from editar_rt.backends.engines.plan import Plan, Shape
from editar_rt.backends.sampler import BY_NOISE, SamplerInputs
from editar_rt.bundle.folder import Bundle
from editar_rt.editor import Editor
from editar_rt.errors import BackendError, OptionError
from editar_rt.generation.decoding import Step, decode
from editar_rt.generation.noise import uniform, words
from editar_rt.generation.sampling import Draw, guide, sample, sample_with_gumbel
from editar_rt.generation.sequence import Sequence
from editar_rt.generation.strategy import Jacobi
from editar_rt.observe.replay import replay
from editar_rt.observe.trace import Trace
from export.bundle_writer import Options, Sources, write_bundle
from export.precision import Storage
from export.sampler_graph import sampler_graph
from tests.conftest import golden_arrays

GOLDEN = golden_arrays("gpt_tiny")
SETTINGS = [
    Sampling(),
    Sampling(greedy=True),
    Sampling(cfg_scale=1.0),
    Sampling(cfg_scale=1.0, greedy=True),
    Sampling(temperature=0.7, top_k=20),
    Sampling(cfg_scale=1.0, temperature=1.5, top_k=3),
    Sampling(top_p=0.8),
    Sampling(top_k=0, temperature=0.5, top_p=0.95),
    Sampling(cfg_scale="linear:1,5"),
    Sampling(cfg_interval=5),
    Sampling(cfg_interval=(3, 9)),
    Sampling(noise="gumbel"),
    Sampling(noise="gumbel", cfg_scale=1.0, temperature=0.7, top_k=20),
    Sampling(noise="gumbel", top_p=0.8),
    Sampling(noise="gumbel", top_k=0, cfg_interval=5),
]


class Drawn:
    """How often a device was asked to draw, did, and could not tell."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = self.done = self.unclear = 0
        step, on_host = EngineDecoder._run_and_draw, Draw.on_host

        def counted(decoder: EngineDecoder, *arguments: Any) -> Any:
            found = step(decoder, *arguments)
            self.asked += 1
            self.done += found is not None
            return found

        def completed(draw: Draw, logits: np.ndarray, drawn: np.ndarray | None = None) -> np.ndarray:
            self.unclear += drawn is not None
            return on_host(draw, logits, drawn)

        monkeypatch.setattr(EngineDecoder, "_run_and_draw", counted)
        monkeypatch.setattr(Draw, "on_host", completed)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    return Drawn(monkeypatch)


@pytest.fixture(scope="module")
def editor(golden_gpt_bundle_delta_head: Path) -> Editor:
    bundle = Bundle.open(golden_gpt_bundle_delta_head)
    return Editor(bundle, EngineBackend(bundle, EmulatedEngines(bundle, 1), Plan((1, 2, 6), (16, 120), (4, 8))))


def steps(
    editor: Editor,
    sampling: Sampling,
    rows: int = 1,
    on_device: bool = True,
    known: Any = None,
    size: int | None = None,
) -> Any:
    """
    Args:
        size: positions of a pass that verifies drafts; None for single steps.
    """
    (inputs,) = editor.inputs(GOLDEN["text"][:1], GOLDEN["image_tokens"][:1])
    scheduler, guided = editor.scheduler(rows, sampling.guided, on_device), sampling.guided
    sequences = []
    for seed in range(sampling.seed, sampling.seed + rows):
        speculation = scheduler.speculation(size, Jacobi(GOLDEN["image_tokens"][0]))
        sequences.append(Sequence(scheduler.join(guided), inputs, sampling, seed, known, 16, speculation))
    return decode(scheduler, sequences)


def tokens(made: Any, rows: int = 1) -> list[list[int]]:
    found: list[list[int]] = np.concatenate([step.tokens for step in made], axis=1).tolist()
    return found


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_tokens_are_the_hosts(editor: Editor, sampling: Sampling, rows: int, drawn: Drawn) -> None:
    """Alone and as variants, guided and not, by engines of all the rows that go together."""
    if rows == 3:  # of which there is an engine for six rows, and none for three
        sampling = replace(sampling, cfg_scale=3.0, cfg_interval=-1)
    for seed in range(4):
        own = replace(sampling, seed=1000 * seed)
        assert tokens(steps(editor, own, rows), rows) == tokens(steps(editor, own, rows, on_device=False), rows)
    # The first token's logits come from a chunk; where guidance begins, the null row catches up.
    assert drawn.done >= 4 * (15 - 1) and drawn.unclear < 0.1 * drawn.done


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_drafts_are_verified_on_the_device(
    editor: Editor, sampling: Sampling, size: int, rows: int, drawn: Drawn
) -> None:
    """With the tokens and logits of the host's sampling."""
    if rows == 3:
        sampling = replace(sampling, cfg_scale=3.0, cfg_interval=-1)
    for seed in range(2):
        own = replace(sampling, seed=1000 * seed)
        here, there = (
            [(step.tokens.tolist(), step.logits.tolist()) for step in steps(editor, own, rows, device, None, size)]
            for device in (True, False)
        )
        assert here == there
    assert any(shape.part == names.SAMPLER and shape.positions == size for shape in editor.backend._programs)  # type: ignore[attr-defined]
    assert drawn.done >= (drawn.asked if rows == 1 else 1)  # variants that accept different lengths may fit no engine
    assert drawn.unclear <= 0.3 * drawn.done  # in a pass with many tokens, one of them is often close to a border


@pytest.fixture(scope="module", params=[256, 4096, 5000])
def session(request: pytest.FixtureRequest) -> tuple[int, onnxruntime.InferenceSession]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = ir.to_proto(sampler_graph(request.param)).SerializeToString()
    return request.param, onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def prepare(sampling: Sampling, scale: float, position: int, size: int, most: int = 1024) -> SamplerInputs | None:
    """For two rows, of which the first is a picture's."""
    row, alone = np.zeros(1, np.int32), np.zeros(1, np.int32)
    draw = Draw(row, alone, (sampling,), np.full((1, 1), scale), (sampling.seed,), (position,))
    return SamplerInputs.of(draw, 2, most, size)


def drawn_by(session: onnxruntime.InferenceSession, logits: np.ndarray, inputs: SamplerInputs, guided: bool) -> int:
    """The token of the first of two rows."""
    inputs = inputs._replace(uncond_rows=np.asarray([1 if guided else 0, 1], np.int32))
    given = {names.NOISE: np.zeros_like(logits[:, None]), **inputs.arrays()}
    return int(session.run(None, {names.LOGITS: logits[:, None], **given})[0][0, 0])


def on_host(logits: np.ndarray, sampling: Sampling, scale: float, position: int) -> int:
    """The token that the host draws from rows with the text and without."""
    row = guide(logits[0], logits[1], scale) if sampling.guided and scale > 1 else logits[0]
    if sampling.noise == "gumbel":
        return sample_with_gumbel(row, sampling, words(sampling.seed, 0, position, len(row)))
    return sample(row, sampling, 0.0 if sampling.greedy else uniform(sampling.seed, 0, position))


@pytest.mark.parametrize("sampling", [s for s in SETTINGS if s.cfg_interval == -1], ids=str)
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_the_graph_draws_what_numpy_draws(session: Any, sampling: Sampling, spread: float) -> None:
    """Flat and steep distributions, vocabularies that fill the blocks of sums and that do not."""
    size, run = session
    rng, unclear, total = np.random.default_rng(0), 0, 40
    scale = float(sampling.scales(16)[7])
    for seed in range(total):
        logits = (rng.standard_normal((2, size)) + 2 * rng.standard_normal(size)).astype(np.float32) * spread
        own = replace(sampling, seed=seed)
        inputs = prepare(own, scale, 7, size)
        if inputs is None:
            pytest.skip("top-p without a top-k is the host's where not all logits are sorted")
        expected = on_host(logits, own, scale, 7)
        found = drawn_by(run, logits, inputs, sampling.guided)
        assert found in (expected, names.UNCLEAR)
        unclear += found == names.UNCLEAR
    assert unclear <= total / 4


def test_what_rounding_could_decide_is_left_to_the_host(session: Any) -> None:
    """Borders between tokens, ties at the border of top-k, ties of the largest, numbers of 0."""
    size, run = session
    logits = np.zeros((2, size), np.float32)
    logits[:, :4] = 5.0  # four tokens of nearly a quarter each

    def settings(top_k: int, number: float) -> SamplerInputs:
        inputs = SamplerInputs.unused(2, 1)
        inputs.numbers[:], inputs.temperature[:], inputs.top_k[:] = number, 0.1, top_k
        return inputs

    for number, token in ((0.1, 0), (0.25, -1), (0.3, 1), (0.5, -1), (0.5 + 1e-7, -1), (0.51, 2), (0.9, 3), (1, -1)):
        assert drawn_by(run, logits, settings(0, number), False) == token
    for top_k in (1, 3):
        assert drawn_by(run, logits, settings(top_k, 0.1), False) == -1
    greedy = prepare(Sampling(greedy=True), 1.0, 0, size)
    assert greedy is not None and drawn_by(run, logits, greedy, False) == -1
    assert drawn_by(run, logits, settings(0, np.nan), False) == -1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("guided", [True, False])
def test_logits_that_are_not_finite_are_left_to_the_host(session: Any, value: float, guided: bool) -> None:
    size, run = session
    logits = np.random.default_rng(0).standard_normal((2, size)).astype(np.float32)
    logits[0, size // 2] = value
    for sampling in (Sampling(), Sampling(greedy=True), Sampling(top_p=0.9, top_k=10)):
        inputs = prepare(sampling, 3.0, 0, size)
        assert inputs is not None and drawn_by(run, logits, inputs, guided) == names.UNCLEAR


def test_fused_guidance_draws_the_same_or_leaves_it_to_the_host(session: Any) -> None:
    """An engine may round null + scale · (cond − null) once where NumPy rounds twice; noise of that size here."""
    size, run = session
    rng, sampling, cleared = np.random.default_rng(0), Sampling(top_k=100), 0
    for seed in range(60):
        logits = (4 * rng.standard_normal((2, size))).astype(np.float32)
        own = replace(sampling, seed=seed)
        push = np.float32(3) * (logits[0] - logits[1])
        once = (logits[1].astype(np.float64) + 3.0 * (logits[0] - logits[1]).astype(np.float64)).astype(np.float32)
        assert (once != logits[1] + push).any()
        # Unguided, from the logits that were rounded once: the bound there is smaller, not larger.
        inputs = prepare(own, 1.0, 7, size)
        assert inputs is not None
        found = drawn_by(run, np.stack([once, once]), inputs, False)
        expected = on_host(logits, own, 3.0, 7)
        assert found in (expected, names.UNCLEAR)
        cleared += found == expected
    assert cleared > 40


def test_logits_are_not_read_and_a_step_is_one_record(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step brings a token a row to the host; logits only where somebody asks."""
    read: list[int] = []
    to_host = NumpyMemory.to_host

    def counted(memory: NumpyMemory, target: np.ndarray, address: int) -> None:
        memory.submit(lambda: read.append(target.nbytes))
        to_host(memory, target, address)

    monkeypatch.setattr(NumpyMemory, "to_host", counted)
    made = steps(editor, Sampling(greedy=True))
    next(made)
    read.clear()
    for step in made:
        assert step.drawn
    assert read == [2 * 4] * 15  # tokens of the picture's row and of its null row
    made = steps(editor, Sampling(greedy=True))
    next(made), read.clear()
    assert next(made).logits.shape == (1, 256)
    assert read == [2 * 4, 2 * 256 * 4]
    plain = steps(editor, Sampling(greedy=True), on_device=False)
    next(plain), read.clear(), next(plain)
    assert read == [2 * 256 * 4]


def test_logits_that_are_asked_for_are_the_hosts(editor: Editor) -> None:
    for sampling in (Sampling(seed=3), Sampling(cfg_scale=1.0)):
        here, there = (
            [step.logits.copy() for step in steps(editor, sampling, on_device=on_device)] for on_device in (True, False)
        )
        assert len(here) == 16 and np.array_equal(here, there)


def test_logits_that_were_written_over_are_not_given(editor: Editor) -> None:
    kept: list[Step] = list(steps(editor, Sampling(greedy=True)))
    with pytest.raises(ValueError, match="read them before the next step"):
        _ = kept[3].logits
    assert kept[0].logits is not None  # of the prefill, on the host


def test_known_tokens_and_rewinding(editor: Editor, drawn: Drawn) -> None:
    whole = np.asarray(tokens(steps(editor, Sampling(seed=4))), np.int32)
    known = whole[0].copy()
    known[[0, 5, 6, 7, 12]] = -1
    assert tokens(steps(editor, Sampling(seed=4), known=known)) == whole.tolist()
    assert drawn.done == 15 + 2  # 6 and 7 follow a token that was drawn; 5 and 12 a chunk


@pytest.fixture(scope="module")
def whole(tiny_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Editor:
    """All parts."""
    folder = tmp_path_factory.mktemp("head") / "bundle"
    write_bundle(folder, tiny_sources, Options(storage=Storage(dialect="delta", sampling_head=True)))
    return editar_rt.load(folder, device="emulated", threads=1)


def edits(editor: Editor, folder: Path) -> Iterator[Any]:
    """What a session does, in tokens and in what it tells of them."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    session, sampling = editor.session(picture), Sampling(seed=7)
    seen: list[tuple[int, int]] = []
    yield session.edit("add a red cube", sampling=sampling, trace=folder / "trace.jsonl").tokens
    trace = Trace.load(folder / "trace.jsonl")
    yield trace.log_probabilities, trace.entropy
    found = replay(editor, trace)
    yield found.compared, found.difference, found.largest_error
    mask = np.zeros((32, 32), bool)
    mask[8:24, 4:28] = True
    masked = session.edit("remove the ball", sampling=sampling, mask=mask, mask_margin=0)
    yield masked.tokens
    options = {"on_progress": lambda *at: seen.append(at), "on_preview": lambda *shown: None}  # as often as time allows
    yield session.edit("make the ball blue", sampling=sampling, preview_share=1.0, **options).tokens
    yield seen
    cancel = threading.Event()
    stopped = session.edit(
        "make the ball blue", sampling=sampling, cancel=cancel, on_progress=lambda done, _: done == 6 and cancel.set()
    )
    yield stopped.finished, stopped.tokens
    yield session.resume(seed=9).tokens
    states = np.random.default_rng(1).standard_normal((1, 120, 64)).astype(np.float32)
    yield editor.score(states, session.condition_tokens, masked.tokens[None])


def test_sessions_do_all_that_they_do_with_the_hosts_sampling(
    whole: Editor, tmp_path: Path, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traces, masks, progress, previews, cancelling, going on, scores: the same to the bit."""
    here = list(edits(whole, tmp_path))
    done = drawn.done
    assert done > 50
    monkeypatch.setattr(EngineDecoder, "draws", False)
    there = list(edits(whole, tmp_path))
    assert drawn.done == done and len(here) == len(there)
    for found, expected in zip(here, there):
        np.testing.assert_equal(found, expected)


def test_rows_that_do_not_go_through_one_engine_are_the_hosts(editor: Editor, drawn: Drawn) -> None:
    """Two pictures with guidance are four rows, and engines have one, two and six."""
    assert tokens(steps(editor, Sampling(), 2), 2) == tokens(steps(editor, Sampling(), 2, on_device=False), 2)
    assert drawn.asked and not drawn.done


def test_an_engine_with_more_rows_than_are_there(golden_gpt_bundle_delta_head: Path, drawn: Drawn) -> None:
    bundle = Bundle.open(golden_gpt_bundle_delta_head)
    wide = Editor(bundle, EngineBackend(bundle, EmulatedEngines(bundle, 1), Plan((3,), (120,))))
    for sampling in (Sampling(seed=2), Sampling(cfg_scale=1.0, seed=2), Sampling(cfg_interval=6, seed=2)):
        assert tokens(steps(wide, sampling)) == tokens(steps(wide, sampling, on_device=False))
    assert drawn.done > 40


def test_settings_that_the_head_does_not_sort() -> None:
    hundred = Sampling(top_k=100)
    assert prepare(hundred, 1.0, 1, 5000, most=100) is not None and prepare(hundred, 1.0, 1, 5000, most=99) is None
    every = prepare(hundred, 1.0, 1, 100, most=10)
    assert every is not None and every.top_k[0] == 0  # all of them
    assert prepare(Sampling(top_k=0, top_p=0.9), 1.0, 1, 5000, most=10) is None
    assert prepare(Sampling(top_k=0), 1.0, 1, 5000, most=10) is not None


def test_pictures_with_settings_of_their_own_are_sampled_together_at_several_positions(session: Any) -> None:
    """Every row and position has its scale, temperature, top-k, top-p and noise."""
    size, run = session
    settings = (
        *(
            Sampling(
                seed=n, temperature=0.5 + n / 4, top_k=[20, 999, 5, 300][n % 4], top_p=[1, 0.9][n % 2], noise=noise
            )
            for n, noise in enumerate(["uniform", "gumbel"] * 3)
        ),
        Sampling(greedy=True),
        Sampling(cfg_scale=1.0),
    )
    pictures, positions, unclear = len(settings), 3, 0
    cond = np.arange(pictures, dtype=np.int32)
    uncond = np.where([each.guided for each in settings], cond + pictures, cond).astype(np.int32)
    for trial in range(10):
        rng = np.random.default_rng(trial)
        logits = (3 * rng.standard_normal((2 * pictures, positions, size))).astype(np.float32)
        scales = np.where(uncond == cond, 1, rng.uniform(1, 5, (positions, pictures))).T
        seeds = tuple(10 * trial + each.seed for each in settings)
        draw = Draw(cond, uncond, settings, scales, seeds, tuple(range(pictures)))
        inputs = SamplerInputs.of(draw, 2 * pictures, 1024, size)
        assert inputs is not None
        found = run.run(None, {names.LOGITS: logits, **inputs.arrays()})[0][:pictures]
        assert ((found == draw.on_host(logits)) | (found == names.UNCLEAR)).all()
        unclear += np.count_nonzero(found == names.UNCLEAR)
    assert unclear < 0.1 * 10 * pictures * positions


def test_what_rounding_could_decide_between_noisy_sums_is_left_to_the_host(session: Any) -> None:
    """Two sums about equal; a best one at the border of top-k that it shares with another."""
    size, run = session
    logits, inputs = np.full((2, size), -5, np.float32), SamplerInputs.unused(2, 1)
    logits[:, :3] = [1.0, 2.0, 1.5]
    noise = np.zeros((2, 1, size), np.float32)
    inputs.numbers[:], inputs.top_k[:] = BY_NOISE, 0
    for own, token in ((0.0, 1), (0.9, 1), (1.0, -1), (1.0 + 1e-7, -1), (1.1, 0)):
        noise[:, :, 0] = own
        assert drawn_by(run, logits, inputs._replace(noise=noise), False) == token
    noise[:] = 0
    noise[:, :, 2] = 5.0
    for top_k, third, token in ((3, 1.0, 2), (2, 1.0, 2), (2, 1.5, -1), (1, 1.0, 1)):
        logits[:, 0], inputs.top_k[:] = third, top_k
        assert drawn_by(run, logits, inputs._replace(noise=noise), False) == token


def test_faulty_logits_are_refused_as_on_the_host(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    made = steps(editor, Sampling())
    next(made)
    backend: Any = editor.backend
    program = backend.program(Shape(names.SAMPLER, rows=2))
    # The decoder's logits of the next step become NaN on their way to the sampler.
    enqueue = type(program.engine).enqueue

    def spoiled(engine: Any) -> None:
        if names.DRAWN in engine._outputs:
            nothing = np.full((2, 1, 256), np.nan, np.float32)
            backend.engines.memory.to_device(engine._addresses[names.LOGITS], nothing)
        enqueue(engine)

    monkeypatch.setattr(type(program.engine), "enqueue", spoiled)
    with pytest.raises(BackendError, match="logits are not finite"):
        next(made)


def test_only_the_dialect_delta_has_a_head(editor: Editor, golden_gpt_bundle_delta: Path) -> None:
    with pytest.raises(OptionError, match="the sampling head needs the dialect delta"):
        Storage(sampling_head=True)
    without = Bundle.open(golden_gpt_bundle_delta)
    assert without.manifest.sampler_top_k is None and editor.bundle.manifest.sampler_top_k == 256
    for bundle, draws in ((without, False), (editor.bundle, True)):
        decoder = EngineBackend(bundle, EmulatedEngines(bundle, 1), Plan((1, 2), (16,))).make_decoder(2, 20)
        assert decoder.draws == draws


def test_a_head_of_the_first_format_is_not_used(golden_gpt_bundle_delta_head: Path, tmp_path: Path) -> None:
    """It has other inputs. The host samples the same tokens."""
    folder = tmp_path / "old"
    shutil.copytree(golden_gpt_bundle_delta_head, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    assert manifest["format_version"] == 2
    manifest["format_version"] = 1
    head = manifest["parts"][names.SAMPLER]
    head["inputs"] = [each for each in head["inputs"] if each["name"] != names.NOISE]
    (folder / "bundle.json").write_text(json.dumps(manifest))
    old = editar_rt.load(folder, device="emulated", threads=1)
    assert names.SAMPLER not in old.bundle.manifest.parts and old.bundle.manifest.sampler_top_k is None
    new = editar_rt.load(golden_gpt_bundle_delta_head, device="emulated", threads=1)
    arguments = GOLDEN["text"][:1], GOLDEN["image_tokens"][:1], Sampling(seed=1)
    assert np.array_equal(old.generate(*arguments), new.generate(*arguments))


def test_a_default_for_noise_needs_the_second_format(tiny_sources: Sources, tmp_path: Path) -> None:
    for sampling, version in (({}, 1), ({"noise": "gumbel"}, 2)):
        made = write_bundle(tmp_path / str(version), tiny_sources, Options(sampling=sampling))
        assert made.format_version == version
    opened = editar_rt.load(tmp_path / "2", threads=1)
    assert opened.default_sampling.noise == "gumbel"
