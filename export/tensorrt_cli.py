"""`python -m export tensorrt …`: builds engines of a bundle, for the GPU of this machine or for others.

It imports neither torch nor ONNX: devices have only tensorrt, NumPy and the runtime.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from editar_rt.backends.engines.tensorrt import this_machine
from editar_rt.backends.engines.tensorrt_compat import RTX, load_tensorrt
from editar_rt.bundle.folder import Bundle
from export.recipe import TENSORRT, read_engines, recipe_names
from export.tensorrt_builder import Watcher, build_engines, check_bundle

PATH = click.Path(path_type=Path)
RECIPES = ", ".join(recipe_names(TENSORRT))
Progress = Callable[[str, int, int], None]


@click.command("tensorrt")
@click.argument("bundle", type=PATH)
@click.option("--target", required=True, help=f"Recipe in engines/ ({RECIPES}), or a .toml file.")
@click.option("-o", "--output", type=PATH, help="Folder to write, inside the bundle (default BUNDLE/TARGET).")
@click.option("--force", is_flag=True, help="Replace existing engines.")
@click.option("--json", "as_json", is_flag=True, help="Print build.json as the last line.")
def tensorrt(bundle: Path, target: str, output: Path | None, force: bool, as_json: bool) -> None:
    """Build TensorRT engines of BUNDLE for this machine's GPU. None are written if their outputs are wrong.

    With a recipe for TensorRT for RTX, no GPU is needed: the engines are for the GPUs that the recipe names, and are
    compared when one loads them first.

    BUNDLE must have the dialect delta or native, as written by: python -m export convert BUNDLE --target TARGET.
    """
    recipe, opened = read_engines(target), Bundle.open(bundle)
    output = output or bundle / Path(target).stem
    check_bundle(opened, target, output)
    log = sys.stderr if as_json else sys.stdout
    with _progress() as progress:
        watcher = Watcher(
            report=lambda line: click.echo(line, file=log),
            warn=lambda line: click.echo(line, err=True),
            progress=progress,
        )
        machine = None if recipe.library == RTX else this_machine(recipe.library)
        library = machine.tensorrt if machine else load_tensorrt(recipe.library, watcher.warn)
        info = build_engines(opened, target, recipe, output, library, machine, force, watcher)
    if as_json:
        click.echo(json.dumps(json.loads(info.to_json())))
    else:
        tried = "" if info.tried else "; they have not run: the first load on a GPU compares them"
        click.echo(f"wrote {output}: {len(info.files)} engines in {sum(info.seconds.values()):.0f} s{tried}")


@contextmanager
def _progress() -> Iterator[Progress]:
    """Progress bars of the builder's phases on a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda phase, done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def update(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)
            if done >= total:
                bars.remove_task(tasks.pop(phase))

        yield update
