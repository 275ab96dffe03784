"""Tools that some tests need beside Python: compilers, a browser, large packages.

A machine that lacks one skips these tests and names the command that installs it. `.ci/run` installs them all, from
`.ci/debian-packages.txt` and `.ci/python-packages.txt`, and sets EDITAR_TESTS_COMPLETE: a lacking tool then fails.
"""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest

COMPLETE = "EDITAR_TESTS_COMPLETE"


def require(found: bool, lacking: str, install: str) -> None:
    """Skip the test or module if a tool is not found; fail instead if the environment says that nothing may lack.

    Args:
        lacking: the tool, for the sentence "this machine has no …".
        install: the command that installs it.
    """
    if found:
        return
    sentence = f"this machine has no {lacking}; install it with: {install}"
    if os.environ.get(COMPLETE):
        pytest.fail(sentence, pytrace=False)
    pytest.skip(sentence, allow_module_level=True)


def require_program(name: str, install: str) -> str:
    """The path of a program. Skips or fails as `require` does."""
    path = shutil.which(name)
    require(path is not None, name, install)
    assert path is not None
    return path


def require_module(name: str, install: str) -> None:
    """Require a Python module without importing it. Skips or fails as `require` does."""
    require(importlib.util.find_spec(name) is not None, f"Python module {name}", install)
