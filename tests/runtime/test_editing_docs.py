"""What docs/editing.md shows runs as it stands there, and makes the pictures that it shows."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from editar_rt.__main__ import main

ROOT = Path(__file__).parents[2]


def test_every_command_and_snippet_runs_and_every_picture_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "editing.md").read_text()
    (tmp_path / "engines").symlink_to(ROOT / "engines")
    (tmp_path / "docs" / "editing").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert {kind for kind, _ in blocks} == {"sh", "python"}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "docs/editing.md", "exec"), names)
            continue
        for line in block.splitlines():
            monkeypatch.setattr(sys, "argv", shlex.split(line))
            with pytest.raises(SystemExit) as stopped:
                main()
            assert stopped.value.code == 0, f"{line}\n{capsys.readouterr().err}"
    for picture in re.findall(r"(?:src=\"|\]\()((?:\.\./)?e[^\")]+\.(?:png|json))", page):
        assert (ROOT / "docs" / picture).is_file(), picture
