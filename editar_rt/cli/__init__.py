"""The `editar` command line. Results go to stdout, everything else to stderr.

Exit codes: 0 for success, 1 for an error (one sentence on stderr), 2 for a bad option, 130 for Ctrl-C.
"""

from editar_rt.cli import bench, demo, edit, info, sweep, traces  # noqa: F401 - each adds its commands
from editar_rt.cli.app import cli, main

__all__ = ["cli", "main"]
