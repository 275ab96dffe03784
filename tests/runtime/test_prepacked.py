"""Weights kept on disk as this machine's processor wants them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import editar_rt
from editar_rt.backends.ort import pages, prepacked

RUN = (
    "import editar_rt.backends.ort.prepacked as p, editar_rt, sys; p.PAYS_FROM = 0; "
    "print(editar_rt.load(sys.argv[1], 'cpu').backend.session('decoder') is not None)"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that takes the tests' small bundles too."""
    monkeypatch.setattr(prepacked, "PAYS_FROM", 0)
    monkeypatch.setenv(prepacked.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def tokens(bundle: Path, **options: bool) -> np.ndarray:
    editor = editar_rt.load(bundle, "cpu", **options)
    states = np.random.default_rng(0).standard_normal((1, 120, editor.model.text_dim)).astype(np.float32)
    return editor.generate(states, None, editar_rt.Sampling(seed=3))


def test_a_kept_graph_gives_the_same_tokens_and_is_made_once(golden_gpt_bundle: Path, cache: Path) -> None:
    plain = tokens(golden_gpt_bundle, cache=False)
    assert not cache.exists()
    assert np.array_equal(tokens(golden_gpt_bundle), plain)
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert [path.name for path in sorted(kept) if path.suffix == ".onnx"] == ["graph.onnx"] * 2  # prefix, decoder
    assert np.array_equal(tokens(golden_gpt_bundle), plain)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == kept


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped where")
def test_what_opening_reads_of_the_weights_is_not_kept(
    golden_gpt_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resident(found: Callable[[pages.Mapping], int]) -> int:
        return sum(found(m) for m in pages.mappings() if m.file.startswith(str(cache)))

    editor = editar_rt.load(golden_gpt_bundle, "cpu")
    editor.backend.session("decoder")
    assert resident(lambda m: m.size) and resident(lambda m: m.resident)  # too small to be worth it
    monkeypatch.setattr(pages, "WORTH", 0)
    again = editar_rt.load(golden_gpt_bundle, "cpu")
    again.backend.session("decoder")
    assert resident(lambda m: m.resident) == 0


def test_a_damaged_one_is_made_again(golden_gpt_bundle: Path, cache: Path) -> None:
    plain = tokens(golden_gpt_bundle)
    for path in cache.rglob("*.data"):
        path.write_bytes(path.read_bytes()[:100])
    assert np.array_equal(tokens(golden_gpt_bundle), plain)
    assert all(path.stat().st_size > 100 for path in cache.rglob("*.data"))


def test_it_can_be_refused(golden_gpt_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(prepacked.VARIABLE, prepacked.OFF)
    tokens(golden_gpt_bundle)
    assert not cache.exists()


def test_a_place_that_cannot_be_written_is_gone_without(
    golden_gpt_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepacked, "PAYS_FROM", 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv(prepacked.VARIABLE, str(tmp_path / "file" / "cache"))
    assert tokens(golden_gpt_bundle).shape == (1, 16)


def test_two_processes_that_start_at_once_agree(golden_gpt_bundle: Path, cache: Path) -> None:
    command = [sys.executable, "-c", RUN, str(golden_gpt_bundle)]
    running = [subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in running] == ["True", "True"]
    assert [path.name for path in cache.rglob("*.onnx")] == ["graph.onnx"]
    assert not list(cache.rglob("*partial*"))
