"""What every command of `python -m export` does with errors: one sentence on stderr, and an exit code."""

from __future__ import annotations

import sys

import click

from editar_rt.errors import EditarError, OptionError

INSTALL = 'pip install -c constraints.txt -e ".[cpu,export]"'


def run(command: click.Command) -> None:
    """Exit codes: 0; 1 for an error, one sentence on stderr; 2 for a bad option; 130 for Ctrl-C."""
    try:
        command.main(prog_name="python -m export", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("export: stopped", err=True)
        sys.exit(130)
    except ModuleNotFoundError as error:
        click.echo(f"export: {error.name} is not installed; run in the clone: {INSTALL}", err=True)
        sys.exit(1)
    except OptionError as error:
        click.echo(f"export: {error}", err=True)
        sys.exit(2)
    except EditarError as error:
        click.echo(f"export: {error}", err=True)
        sys.exit(1)
