"""The script for CUDA hosts, run as far as a CPU goes; on a GPU it is run by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from click.testing import CliRunner

from tests.cuda_checks import cli


def test_bundles_are_compared_with_the_reference_and_a_failure_hides_no_other(
    golden_gpt_bundle: Path, golden_gpt_bundle_standard: Path, tmp_path: Path
) -> None:
    shutil.copytree(golden_gpt_bundle, tmp_path / "bundles" / "reference")
    shutil.copytree(golden_gpt_bundle_standard, tmp_path / "bundles" / "fp32-standard")
    (tmp_path / "bundles" / "broken").mkdir()
    done = CliRunner().invoke(
        cli, ["run", str(tmp_path / "bundles"), str(tmp_path / "results.json"), "--device", "cpu", "--steps", "4"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "results.json").read_text())["bundles"]
    assert found["broken"]["failed"].startswith("BundleError")
    same = found["fp32-standard"]
    assert same["greedy_first_difference"] is None and max(same["logits_error"].values()) < 2e-4
    assert all(check["holds"] for check in same["self_test"]) and same["benchmark"]["p50"] > 0
    # Captured steps beside plain ones; on a CPU both are plain.
    assert same["plain_greedy_tokens_equal"] and same["drawn_tokens_equal"]
    assert set(same["benchmark"]["ratios"][0]) >= {"prefill", "step"} and "captured" not in same["backend"]
