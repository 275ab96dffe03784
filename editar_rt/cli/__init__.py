"""The commands of `editar`. Results go to stdout, everything else to stderr; `command_line` lists the exit codes."""

from editar_rt.cli import acceptance, bench, demo, edit, info, serve, sweep, traces  # noqa: F401 - each adds its commands
from editar_rt.cli.app import cli

__all__ = ["cli"]
