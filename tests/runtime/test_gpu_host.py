"""What a GPU host is given: weights that grow again from their names, stages that leave results when they fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from editar_rt.bundle.folder import Bundle
from editar_rt.errors import BundleError
from export.recipe import read_engines
from tests.benchmarks.gpu_host import measure, seeds

ROOT = Path(__file__).parents[2]


def test_seeded_weights_shrink_to_names_and_grow_again(golden_gpt_bundle_delta_fp16: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden_gpt_bundle_delta_fp16, tmp_path / "bundle"))
    before = sum(path.stat().st_size for path in folder.glob("*.data"))
    seeds.shrink(folder, "gpt_tiny/")
    listed = json.loads((folder / "decoder.onnx.seeds.json").read_text())["pieces"]
    assert sum("name" in piece for piece in listed) > 15
    assert not list(folder.glob("*.data"))
    assert sum(path.stat().st_size for path in folder.glob("*.seeds.json")) < before / 10
    with pytest.raises(BundleError, match="lacks"):
        Bundle.open(folder)
    command = [sys.executable, str(ROOT / "tests/benchmarks/gpu_host/seeds.py"), "grow", str(folder)]
    subprocess.run(command, check=True, cwd=tmp_path)
    Bundle.open(folder).check()  # the same bytes


def test_a_stage_that_fails_leaves_its_reason_and_the_rest_go_on(
    golden_gpt_bundle_delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here TensorRT is missing, so that the build fails and nothing is measured."""
    shutil.copytree(golden_gpt_bundle_delta, tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    monkeypatch.setattr(measure, "TARGET", str(Path(measure.__file__).with_name("measured.toml")))
    monkeypatch.setattr(measure, "RTX", False)
    measure.main(tmp_path, 120)
    report = json.loads((tmp_path / "results.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    build, *others = report["stages"]
    assert build["stage"] == "build demo" and build["exit"] == 1
    assert build["errors"].startswith("export: ") and "Traceback" not in build["errors"]
    assert [other["skipped"] for other in others] == ["the build failed"] * 2


def test_no_stage_begins_after_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    measure.main(tmp_path, measure.RESERVE - 1)
    report = json.loads((tmp_path / "results.json").read_text())
    assert {stage["skipped"] for stage in report["stages"]} == {"no time left"}


def test_both_ways_of_sampling_are_measured_and_int4_comes_last(
    golden_gpt_bundle_delta: Path, golden_gpt_bundle_delta_head: Path, tmp_path: Path
) -> None:
    shutil.copytree(golden_gpt_bundle_delta, tmp_path / "demo")
    shutil.copytree(golden_gpt_bundle_delta_head, tmp_path / "seeded")
    (tmp_path / "int4").mkdir()
    names = [name for name, _ in measure.stages(tmp_path)]
    assert names[:2] == ["build demo", "bench demo"] and "bench demo --host-sampling" not in names
    first, second = (names.index(f"bench seeded --repeats 3{more}") for more in ("", " --host-sampling"))
    assert names.index("build seeded") < first < names.index("verify seeded") < second
    assert names[-4:] == ["verify demo", "build int4", "bench int4 --repeats 3", "verify int4"]
    arguments = dict(measure.stages(tmp_path))["bench seeded --repeats 3 --host-sampling"]
    assert arguments[0] == "editar_rt" and "--host-sampling" in arguments


def test_native_is_measured_against_delta_first(golden_gpt_bundle_native: Path, tmp_path: Path) -> None:
    for name in ("demo", "demo-native", "seeded", "seeded-native"):
        shutil.copytree(golden_gpt_bundle_native, tmp_path / name)
    names = [name for name, _ in measure.stages(tmp_path)]
    assert names[:4] == ["build demo", "bench demo", "build demo-native", "bench demo-native"]
    large, small = (names.index(f"bench {name} --repeats 3") for name in ("seeded-native", "seeded"))
    assert names.index("grow seeded-native") < large < names.index("verify seeded-native") < small
    assert names[-1] == "verify demo-native"


def test_passes_that_verify_drafts_are_measured_where_there_are_engines_for_them(
    golden_gpt_bundle_delta: Path, golden_gpt_bundle_delta_head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(golden_gpt_bundle_delta, tmp_path / "demo")
    shutil.copytree(golden_gpt_bundle_delta_head, tmp_path / "seeded-native")
    for recipe, sizes in (("measured.toml", ()), ("measured-rtx.toml", (8,))):
        assert read_engines(str(Path(measure.__file__).with_name(recipe))).drafts == sizes
        monkeypatch.setattr(measure, "RTX", bool(sizes))
        names = [name.removeprefix("bench ") for name, _ in measure.stages(tmp_path) if "--speculate 8" in name]
        assert names == [
            "demo --repeats 3 --speculate 8",
            "seeded-native --repeats 3 --speculate 8",
            "seeded-native --repeats 3 --speculate 8 --host-sampling",
        ] * len(sizes)


def test_the_scripts_are_valid_shell() -> None:
    for script in (ROOT / "tests/benchmarks/gpu_host").glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
