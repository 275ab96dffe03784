"""docs/serving.md: its commands and snippets run against a server, and its tables name what there is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from editar_rt.cli.serve import serve
from editar_rt.server import errors
from editar_rt.server.forms import OURS, PLAIN
from editar_rt.server.metrics import Metrics
from tests.server.running import Server
from tests.tools import require_program

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
# Blocks of `shell` need more machines; tests/server/test_ray.py runs what is like them.
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.M | re.S)


def test_the_first_commands_and_all_snippets_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_program("curl", "apt-get install curl")
    (tmp_path / "engines").symlink_to(ROOT / "engines")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    ran = []
    for kind, block in BLOCKS:
        block = block.replace("http://127.0.0.1:8765", server.url)
        if kind == "python":
            exec(compile(block, "docs/serving.md", "exec"), names)
        elif "curl" in block:  # the others start servers and benchmarks
            done = subprocess.run(["bash", "-ec", block], capture_output=True, check=True)
            assert b"PNG" in done.stdout
        ran.append(kind)
    assert ran.count("python") == 2
    assert (tmp_path / "seed-1.png").stat().st_size and (tmp_path / "seed-2.png").stat().st_size


def test_every_field_is_described() -> None:
    for name in {*OURS, *PLAIN}:
        assert f"`{name}`" in PAGE, name


def test_every_option_is_described_or_speaks_for_itself() -> None:
    alone = {"--host", "--port", "--threads", "--device", "--no-cache", "--no-page"}
    for option in {opt for parameter in serve.params for opt in parameter.opts if opt.startswith("--")} - alone:
        assert option in PAGE, option


def test_every_series_is_described() -> None:
    for family in Metrics().registry.collect():
        if family.name.startswith("editar_"):
            assert f"`{family.name.removeprefix('editar_')}" in PAGE, family.name


def test_every_code_is_described() -> None:
    made = [errors.queue_full(1), errors.queue_timeout(1), errors.too_late(1), errors.cancelled()]
    made += [errors.shutting_down(), errors.engine_dead(), errors.starting(), errors.no_space()]
    for error in made:
        assert f"`{error.code}`" in PAGE and str(error.status) in PAGE
