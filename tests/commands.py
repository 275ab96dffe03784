"""The project's commands in the tests' own process: Python and PyTorch are not started and imported again for each."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest


class Done(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.stdout.splitlines()[-1])


Command = Callable[..., Done]


def in_process(
    main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """A program as a function of its arguments.

    Args:
        main: runs `sys.argv` and ends the process, such as `editar_rt.__main__.main`.
    """

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        return Done(int(stopped.value.code or 0), said.out, said.err)

    return run
