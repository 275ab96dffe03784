"""Token shards open in any number: what a process holds of them does not grow with how many there are."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.training.tiny import Parts, make  # noqa: E402
from training.batches import TokenShards  # noqa: E402
from training.config import TRANSFORMER_PRESETS  # noqa: E402
from training.data.arrays import OpenFiles, ShardArray, read_shard  # noqa: E402
from training.data.records import DataError  # noqa: E402

CONFIG = TRANSFORMER_PRESETS["GPT-tiny"]
SHARDS, DESCRIPTORS = 5000, 256


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def opened() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mapped() -> int:
    return len(Path("/proc/self/maps").read_text(encoding="utf-8").splitlines())


def array(path: Path, name: str) -> ShardArray:
    return ShardArray([read_shard(path)], name, OpenFiles())


def test_thousands_of_shards_open_with_few_descriptors(parts: Parts, tmp_path: Path, few_descriptors: None) -> None:
    for number in range(SHARDS):
        os.link(parts.public / f"shard-{number % 2:05d}.npz", tmp_path / f"shard-{number:05d}.npz")
    files, maps = opened(), mapped()
    source = TokenShards(tmp_path, CONFIG, None)
    groups = np.arange(0, len(source), 61)  # of every fifteenth shard, more than may be open
    batch = source.batch(groups)
    assert len(source) == 4 * SHARDS and len(groups) > DESCRIPTORS and batch.text_states is not None
    assert opened() - files <= 64 and mapped() - maps < 64
    with np.load(parts.public / "shard-00001.npz") as shard:  # group 61 is the second of shard 15
        assert np.array_equal(batch.condition[1], shard["condition"][1])
        assert np.array_equal(batch.text_states[1], shard["text_states"][1, 0])
    del source
    assert opened() == files


@pytest.mark.parametrize("kind", ["public", "world"], ids=["stored", "compressed"])
def test_rows_are_those_of_the_shard(parts: Parts, kind: str) -> None:
    path = getattr(parts, kind) / "shard-00000.npz"
    found = array(path, "target")
    with np.load(path) as shard:
        assert np.array_equal(found[np.asarray([3, 0, 0])], shard["target"][[3, 0, 0]])
        assert np.array_equal(next(found.each()), shard["target"])


def test_an_index_runs_over_all_shards(parts: Parts) -> None:
    shards = [read_shard(path) for path in sorted(parts.public.iterdir())]
    found = ShardArray(shards, "condition", OpenFiles(most=1))
    wanted = np.concatenate(list(found.each()))
    assert len(found) == 8 and found.place(5) == (1, 1)
    assert np.array_equal(found[np.asarray([6, 1, 5, 2])], wanted[[6, 1, 5, 2]])


def test_a_digest_is_of_the_content_and_not_of_the_place(parts: Parts, tmp_path: Path) -> None:
    first, second = sorted(parts.public.iterdir())
    (tmp_path / "elsewhere.npz").write_bytes(first.read_bytes())
    assert read_shard(tmp_path / "elsewhere.npz").digest == read_shard(first).digest != read_shard(second).digest


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def long_header(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x93NUMPY\x01\x00\x76\x00", b"\x93NUMPY\x01\x00\xff\xff"))


@pytest.mark.parametrize("damage", [cut_off, long_header, lambda path: path.write_bytes(b"PK")])
def test_a_damaged_shard_is_named(parts: Parts, tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    path = tmp_path / "shard.npz"
    path.write_bytes((parts.public / "shard-00000.npz").read_bytes())
    damage(path)
    with pytest.raises(DataError, match=r"shard\.npz is no whole token shard \(.+\); remove it"):
        read_shard(path)


def test_a_shard_that_is_cut_off_after_it_was_opened_is_named(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "shard.npz"
    path.write_bytes((parts.public / "shard-00000.npz").read_bytes())
    found = array(path, "text_states")
    cut_off(path)
    with pytest.raises(DataError, match=r"shard\.npz is no whole token shard \(\d+ bytes are missing at its end\)"):
        found[np.asarray([3])]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EMFILE, r"says Too many open files; allow this process more open files \(ulimit -n\)$"),
        (errno.ENFILE, r"says Too many open files in system; allow"),
        (errno.ENOMEM, r"says Cannot allocate memory$"),
        (errno.EACCES, r"says Permission denied$"),
        (errno.EIO, r"says Input/output error$"),
    ],
)
def test_what_the_operating_system_refuses_is_not_called_damage(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refused(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    found = array(parts.public / "shard-00000.npz", "target")
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(DataError, match="cannot be read: the operating system " + said):
        found[np.asarray([0])]
