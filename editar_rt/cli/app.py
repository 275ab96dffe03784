"""The command group, and the entry point that turns errors into exit codes."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import warnings
from typing import Any

import click

import editar_rt
from editar_rt.errors import ColorProfileWarning, EditarError, EditarWarning, OptionError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(editar_rt.__version__, prog_name="editar")
def cli() -> None:
    """Edit pictures from instructions with an EditAR bundle."""


def main() -> None:
    """Entry point: turns every expected error into one sentence and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape names that the locale cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about metadata, which is not used
    warnings.simplefilter("always", EditarWarning)
    warnings.simplefilter("default", ColorProfileWarning)  # once per picture, however often it is opened
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    logging.basicConfig(format="editar: %(message)s")  # to stderr
    logging.getLogger("editar_rt").setLevel(logging.INFO)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # about damaged files, which get a message of their own
    try:
        code = cli.main(prog_name="editar", standalone_mode=False)
    except click.ClickException as e:
        e.show()
        code = e.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("editar: stopped", err=True)
        code = 130
    except OptionError as e:
        click.echo(f"editar: {e}", err=True)
        code = 2
    except EditarError as e:
        click.echo(f"editar: {e}", err=True)
        code = 1
    except BrokenPipeError:
        # The reader of stdout has gone; give Python a stream that it can flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as e:
        if e.filename is not None:  # for example a folder without read permission
            click.echo(f"editar: {e.filename} cannot be used: {e.strerror}", err=True)
            sys.exit(1)
        if e.errno not in (errno.ENOSPC, errno.EIO):
            raise
        click.echo(f"editar: the output could not be written: {e.strerror}", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discard what is left to flush at exit
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _show_warning(message: Any, category: Any, *_: Any) -> None:
    name = "" if issubclass(category, EditarWarning) else f"{category.__name__}: "
    click.echo(f"editar: {name}{message}", err=True)
