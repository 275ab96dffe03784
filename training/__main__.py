"""`python -m training …`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from editar_rt.command_line import run

if TYPE_CHECKING:
    import click

INTERNAL = (r"torch\.distributed\.checkpoint",)  # it says that one process alone reads, which is meant
INSTALL = 'pip install -c constraints.txt -e ".[training,data]"'


def main() -> None:
    """See `editar_rt.command_line`."""
    rank = os.environ.get("RANK", "0")  # of the processes that torchrun started
    name = "training" if rank == "0" else f"training (process {rank})"
    stopped = "stopped; the last checkpoint is kept"
    run("python -m training", _load, name=name, stopped=stopped, internal=INTERNAL, install=INSTALL)


def _load() -> click.Command:
    from training.cli import cli

    return cli


if __name__ == "__main__":
    main()
