"""The commands and snippets of the pages run as they stand there, and make the images that the pages show."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

import editar_rt
from editar_rt.__main__ import main

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")))
# Commands run where they name the demo's bundle; measuring takes long and says nothing here, and a server does not end.
RUNNABLE = re.compile(r"editar (?!bench|demo|serve).*\bengines/demo\b")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that looks like a checkout to what only reads the demo's bundle."""
    (tmp_path / "engines").symlink_to(ROOT / "engines")
    (tmp_path / "docs" / "editing").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/editing.md"])
def test_every_command_and_snippet_of_a_page_runs(
    page: str, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, object] = {}
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    assert {kind for kind, _ in blocks} == {"sh", "python"}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, page, "exec"), names)
            continue
        for line in filter(RUNNABLE.match, block.splitlines()):
            monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
            with pytest.raises(SystemExit) as stopped:
                main()
            assert stopped.value.code == 0, f"{line}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_links_to_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"(?:src=\"|\]\()([^\":)#\s]+)(?:#[^)\"]*)?[\")]", text)
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing


def test_every_name_that_the_pages_use_is_public() -> None:
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    used = {name for text in texts for name in re.findall(r"\beditar_rt\.([A-Za-z_]+)", text)}
    modules = {"errors", "server"}  # `serve run` is given the path of an app
    assert used - {"__all__"} - modules <= set(editar_rt.__all__)
