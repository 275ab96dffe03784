"""Kept weights: the folders of both runtimes are the same ones, whatever happens to them."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import editar_rt
from editar_rt.backends import kept_folder
from editar_rt.backends.ort import prepacked
from editar_rt.images.pixels import to_pictures
from tests.cpp.inside import Inside
from tests.cpp.library import Library, open_library
from tests.runtime import crafted
from tests.runtime.test_prepacked import flipped, truncated, zeros

WIDTH = 81920  # whose weights of 17 MB are worth keeping
TOKENS = np.arange(4, dtype=np.int32)[None]
# Opens a bundle with kept weights, by a C++ library or by Python.
OPENS = """
import sys
from pathlib import Path
from tests.cpp import test_prepacked as t
bundle, library = Path(sys.argv[1]), sys.argv[2]
pixels = t.mine(t.Library(Path(library)), bundle) if library else t.theirs(bundle)
print(pixels.tobytes().hex())
"""


@pytest.fixture(scope="module")
def library() -> Library:
    return open_library()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one graph, which opens at once."""
    return crafted.write_bundle(tmp_path_factory.mktemp("wide") / "bundle", crafted.wide(WIDTH))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv(kept_folder.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def mine(library: Library, bundle: Path, **options: object) -> np.ndarray:
    """Pixels by the C++ runtime."""
    model = library.open(bundle, threads=1, **options)
    pixels = model.decode_tokens(TOKENS)[0]
    model.close()
    return pixels


def theirs(bundle: Path, cache: bool = True) -> np.ndarray:
    """Pixels by Python's."""
    return to_pictures(editar_rt.load(bundle, "cpu", 1, cache=cache).decode_tokens(TOKENS))[0]


@pytest.fixture(scope="module")
def plain(bundle: Path) -> np.ndarray:
    """Pixels without kept weights."""
    return theirs(bundle, cache=False)


def files(cache: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and times of a cache's files by their names in it."""
    paths = [path for path in cache.rglob("*") if path.is_file()]
    return {str(path.relative_to(cache)): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_the_bundle_is_just_worth_keeping(bundle: Path) -> None:
    size = sum(path.stat().st_size for path in bundle.glob("*.onnx*"))
    assert prepacked.PAYS_FROM <= size < 1.1 * prepacked.PAYS_FROM


def test_each_runtime_opens_what_the_other_kept(
    library: Library, bundle: Path, plain: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for name, first, second in (("cpp", mine, theirs), ("python", theirs, mine)):
        monkeypatch.setenv(kept_folder.VARIABLE, str(tmp_path / name))
        for open_it in (first, second):
            pixels = open_it(library, bundle) if open_it is mine else open_it(bundle)
            assert np.array_equal(pixels, plain)
            made.append(files(tmp_path / name))
    assert made[0] == made[1] and made[2] == made[3]  # made once
    assert made[0].keys() == made[2].keys()
    for name in made[0]:
        if not name.endswith(kept_folder.SEAL):  # which has the files' times
            assert made[0][name][0] == made[2][name][0]
    (folder,) = (tmp_path / "cpp").iterdir()
    assert [path.stat().st_mode & 0o777 for path in (folder.parent, folder)] == [0o700, 0o700]


def test_a_damaged_one_is_made_again(library: Library, bundle: Path, plain: np.ndarray, cache: Path) -> None:
    theirs(bundle)
    whole = files(cache)
    (weights,) = cache.rglob("*.data")
    flipped(weights)
    assert np.array_equal(mine(library, bundle), plain)
    again = files(cache)
    assert {name: content for name, (content, _) in again.items() if "graph" in name} == {
        name: content for name, (content, _) in whole.items() if "graph" in name
    }
    assert [kept_folder.is_as_sealed(folder) for folder in cache.iterdir()] == [True]


def test_one_that_no_longer_opens_is_gone_without(
    library: Library, bundle: Path, plain: np.ndarray, cache: Path
) -> None:
    mine(library, bundle)
    (folder,) = cache.iterdir()
    (folder / prepacked.GRAPH).write_bytes(b"not a graph")
    kept_folder._seal(folder)
    assert np.array_equal(mine(library, bundle), plain) and not folder.exists()


@pytest.mark.parametrize("limit", [100, 10_000, 20_000_000])
def test_a_disk_that_fills_up_costs_nothing_but_the_time(
    library: Library, bundle: Path, plain: np.ndarray, cache: Path, limit: int
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # writing fails from there on
    try:
        found = mine(library, bundle)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(cache.iterdir()) == []
    assert np.array_equal(found, plain)


def test_leftovers_of_killed_processes_go_and_those_of_living_ones_stay(
    library: Library, bundle: Path, cache: Path
) -> None:
    old, dead, young = (cache / f"{name}{kept_folder.PARTIAL}1-0" for name in ("old", "dead", "young"))
    for folder in (old, dead, young):
        folder.mkdir(parents=True)
        (folder / "graph.onnx.data").touch()
    (dead / kept_folder.LOCK).touch()
    for path in (old, old / "graph.onnx.data"):
        os.utime(path, (0, 0))
    with kept_folder.making(cache / "living") as living:
        mine(library, bundle)
        assert set(cache.glob(f"*{kept_folder.PARTIAL}*")) == {young, living}


@pytest.mark.parametrize(("variable", "option"), [("off", None), ("", b"off"), ("", b"")])
def test_it_can_be_refused(
    library: Library, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, option: bytes | None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(kept_folder.VARIABLE, variable)
    mine(library, bundle, cache_folder=option)
    assert list(tmp_path.iterdir()) == []


def test_it_is_in_the_users_folder_for_caches_or_where_the_caller_says(
    library: Library, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(kept_folder.VARIABLE, raising=False)
    mine(library, bundle)
    mine(library, bundle, cache_folder=str(tmp_path / "named").encode())
    assert {path.name for path in tmp_path.iterdir()} == {kept_folder.NAME, "named"}
    assert len({path.name for path in tmp_path.glob("*/*")}) == 1  # the same folder


@pytest.mark.parametrize("place", ["file/cache", "/proc/cache", "/proc/a/b/cache"])
def test_a_place_that_cannot_be_written_is_gone_without(
    library: Library, bundle: Path, plain: np.ndarray, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    assert np.array_equal(mine(library, bundle, cache_folder=str(tmp_path / place).encode()), plain)


def test_processes_of_both_runtimes_that_start_at_once_agree(
    library: Library, bundle: Path, plain: np.ndarray, cache: Path
) -> None:
    name = library.dll._name
    commands = [[sys.executable, "-c", OPENS, str(bundle), own] for own in (name, "", name)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    assert [process.communicate()[0].strip() for process in running] == [plain.tobytes().hex()] * 3
    assert [path.name for path in cache.rglob("*.onnx")] == [prepacked.GRAPH]
    assert not list(cache.rglob("*partial*"))


# The folders below the engine.


@pytest.mark.parametrize(
    "variables",
    [
        {kept_folder.VARIABLE: "/x/y"},
        {kept_folder.VARIABLE: "relative"},
        {kept_folder.VARIABLE: kept_folder.OFF},
        {kept_folder.VARIABLE: "", "XDG_CACHE_HOME": "/caches"},
        {"XDG_CACHE_HOME": "", "HOME": "/home/someone"},
        {},
    ],
    ids=str,
)
def test_the_folder_is_where_pythons_is(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name in (kept_folder.VARIABLE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    expected = kept_folder.cache_folder()
    assert inside.call("cache_folder", None).decode() == ("" if expected is None else str(expected))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_user_without_a_home_keeps_no_weights(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (kept_folder.VARIABLE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    process = os.fork()
    if process == 0:  # nothing of pytest may run here
        os.setuid(54321)
        os._exit(0 if inside.call("cache_folder", None) == b"" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def sealed(inside: Inside, folder: Path) -> bool:
    """What both runtimes think of a folder."""
    mine = inside.call("is_as_sealed", os.fsencode(folder)) == b"yes"
    assert mine == kept_folder.is_as_sealed(folder)
    return mine


@pytest.mark.parametrize("name", ["graph.onnx", kept_folder.SEAL])
@pytest.mark.parametrize("damage", [zeros, flipped, truncated, Path.unlink], ids=lambda damage: damage.__name__)
def test_damage_is_found(inside: Inside, tmp_path: Path, damage: Callable[[Path], None], name: str) -> None:
    content = np.random.default_rng(0).bytes(kept_folder.PAGE * kept_folder.SAMPLED * 2)
    inside.call("keep", os.fsencode(tmp_path / "folder"), b"graph.onnx", content, ctypes.c_size_t(len(content)))
    assert sealed(inside, tmp_path / "folder")
    damage(tmp_path / "folder" / name)
    assert not sealed(inside, tmp_path / "folder")


SEALS = [
    "", "{}", "[]", "3", '{"graph.onnx": 3}', '{"graph.onnx": {}}', '{"x": {"bytes": 1}}',
    '{"graph.onnx": {"bytes": 3, "sha256": "", "sample": "", "times": [1, 2]}}',
    '{"graph.onnx": {"bytes": "3", "sha256": 1, "sample": 2, "times": "x"}}',
]  # fmt: skip


@pytest.mark.parametrize("text", SEALS)
def test_a_seal_that_is_none_seals_nothing(inside: Inside, tmp_path: Path, text: str) -> None:
    inside.call("keep", os.fsencode(tmp_path / "folder"), b"graph.onnx", b"abc", ctypes.c_size_t(3))
    (tmp_path / "folder" / kept_folder.SEAL).write_text(text)
    assert not sealed(inside, tmp_path / "folder")


def test_a_seal_is_written_as_python_writes_it(inside: Inside, tmp_path: Path) -> None:
    inside.call("keep", os.fsencode(tmp_path / "folder"), b"graph.onnx", b"abc", ctypes.c_size_t(3))
    seal = tmp_path / "folder" / kept_folder.SEAL
    text = seal.read_text()
    kept_folder._seal(tmp_path / "folder")
    assert seal.read_text() == text


def test_one_that_was_copied_is_hashed_once_and_kept(inside: Inside, tmp_path: Path) -> None:
    inside.call("keep", os.fsencode(tmp_path / "folder"), b"graph.onnx", b"abc", ctypes.c_size_t(3))
    copy = shutil.copytree(tmp_path / "folder", tmp_path / "copy")
    text = (copy / kept_folder.SEAL).read_text()
    assert inside.call("is_as_sealed", os.fsencode(copy)) == b"yes"
    assert (copy / kept_folder.SEAL).read_text() != text and kept_folder.is_as_sealed(copy)
