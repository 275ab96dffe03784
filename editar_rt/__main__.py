"""The `editar` command, also as `python -m editar_rt`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editar_rt.command_line import run

if TYPE_CHECKING:
    import click


def main() -> None:
    """See `command_line`."""
    run("editar", _load)


def _load() -> click.Command:
    import logging

    from editar_rt.cli import cli

    logging.basicConfig(format="editar: %(message)s")  # to stderr
    logging.getLogger("editar_rt").setLevel(logging.INFO)
    return cli


if __name__ == "__main__":
    main()
