"""Weights kept on disk as this machine's processor wants them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import editar_rt
from editar_rt.backends import kept_folder
from editar_rt.backends.ort import pages, prepacked
from tests.runtime import crafted

RUN = (
    "import editar_rt.backends.ort.prepacked as p, editar_rt, sys; p.PAYS_FROM = 0; "
    "print(editar_rt.load(sys.argv[1], 'cpu').backend.session('decoder') is not None)"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that takes the tests' small bundles too."""
    monkeypatch.setattr(prepacked, "PAYS_FROM", 0)
    monkeypatch.setenv(kept_folder.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixels(bundle: Path) -> np.ndarray:
    """Of a crafted bundle, whose one graph opens at once."""
    return editar_rt.load(bundle, "cpu", 1).decode_tokens(np.arange(4, dtype=np.int32)[None])


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


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    """One bit, between the pages that are looked at each time, and the file's time set back."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[min(kept_folder.PAGE + 100, len(content) // 2)] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("name", ["graph.onnx", "graph.onnx.data", kept_folder.SEAL])
@pytest.mark.parametrize("damage", [zeros, flipped, truncated, Path.unlink], ids=lambda damage: damage.__name__)
def test_a_damaged_one_is_made_again(tmp_path: Path, cache: Path, damage: Callable[[Path], None], name: str) -> None:
    bundle = crafted.write_bundle(tmp_path / "bundle", crafted.wide())
    plain = pixels(bundle)
    whole = {path.name: path.read_bytes() for path in cache.rglob("graph*")}
    (kept,) = cache.rglob(name)
    damage(kept)
    assert np.array_equal(pixels(bundle), plain)
    assert {path.name: path.read_bytes() for path in cache.rglob("graph*")} == whole
    assert [kept_folder.is_as_sealed(folder) for folder in cache.iterdir()] == [True]


def test_one_that_was_copied_is_hashed_once_and_kept(tmp_path: Path, cache: Path) -> None:
    bundle = crafted.write_bundle(tmp_path / "bundle", crafted.wide())
    pixels(bundle)
    shutil.copytree(cache, tmp_path / "copy")
    (folder,) = (tmp_path / "copy").iterdir()
    seal = (folder / kept_folder.SEAL).read_text()
    assert kept_folder.is_as_sealed(folder) and (folder / kept_folder.SEAL).read_text() != seal


def test_one_that_no_longer_opens_is_gone_without(tmp_path: Path, cache: Path) -> None:
    bundle = crafted.write_bundle(tmp_path / "bundle", crafted.wide())
    plain = pixels(bundle)
    (folder,) = cache.iterdir()
    (folder / "graph.onnx").write_bytes(b"not a graph")
    kept_folder._seal(folder)
    assert np.array_equal(pixels(bundle), plain) and not folder.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
@pytest.mark.parametrize("limit", [100, 10_000])
def test_a_disk_that_fills_up_costs_nothing_but_the_time(tmp_path: Path, cache: Path, limit: int) -> None:
    import resource

    bundle = crafted.write_bundle(tmp_path / "bundle", crafted.wide())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # writing fails from there on
    try:
        found = pixels(bundle)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(cache.iterdir()) == []
    assert np.array_equal(found, pixels(bundle))


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_leftovers_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path: Path, cache: Path) -> None:
    old, dead, young = (cache / f"{name}{kept_folder.PARTIAL}1-0" for name in ("old", "dead", "young"))
    for folder in (old, dead, young):
        folder.mkdir(parents=True)
        (folder / "graph.onnx.data").touch()
    (dead / kept_folder.LOCK).touch()
    for path in (old, old / "graph.onnx.data"):
        os.utime(path, (0, 0))
    with kept_folder.making(cache / "living") as living:
        pixels(crafted.write_bundle(tmp_path / "bundle", crafted.wide()))
        left = set(cache.glob(f"*{kept_folder.PARTIAL}*"))
    assert left == {young, living}


def test_it_can_be_refused(golden_gpt_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kept_folder.VARIABLE, kept_folder.OFF)
    tokens(golden_gpt_bundle)
    assert not cache.exists()


def test_a_place_that_cannot_be_written_is_gone_without(
    golden_gpt_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepacked, "PAYS_FROM", 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv(kept_folder.VARIABLE, str(tmp_path / "file" / "cache"))
    assert tokens(golden_gpt_bundle).shape == (1, 16)


def test_two_processes_that_start_at_once_agree(golden_gpt_bundle: Path, cache: Path) -> None:
    command = [sys.executable, "-c", RUN, str(golden_gpt_bundle)]
    running = [subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in running] == ["True", "True"]
    assert [path.name for path in cache.rglob("*.onnx")] == ["graph.onnx"]
    assert not list(cache.rglob("*partial*"))
