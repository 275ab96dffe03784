"""A tool that lacks is skipped with its command on a user's machine, and never in CI."""

from __future__ import annotations

import pytest

from tests import tools


def test_a_tool_that_lacks_is_skipped_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tools.COMPLETE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no tool-of-nobody; install it with: apt-get install it"):
        tools.require_program("tool-of-nobody", "apt-get install it")


def test_where_nothing_may_lack_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tools.COMPLETE, "1")
    with pytest.raises(pytest.fail.Exception, match="no Python module module_of_nobody"):
        tools.require_module("module_of_nobody", "pip install it")
    assert tools.require_program("python3", "apt-get install python3")
