"""What of the machine is this process's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from editar_rt import machine
from editar_rt.backends.ort.threads import SPIN_US, set_threads


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("", {"cpu.max": "100000 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 1\n"}, 2),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/of/the/host\n", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 2.5),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("3:cpuset:/\n", {"cpu.max": "100000 100000\n"}, None),
    ],
)
def test_a_quota_is_the_least_of_the_groups_and_their_parents(
    tmp_path: Path, own: str, files: dict[str, str], quota: float | None
) -> None:
    write(tmp_path, {"own": own} | {f"mounted/{name}": text for name, text in files.items()})
    assert machine.cpu_quota(tmp_path / "mounted", tmp_path / "own") == quota


@pytest.mark.parametrize(
    ("allowed", "quota", "cores", "threads"),
    [
        ({0, 1, 2, 3}, None, 4, 2),  # two threads a physical core
        ({0, 2}, None, 2, 2),
        ({0, 1}, None, 2, 1),
        ({0, 1, 2, 3}, 1.5, 1, 1),
        ({0, 1, 2, 3}, 0.2, 1, 1),
        ({0, 1, 2, 3}, 64.0, 4, 2),
    ],
)
def test_threads_are_one_a_physical_core_within_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, allowed: set[int], quota: float | None, cores: int, threads: int
) -> None:
    monkeypatch.setattr(machine, "_allowed", lambda: allowed)
    monkeypatch.setattr(machine, "_siblings", lambda core: f"{core // 2}")
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert (machine.core_count(), machine.thread_count()) == (cores, threads)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone pins processes to cores")
def test_the_affinity_is_this_processs_own() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert machine.core_count() == machine.thread_count() == 1
    finally:
        os.sched_setaffinity(0, before)


class Options:
    """`SessionOptions` that can be read again."""

    def __init__(self) -> None:
        self.intra_op_num_threads = 0
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key.removeprefix("session.")] = value


@pytest.mark.parametrize(
    ("version", "limited", "spinning"),
    [
        ("1.32.0", False, {"intra_op.spin_duration_us": str(SPIN_US)}),
        ("1.26.0", True, {"intra_op.spin_duration_us": str(SPIN_US)}),
        ("1.23.2", True, {"intra_op.allow_spinning": "0"}),
        ("1.23.2", False, {}),
    ],
)
def test_idle_threads_give_their_cores_up(
    monkeypatch: pytest.MonkeyPatch, version: str, limited: bool, spinning: dict[str, str]
) -> None:
    monkeypatch.setattr(machine, "is_limited", lambda: limited)
    options = Options()
    set_threads(options, version, 3)
    assert options.intra_op_num_threads == 3
    assert options.entries == {"force_spinning_stop": "1"} | spinning
