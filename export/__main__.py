"""`python -m export …`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from editar_rt.command_line import run

if TYPE_CHECKING:
    import click

INTERNAL = (r"torch\.", r"onnxscript\.", r"onnx_ir\.", "copyreg")  # the exporter's warnings are of its own internals


def main() -> None:
    """See `editar_rt.command_line`."""
    run("python -m export", _load, internal=INTERNAL)


def _load() -> click.Command:
    if sys.argv[1:2] == ["tensorrt"]:
        # It runs on devices without torch, which the other commands import.
        from export.tensorrt_cli import group

        return group
    from export.cli import cli

    return cli


if __name__ == "__main__":
    main()
