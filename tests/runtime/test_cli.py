"""The command line as a user runs it, through its exit codes and streams; `test_processes.py` has its processes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import editar_rt
from tests.commands import Command, Done


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(path)
    return path


def refused(done: Done, code: int, *says: str) -> None:
    """One sentence on stderr, nothing on stdout, no traceback."""
    assert done.code == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for words in says:
        assert words in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("editar: ")]) <= 1


def test_edit_writes_a_png_that_carries_its_parameters(
    editar: Command, tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    done = editar("edit", tiny_bundle, picture, "make the ball réd", "-o", out, "--seed", 7, "--top-k", 50, "--json")
    assert done.code == 0, done.stderr
    assert done.stderr == ""  # no progress in a pipe
    document = done.document
    assert document["output"] == str(out) and document["timings"]["total"] > 0
    with Image.open(out) as written:
        chunks = {k.removeprefix("editar:"): v for k, v in written.text.items()}
    assert chunks["instruction"] == "make the ball réd" and chunks["seed"] == "7" and chunks["top_k"] == "50"
    assert chunks.keys() == document["parameters"].keys() and document["parameters"]["seed"] == 7
    assert len(chunks["bundle"]) == 64 and chunks["backend"].startswith("ONNX Runtime")


def test_edit_gives_what_the_api_gives(editar: Command, tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert editar("edit", tiny_bundle, picture, "a ball", "-o", out, "--task", "canny", "--seed", 2).code == 0
    sampling = editar_rt.Sampling(seed=2)
    expected = editar_rt.load(tiny_bundle).edit(picture, "a ball", task="canny", sampling=sampling)
    with Image.open(out) as written:
        assert np.array_equal(np.asarray(written), np.asarray(expected.image))


def test_a_truncated_instruction_warns_once_and_works(
    editar: Command, tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    done = editar("edit", tiny_bundle, picture, "ball " * 5000, "-o", tmp_path / "out.png")
    assert done.code == 0
    assert done.stderr.count("only the first 120 are read") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="command lines are bytes on POSIX alone")
def test_an_instruction_that_is_not_utf8_edits(
    editar: Command, tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    out, trace = tmp_path / "out.png", tmp_path / "trace.jsonl"
    done = editar("edit", tiny_bundle, picture, "ball \udcff", "-o", out, "--trace", trace, "--json")
    assert done.code == 0, done.stderr
    with Image.open(out) as written:
        assert written.text["editar:instruction"] == "ball \ufffd"  # type: ignore[attr-defined]
    assert "ball \ufffd" in json.loads(trace.read_text(encoding="utf-8").splitlines()[0]).values()


def test_a_list_of_instructions_may_begin_with_a_byte_order_mark(
    editar: Command, tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    out, listed = tmp_path / "out.png", tmp_path / "list.txt"
    listed.write_bytes("\ufeffmake the ball red\n".encode())
    assert editar("edit", tiny_bundle, picture, "--instructions", listed, "-o", out).code == 0
    with Image.open(out) as written:
        assert written.text["editar:instruction"] == "make the ball red"  # type: ignore[attr-defined]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_an_output_that_is_full_is_said(tiny_bundle: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "editar_rt", "info", str(tiny_bundle)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.startswith("editar: the output could not be written: No space left")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--top-p", 1.5, "top_p must be in (0, 1], got 1.5"),
        ("--top-k", -1, "top_k must be 0 (off) or more, got -1"),
        ("--seed", -3, "seed must be 0 to"),
        ("--temperature", 0, "temperature must be a finite number above 0"),
        ("--task", "blur", "blur"),
        ("--device", "tpu", "tpu"),
    ],
)
def test_bad_options_exit_2(
    editar: Command, tiny_bundle: Path, picture: Path, tmp_path: Path, option: str, value: object, says: str
) -> None:
    out = tmp_path / "out.png"
    refused(editar("edit", tiny_bundle, picture, "x", "-o", out, option, value), 2, says)
    assert not out.exists()


def test_bad_pictures_bundles_and_outputs_exit_1(
    editar: Command, tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    refused(editar("edit", tiny_bundle, tmp_path / "no.png", "x", "-o", out), 1, "there is no picture")
    refused(editar("edit", tmp_path / "no", picture, "x", "-o", out), 1, "is not a folder")
    refused(editar("edit", tiny_bundle, picture, "x", "-o", tmp_path / "no" / "out.png"), 1, "there is no folder")
    refused(editar("edit", tiny_bundle, picture, "x", "-o", tmp_path), 1, "it is a folder")
    assert not out.exists()


def test_a_spoiled_bundle_exits_1(editar: Command, tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (bundle / "tokenizer.json").write_text("{}")
    refused(editar("edit", bundle, picture, "x", "-o", tmp_path / "out.png"), 1, "tokenizer.json")
    refused(editar("info", bundle), 1, "tokenizer.json")


def test_ctrl_c_exits_130_and_leaves_nothing(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    # Slow enough to be met in the middle: a demo of very many pictures.
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    add_samples(bundle, picture, 5000)
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "editar_rt", "demo", "--bundle", str(bundle), "-o", str(folder)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell has its background jobs ignore it
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    deadline = time.monotonic() + 60
    try:
        while not list(folder.glob("*.png")):
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    finally:
        running.kill()  # one that did not stop would run for minutes
    assert running.returncode == 130
    assert errors.strip() == "editar: stopped"
    assert not list(folder.glob("*.partial*")) and not (folder / "contact-sheet.png").exists()
    for path in folder.glob("*.png"):
        with Image.open(path) as written:
            written.load()


def add_samples(bundle: Path, picture: Path, count: int) -> None:
    """Give a bundle sample pictures, as the exporter does with --samples."""
    from editar_rt.bundle.folder import list_files

    (bundle / "samples").mkdir()
    shutil.copy(picture, bundle / "samples" / "a.png")
    entries = [{"picture": "samples/a.png", "task": "edit", "instruction": "add a ball"}] * count
    (bundle / "samples" / "samples.json").write_text(json.dumps({"samples": entries}))
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["samples"] = "samples/samples.json"
    manifest["files"] = {name: vars(info) for name, info in list_files(bundle).items()}
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def test_demo_edits_the_samples_and_makes_a_contact_sheet(
    editar: Command, tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    add_samples(bundle, picture, 2)
    done = editar("demo", "--bundle", bundle, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.stderr
    document = done.document
    assert len(document["pictures"]) == 2 and Path(document["contact_sheet"]).is_file()


def test_demo_without_a_bundle_says_where_to_run_it(editar: Command, tmp_path: Path) -> None:
    refused(editar("demo", "-o", tmp_path / "out", "--bundle", tmp_path / "none"), 1, "is not a folder")


def test_info_says_what_a_bundle_holds(editar: Command, tiny_bundle: Path) -> None:
    done = editar("info", tiny_bundle, "--check")
    assert done.code == 0
    for words in ("32×32 pixels, 16 tokens", "3 layers", "decoder", "fp32", "all hashes checked"):
        assert words in done.stdout
    document = editar("info", tiny_bundle, "--json").document
    assert document["model"]["picture_tokens"] == 16 and document["precision"] == "fp32"


def test_bench_reports_rates_and_memory(editar: Command, tiny_bundle: Path) -> None:
    done = editar("bench", tiny_bundle, "--repeats", 2)
    assert done.code == 0, done.stderr
    *table, last = done.stdout.splitlines()
    assert any("tokens/s" in line for line in table)
    report = json.loads(last)  # in a pipe the document comes behind the table, with --json alone
    alone = editar("bench", tiny_bundle, "--repeats", 1, "--warmup", 0, "--steps", 2, "--json")
    assert len(alone.stdout.splitlines()) == 1
    assert report["tokens_per_second"] > 0 and report["p50"] <= report["p95"] <= report["p99"]
    assert report["peak_memory"] > 0 and report["percent_of_bandwidth"] > 0
    assert set(report["stages"]) == {"text", "encode", "prefill", "next_prefill", "decode", "pixels"}
    assert report["steps"] == 15  # the first of 16 tokens comes from the prefill


def test_bench_draws_where_a_step_goes(editar: Command, tiny_bundle: Path, tmp_path: Path) -> None:
    chart = tmp_path / "chart.svg"
    done = editar("bench", tiny_bundle, "--repeats", 1, "--steps", 4, "--at", 140, "--chart", chart, "--json")
    assert done.code == 0, done.stderr
    kinds = done.document["step_ms_by_kind"]
    assert kinds["projections, feed-forward"] > 0 and kinds["attention, cache"] > 0
    assert "attention, cache" in chart.read_text()


def test_bench_refuses_what_it_cannot_measure_or_draw(
    editar: Command, tiny_bundle: Path, golden_gpt_bundle_delta: Path, tmp_path: Path
) -> None:
    refused(editar("bench", tiny_bundle, "--steps", 4, "--at", 150), 2, "at must be 136 to 147 positions, got 150")
    refused(
        editar("bench", tiny_bundle, "--chart", tmp_path / "chart.jpg"), 1, "a chart's name must end with .png or .svg"
    )
    compared = ("--compare", golden_gpt_bundle_delta, "--chart", tmp_path / "chart.png")
    refused(editar("bench", tiny_bundle, *compared), 1, "its dialect is delta); leave --chart out")
