"""`python -m training …`: the models, stage by stage, or all of the demo's with one command."""

from __future__ import annotations

import os
import sys

import click

from editar_rt.errors import EditarError
from training.commands import data, evaluation, models

INSTALL = 'pip install -c constraints.txt -e ".[training,data]"'


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads; all cores when not given.")
def cli(threads: int | None) -> None:
    """Train the VQ tokenizer, the text encoder and the transformer, and evaluate a bundle."""
    if threads:
        import torch

        torch.set_num_threads(threads)


for module in (models, data, evaluation):
    for command in module.COMMANDS:
        cli.add_command(command)


def main() -> None:
    """Exit codes: 0; 1 for an error, one sentence on stderr; 2 for a bad option; 130 for Ctrl-C."""
    try:
        cli.main(prog_name="python -m training", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("training: stopped; the last checkpoint is kept", err=True)
        sys.exit(130)
    except ModuleNotFoundError as error:
        click.echo(f"training: {error.name} is not installed; run in the clone: {INSTALL}", err=True)
        sys.exit(1)
    except (EditarError, OSError) as error:
        rank = os.environ.get("RANK", "0")  # of the processes that torchrun started
        click.echo(f"training{'' if rank == '0' else f' (process {rank})'}: {_told(error)}", err=True)
        sys.exit(1)


def _told(error: Exception) -> str:
    """An error as a sentence; the system's without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


if __name__ == "__main__":
    main()
