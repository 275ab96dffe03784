"""The PyTorch model as a subject of the benchmark."""

from __future__ import annotations

from pathlib import Path

from tests.commands import Command
from tests.conftest import GPT_TINY_HEADS, golden_weights


def test_the_model_is_measured_in_turns_with_a_bundle(
    exporter: Command, golden_gpt_bundle: Path, tmp_path: Path
) -> None:
    import torch

    checkpoint = tmp_path / "transformer.pt"
    torch.save({"model": golden_weights("gpt_tiny")}, checkpoint)
    command = ["bench-reference", checkpoint, "--heads", GPT_TINY_HEADS, "--compare", golden_gpt_bundle]
    options = ["--mode", "fp32", "--mode", "bf16", "--repeats", 1, "--steps", 2, "--at", 140, "--json"]
    done = exporter(*command, *options)
    assert done.code == 0, done.stderr
    report = done.document
    assert report["name"] == golden_gpt_bundle.name
    assert [other["precision"] for other in report["others"]] == ["fp32", "bf16"]
    assert all(other["steps"] == 2 and other["p50"] > 0 for other in report["others"])
    # bfloat16 halves what is read.
    assert report["others"][0]["bytes_per_step"] == 2 * report["others"][1]["bytes_per_step"]
    assert set(report["ratios"][0]) == {"prefill", "step"}
