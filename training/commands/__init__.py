"""The commands of `python -m training`, a module for each thing one does; `training.cli` puts them together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from editar_rt.files import check_writable
from training.errors import TrainingError

FOLDER = click.Path(file_okay=False, path_type=Path)
PRESENT_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class OutputFile(click.Path):
    """A file that can be written, which is looked at before the work."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        check_writable(path, TrainingError)
        return path


OUTPUT_FILE = OutputFile(path_type=Path)


def replaced(kind: Any, changes: dict[str, Any]) -> Any:
    """The dataclass that `kind()` makes, with the options that were given in place of its own values."""
    return dataclasses.replace(kind(), **{k: v for k, v in changes.items() if v is not None})
