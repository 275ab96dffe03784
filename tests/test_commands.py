"""What holds for every command of the three programs: `editar`, `python -m export`, `python -m training`."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

pytest.importorskip("onnx")
pytest.importorskip("torch")


def commands(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            yield from commands(one, (*words, name))


EVERY = [
    pytest.param(words, command, id=" ".join(words))
    for program in ("editar_rt", "export", "training")
    for words, command in commands(importlib.import_module(f"{program}.cli").cli, (program,))
]


@pytest.mark.parametrize(("words", "command"), EVERY)
def test_every_command_has_help(words: tuple[str, ...], command: click.Command) -> None:
    done = CliRunner().invoke(command, ["--help"])
    assert done.exit_code == 0
    assert command.help, f"{' '.join(words)} says nothing of what it does"


@pytest.mark.parametrize(("words", "command"), EVERY)
def test_no_two_options_of_a_command_share_a_name(words: tuple[str, ...], command: click.Command) -> None:
    """Click would let the last one have it, and the other could not be given."""
    options = (p for p in command.params if isinstance(p, click.Option))
    names = Counter(name for option in options for name in (*option.opts, *option.secondary_opts))
    assert [name for name, times in names.items() if times > 1] == []
