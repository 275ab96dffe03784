"""Traces: what was drawn and from what, written, read and run again."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import pytest

import editar_rt
from editar_rt.errors import OptionError, TraceError
from editar_rt.observe.heatmap import COLOURS, heatmap
from editar_rt.observe.replay import replay
from editar_rt.observe.trace import Trace, uncertainty
from tests.runtime.demo import BALL, COUNT, PICTURE, WORDS

Sampling = editar_rt.Sampling


@pytest.fixture(scope="module")
def traced(demo_editor: editar_rt.Editor, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trace]:
    """Two variants inside a mask, guided by a schedule."""
    path = tmp_path_factory.mktemp("traces") / "t.jsonl"
    sampling = Sampling(seed=4, cfg_scale="linear:1,4", temperature=0.8)
    demo_editor.variants(PICTURE, WORDS, 2, sampling=sampling, mask=BALL, trace=path)
    return path, Trace.load(path)


def test_a_trace_tells_what_was_drawn_with_which_probability(demo_editor: editar_rt.Editor, tmp_path: Path) -> None:
    """Against the distributions of the forced scores, computed in one pass."""
    sampling = Sampling(seed=2, cfg_scale=3.0, temperature=0.7, top_k=50)
    session = demo_editor.session(PICTURE)
    result = session.edit(WORDS, sampling=sampling, trace=tmp_path / "t.npz")
    trace = Trace.load(tmp_path / "t.npz")
    assert np.array_equal(trace.tokens[0], result.tokens) and trace.drawn.all() and trace.header.seeds == [2]
    cond, null = demo_editor.score(demo_editor.encode_text([WORDS]), session.condition_tokens, result.tokens[None])
    expected = [uncertainty(row, int(t), sampling) for row, t in zip((null + 3 * (cond - null))[0], result.tokens)]
    # One pass and single steps differ in the last bits of float32 logits, which the temperature and guidance multiply.
    np.testing.assert_allclose(trace.log_probabilities[0], [e[0] for e in expected], atol=1e-3)
    np.testing.assert_allclose(trace.entropy[0], [e[1] for e in expected], atol=1e-3)
    assert trace.seconds.sum() <= result.timings["decode"]


def test_uncertainty_is_of_what_top_k_and_the_temperature_leave() -> None:
    logits = np.log(np.float32([0.5, 0.25, 0.125, 0.125]))
    assert uncertainty(logits, 0, Sampling(top_k=0)) == pytest.approx((np.log(0.5), 1.75 * np.log(2)), abs=1e-6)
    assert uncertainty(logits, 1, Sampling(top_k=2)) == pytest.approx((np.log(1 / 3), 0.6365142), abs=1e-6)
    assert uncertainty(logits, 0, Sampling(top_k=1)) == (0.0, 0.0)
    assert uncertainty(logits, 3, Sampling(greedy=True))[0] == pytest.approx(np.log(0.125), abs=1e-6)


@pytest.mark.parametrize("name", ["again.jsonl", "again.npz"])
def test_both_formats_keep_everything(traced: tuple[Path, Trace], tmp_path: Path, name: str) -> None:
    _, trace = traced
    trace.save(tmp_path / name)
    again = Trace.load(tmp_path / name)
    assert again.header == trace.header
    for field in ("tokens", "drawn", "log_probabilities", "entropy", "seconds"):
        np.testing.assert_array_equal(getattr(again, field), getattr(trace, field))
    assert [np.asarray(p).tolist() for p in again.pictures] == [np.asarray(p).tolist() for p in trace.pictures]


def test_lines_can_be_read_without_this_project(traced: tuple[Path, Trace]) -> None:
    path, _ = traced
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["instruction"] == WORDS and lines[0]["sampling"]["cfg_scale"] == "linear:1,4"
    assert [line["position"] for line in lines[1:-1]] == list(range(COUNT))
    drawn = [line for line in lines[1:-1] if line["drawn"]]
    assert 0 < len(drawn) < COUNT and all(len(line["entropy"]) == 2 for line in drawn)


def test_a_replay_finds_the_same_tokens(demo_editor: editar_rt.Editor, traced: tuple[Path, Trace]) -> None:
    _, trace = traced
    found = replay(demo_editor, trace)
    assert found.difference is None and found.compared == trace.drawn.sum() and found.largest_error < 1e-4


def test_a_replay_tells_the_first_difference_and_its_margin(
    demo_editor: editar_rt.Editor, traced: tuple[Path, Trace]
) -> None:
    _, trace = traced
    tokens, at = trace.tokens.copy(), int(np.flatnonzero(trace.drawn)[5])
    real = int(tokens[1, at])
    tokens[1, at] = (real + 1) % 1024
    found = replay(demo_editor, dataclasses.replace(trace, tokens=tokens))
    assert found.compared == 5 and found.difference is not None
    first = found.difference
    assert (first.variant, first.position, first.traced, first.found) == (1, at, (real + 1) % 1024, real)
    assert np.isfinite(first.margin)


def test_a_cancelled_edit_is_replayed_as_far_as_it_went(demo_editor: editar_rt.Editor, tmp_path: Path) -> None:
    cancel = threading.Event()
    demo_editor.edit(
        PICTURE,
        WORDS,
        cancel=cancel,
        on_progress=lambda done, total: cancel.set() if done == 20 else None,
        trace=tmp_path / "t.jsonl",
    )
    trace = Trace.load(tmp_path / "t.jsonl")
    assert trace.header.done == 20
    found = replay(demo_editor, trace)
    assert found.difference is None and found.compared == 20


def test_a_trace_of_states_from_elsewhere_wants_the_same_again(demo_editor: editar_rt.Editor, tmp_path: Path) -> None:
    states = demo_editor.encode_text(["remove the cube"])
    demo_editor.edit(PICTURE, "(recorded only)", text_states=states, trace=tmp_path / "t.npz")
    trace = Trace.load(tmp_path / "t.npz")
    assert replay(demo_editor, trace, states).difference is None
    for other in (None, states + 1):
        with pytest.raises(TraceError, match="give the same file with --text-states"):
            replay(demo_editor, trace, other)


def test_another_bundles_trace_is_refused_in_one_sentence(
    demo_editor: editar_rt.Editor, traced: tuple[Path, Trace]
) -> None:
    header = dataclasses.replace(traced[1].header, bundle="0" * 64)
    with pytest.raises(
        TraceError, match=r"another bundle \(fingerprint 000000000000…\) than .* on the bundle that made"
    ):
        replay(demo_editor, dataclasses.replace(traced[1], header=header))


def spoilt(path: Path, change: dict[str, object], line: int) -> str:
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    lines[line] |= change
    return "".join(json.dumps(each) + "\n" for each in lines)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"format": "other"}, 0),
        ({"format_version": 2}, 0),
        ({"seeds": []}, 0),
        ({"seeds": [1, 2, 3]}, 0),
        ({"sampling": {"top_p": 9}}, 0),
        ({"unknown": 1}, 0),
        ({"done": 70}, 0),
        ({"tokens": [1]}, 1),
        ({"tokens": [-5, 2]}, 1),
        ({"tokens": [2**40, 2]}, 1),
        ({"position": 7}, 1),
        ({"pictures": ["AAAA"]}, -1),
    ],
)
def test_damaged_traces_are_refused_in_one_sentence(
    traced: tuple[Path, Trace], tmp_path: Path, change: dict[str, object], line: int
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(spoilt(traced[0], change, line))
    with pytest.raises(TraceError, match="is not a trace .* make one with: editar edit --trace"):
        Trace.load(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]\n[]\n", b"PK\x03\x04 no zip", b"\xff\xfe", b"[" * 100_000])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(TraceError, match="is not a trace"):
        Trace.load(tmp_path / "t.jsonl")


def test_missing_and_badly_named_files_are_refused(demo_editor: editar_rt.Editor, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read"):
        Trace.load(tmp_path / "none.jsonl")
    with pytest.raises(OptionError, match="a trace must be named .jsonl or .npz, got t.json"):
        demo_editor.edit(PICTURE, WORDS, trace=tmp_path / "t.json")
    with pytest.raises(TraceError, match="cannot write"):
        demo_editor.edit(PICTURE, WORDS, trace=tmp_path / "none" / "t.npz")


# Heat maps.


def test_a_heat_map_paints_drawn_cells_by_their_entropy_and_leaves_known_ones(traced: tuple[Path, Trace]) -> None:
    _, trace = traced
    painted = np.asarray(heatmap(trace, variant=1, side=256)).astype(int)
    plain, under = painted[12:268, 12:268], painted[12:268, 280:536]
    cells = np.abs(plain - under).sum(axis=2).reshape(8, 32, 8, 32).sum(axis=(1, 3)) > 0
    assert np.array_equal(cells.ravel(), trace.drawn)
    most = int(np.nanargmax(trace.entropy[1]))
    row, column = most // 8 * 32 + 16, most % 8 * 32 + 16
    # 65 % of the brightest colour; 255 · 0.65 is cut to a whole number, and so is the mixture.
    mixed = 0.65 * COLOURS[-1] + 0.35 * plain[row, column]
    np.testing.assert_allclose(under[row, column], mixed, atol=2)


def test_what_cannot_be_painted_is_refused(traced: tuple[Path, Trace]) -> None:
    _, trace = traced
    with pytest.raises(OptionError, match="variant must be 0 to 1, got 2"):
        heatmap(trace, variant=2)
    with pytest.raises(OptionError, match="measure must be one of entropy, surprise"):
        heatmap(trace, measure="beauty")
    with pytest.raises(TraceError, match="contains no picture"):
        heatmap(dataclasses.replace(trace, pictures=[]))
    with pytest.raises(TraceError, match="no token was sampled"):
        heatmap(dataclasses.replace(trace, drawn=np.zeros(COUNT, bool)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bundle", 5), ("backend", None), ("instruction", ["x"]), ("task", {}), ("sampling", []), ("seeds", 3),
        ("seeds", [1.5]), ("condition_tokens", ["a"]), ("done", "all"), ("done", True), ("timings", {"decode": "long"}),
        ("text_states", 7), ("sampling", {"top_k": "many"}), ("sampling", {"unknown": 1}),
    ],
)  # fmt: skip
def test_a_header_of_other_types_is_one_sentence(
    traced: tuple[Path, Trace], tmp_path: Path, field: str, value: object
) -> None:
    lines = traced[0].read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {field: value})
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    with pytest.raises(TraceError, match="is not a trace .*; make one with"):
        Trace.load(tmp_path / "t.jsonl")
