"""`python -m export …`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from editar_rt.command_line import run

if TYPE_CHECKING:
    import click

INTERNAL = (r"torch\.", r"onnxscript\.", r"onnx_ir\.", "copyreg")  # the exporter's warnings are of its own internals
INSTALL = 'pip install -c constraints.txt -e ".[cpu,export]"'


def main() -> None:
    """See `editar_rt.command_line`."""
    run("python -m export", _load, internal=INTERNAL, install=INSTALL)


def _load() -> click.Command:
    from export.cli import cli

    return cli


if __name__ == "__main__":
    main()
