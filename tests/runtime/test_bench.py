"""Measuring in turns: what is counted, on a subject whose times are known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import editar_rt
from editar_rt import machine
from editar_rt.backends.engines.decoder import EngineDecoder
from editar_rt.errors import OptionError
from editar_rt.generation.sampling import Sampling
from editar_rt.measure.bench import STEP, BundleSubject, Plan, Timing, measure


class Known:
    """Takes `step` seconds a step, by its own account, and notes when it ran."""

    picture_tokens = 11

    def __init__(self, step: float, order: list[float]) -> None:
        self.step, self.order = step, order

    def describe(self) -> dict[str, Any]:
        return {"name": f"{self.step} s"}

    def run(self, plan: Plan) -> Iterator[Timing]:
        self.order.append(self.step)
        yield "prefill", 10 * self.step
        for _ in range(plan.steps or 10):
            yield STEP, self.step

    def bytes_per_step(self, plan: Plan) -> int | None:
        return 1000

    def read_bandwidth(self) -> float | None:
        return 10_000.0

    def shared_bytes(self) -> int:
        return 0


def test_steps_rates_and_the_share_of_the_bandwidth() -> None:
    report = measure([Known(0.2, [])], Plan(repeats=3, warmup=1, steps=5))
    assert report["p50"] == pytest.approx(200) and report["tokens_per_second"] == pytest.approx(5)
    assert report["percent_of_bandwidth"] == pytest.approx(50)  # 1000 bytes in 0.2 s, of 10,000 a second
    assert report["stages"]["decode"]["median_ms"] == pytest.approx(2000)  # all 10 steps of a picture, from 5
    assert report["seconds_per_picture"] == pytest.approx(4)
    assert report["time_to_first_token_ms"] == pytest.approx(2000)


def test_subjects_take_turns_and_their_ratios_are_paired() -> None:
    order: list[float] = []
    report = measure([Known(0.1, order), Known(0.3, order)], Plan(repeats=2, warmup=1))
    assert order == [0.1, 0.3, 0.3, 0.1, 0.1, 0.3]
    assert report["ratios"][0][STEP] == pytest.approx({"median": 3, "min": 3, "max": 3})
    assert report["others"][0]["p50"] == pytest.approx(300)


def test_a_bundle_decodes_where_the_plan_says(golden_gpt_bundle: Path) -> None:
    subject = BundleSubject(editar_rt.load(golden_gpt_bundle), Sampling(cfg_scale=3.0))
    found = [stage for stage, _ in subject.run(Plan(at=140, steps=3))]
    assert found == ["prefill", "next_prefill", *[STEP] * 3]
    few, many = (subject.bytes_per_step(Plan(at=at, steps=1)) for at in (136, 146))
    assert few is not None and many is not None
    layers, width, rows, float32 = 3, 128, 2, 4
    assert many - few == 10 * rows * 2 * layers * width * float32  # ten more positions of keys and values


def test_pages_that_rows_share_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_peak_before_sharing", None)
    shared = iter([1 << 20, 3 << 20])  # after each run, its cache being full
    monkeypatch.setattr(Known, "shared_bytes", lambda subject: next(shared))
    report = measure([Known(0.1, [])], Plan(repeats=1, warmup=1))
    assert report["peak_resident"] - report["peak_memory"] == 3 << 20


def test_a_bundle_with_a_sampling_head_draws_with_it_unless_told_otherwise(
    golden_gpt_bundle_delta_head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, drawn = editar_rt.load(golden_gpt_bundle_delta_head, device="emulated"), []
    draw = EngineDecoder._run_and_draw
    monkeypatch.setattr(EngineDecoder, "_run_and_draw", lambda *call: (drawn.append(1), draw(*call))[1])
    for on_device, count in ((True, 3), (False, 0)):
        subject = BundleSubject(editor, Sampling(), on_device)
        assert subject.describe()["sampling_head"] == on_device
        found = [stage for stage, _ in subject.run(Plan(at=140, steps=3))]
        assert found == ["prefill", "next_prefill", *[STEP] * 3] and len(drawn) == count
        drawn.clear()


def test_numbers_that_no_picture_has_are_refused() -> None:
    with pytest.raises(OptionError, match="at must be 136 to 150 positions, got 151"):
        Plan(at=151).begin(prefix=136, picture=16)
    with pytest.raises(OptionError, match="1 or more"):
        Plan(steps=0)


def test_a_bundle_that_speculates_reports_tokens_per_pass(demo_editor: editar_rt.Editor) -> None:
    plain, fast = (
        measure([BundleSubject(demo_editor, Sampling(seed=1), speculate=way)], Plan(repeats=1, warmup=0))
        for way in (None, 8)
    )
    assert plain["speculate"] is None and plain["tokens_per_pass"] == 1
    assert fast["speculate"] == 8 and fast["tokens_per_pass"] > 1.5
    assert fast["steps"] == plain["steps"] == 63
