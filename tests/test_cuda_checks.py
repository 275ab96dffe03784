"""The script for CUDA hosts, run as far as a CPU goes; on a GPU it is run by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from editar_rt.generation.decoding import Step
from tests.benchmarks import cuda_checks
from tests.benchmarks.cuda_checks import cli, first_difference, outcome


def run(folder: Path, results: Path, *options: str) -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["run", str(folder), str(results), "--device", "cpu", "--steps", "4", *options])
    assert done.exit_code == 0, done.output
    return json.loads(results.read_text(encoding="utf-8"))


def test_bundles_are_compared_with_the_reference_and_a_failure_hides_no_other(
    golden_gpt_bundle: Path, golden_gpt_bundle_standard: Path, tmp_path: Path
) -> None:
    shutil.copytree(golden_gpt_bundle, tmp_path / "bundles" / "reference")
    shutil.copytree(golden_gpt_bundle_standard, tmp_path / "bundles" / "fp32-standard")
    (tmp_path / "bundles" / "broken").mkdir()
    report = run(tmp_path / "bundles", tmp_path / "results.json")
    found = report["bundles"]
    assert "BundleError" in found["broken"]["failed"] and "(CPU)" in report["reference"]["backend"]
    same = found["fp32-standard"]
    assert same["greedy_first_difference"] is None and max(same["logits_error"].values()) < 2e-4
    assert all(check["holds"] for check in same["self_test"]) and same["benchmark"]["p50"] > 0
    # Captured steps beside plain ones; on a CPU both are plain.
    assert same["captured_and_plain_first_difference"] == {"greedy": None, "drawn": None}
    assert same["drafted_and_plain_first_difference"] == {"greedy": None, "drawn": None}
    assert same["benchmark"]["others"][1]["tokens_per_pass"] >= 1
    assert set(same["benchmark"]["ratios"][0]) >= {"prefill", "step"} and "captured" not in same["backend"]
    assert report["hardware"] and same["gpu"] is None
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["results.json"]


def test_a_reference_that_fails_and_time_that_is_up_are_told_of_each(golden_gpt_bundle: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(golden_gpt_bundle, tmp_path / "bundles" / name)
    report = run(tmp_path / "bundles", tmp_path / "results.json", "--limit", "0.01")
    assert {name: found["failed"] for name, found in report["bundles"].items()} == {
        "a": "no end within 0.01 s",
        "b": "no end within 0.01 s",
    }
    assert "failed" in report["reference"]


@pytest.mark.parametrize(
    ("stage", "failed"),
    [
        ({"exit": -11, "document": None, "errors": "lost"}, "ended by signal 11"),
        ({"exit": 1, "document": None, "errors": "Traceback\nValueError: no\n"}, "ValueError: no"),
        ({"exit": 0, "document": None, "errors": ""}, "exit 0"),
    ],
)
def test_how_a_process_ended_is_said(stage: dict[str, Any], failed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_checks, "run_stage", lambda *_: stage | {"seconds": 1.5})
    found = outcome(["check"], 10)
    assert found["failed"] == failed and found["seconds"] == 1.5


def test_the_results_name_a_bundle_before_it_runs(
    golden_gpt_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that one that takes the machine with it is known."""
    (tmp_path / "bundles" / "fatal").mkdir(parents=True)
    seen: list[dict[str, Any]] = []

    def stands_in(arguments: list[str], _: float) -> dict[str, Any]:
        if arguments[0] == "check":
            seen.append(json.loads((tmp_path / "results.json").read_text())["bundles"])
        return {"seconds": 0}

    monkeypatch.setattr(cuda_checks, "outcome", stands_in)
    run(tmp_path / "bundles", tmp_path / "results.json")
    assert seen == [{"fatal": {"began": True}}]


def test_the_first_difference_comes_with_its_margin_and_the_error_there() -> None:
    def steps(*rows: list[float]) -> Iterator[Step]:
        for position, row in enumerate(rows):
            logits = np.asarray([row], np.float32)
            yield Step(position, logits.argmax(axis=1, keepdims=True).astype(np.int32), lambda logits=logits: logits)

    ours, theirs = ([1.0, 4.0], [8.0, 7.75]), ([1.0, 3.0], [7.5, 8.0])
    assert first_difference(steps(*ours), steps(*theirs)) == {
        "position": 1,
        "margin": 0.0625,
        "logits_error": 0.0625,
    }
    assert first_difference(steps(*ours), steps(*ours)) is None
