"""The command group."""

from __future__ import annotations

import click

from editar_rt.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="editar")
def cli() -> None:
    """Edit pictures from instructions with an EditAR bundle."""
