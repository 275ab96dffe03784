"""Engines of GPT-XL, built by TensorRT for RTX without a GPU: python -m tests.benchmarks.tensorrt_full_size FOLDER

The decoder has seeded weights of the published sizes. Each engine is built in a process of its own, which reports the
engine's bytes, the memory that its builder wants besides weights, inputs and outputs ("Total Activation Memory" in its
log), CPU seconds and peak memory. Results go to FOLDER/tensorrt.json after each build, and as Markdown to stdout. Needs
12 GB of disk and 8 GB of memory, and tensorrt-rtx. Not a test: pytest does not collect it.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from tests.benchmarks.full_size import make_weights

DIALECTS = ("delta", "native")
PRECISIONS = ("fp16", "int4")
SHAPES = {"step": (2, 1), "drafts": (2, 8), "text": (1, 120), "picture": (1, 1024)}
DYNAMIC = "all"
"""One engine for all of these shapes."""


def write_graph(weights: Path, dialect: str, precision: str, path: Path) -> None:
    """Write the decoder's graph and, beside it, its description."""
    from export.bundle_writer import _save
    from export.checkpoint_reader import read_transformer
    from export.decoder_graph import decoder_graph
    from export.precision import Storage

    checkpoint = read_transformer(weights)
    part = _save(decoder_graph(checkpoint.config, checkpoint.tensors, Storage(precision, dialect)), path)
    described = [[tensor.name, tensor.dtype, tensor.shape] for tensor in part.inputs]
    path.with_suffix(".onnx.json").write_text(json.dumps(described))


def build(path: Path, what: str) -> dict[str, Any]:
    """Build one engine: bytes, memory, time."""
    from editar_rt import names
    from editar_rt.backends.engines.plan import Shape
    from editar_rt.backends.engines.tensorrt_compat import RTX, load_tensorrt
    from editar_rt.bundle.manifest import Part, TensorInfo
    from export.recipe import read_engines
    from export.tensorrt_builder import build_engine

    said: list[str] = []
    tensorrt = load_tensorrt(RTX, said.append)
    inputs = [TensorInfo(*each) for each in json.loads(path.with_suffix(".onnx.json").read_text())]
    chosen = list(SHAPES.values()) if what == DYNAMIC else [SHAPES[what]]
    shapes = [Shape(names.DECODER, *shape) for shape in chosen]
    recipe = replace(read_engines("rtx-anywhere"), dynamic=what == DYNAMIC)
    cpu, wall = time.process_time(), time.perf_counter()
    engine, _ = build_engine(tensorrt, path, Part(path.name, inputs, []), shapes, recipe)
    return {
        "bytes": engine.nbytes,
        "scratch": tensorrt.take_scratch(),
        "cpu_seconds": time.process_time() - cpu,
        "seconds": time.perf_counter() - wall,
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        "warnings": said,
    }


def alone(function: Any, *arguments: Any) -> Any:
    """Call a function in a process of its own, whose peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def table(runs: list[dict[str, Any]]) -> str:
    lines = [
        "| dialect | precision | shapes | engine, MB | scratch, MiB | CPU s | peak memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        shape = "all" if run["shapes"] == DYNAMIC else "{}×{}".format(*SHAPES[run["shapes"]])
        lines.append(
            f"| {run['dialect']} | {run['precision']} | {shape} | {run['bytes'] / 1e6:,.0f} "
            f"| {run['scratch'] / 2**20:.1f} | {run['cpu_seconds']:.0f} | {run['peak_memory'] / 1e9:.1f} |"
        )
    return "\n".join(lines)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--dialect", "dialects", type=click.Choice(DIALECTS), multiple=True, default=DIALECTS)
@click.option("--precision", "precisions", multiple=True, default=PRECISIONS)
@click.option("--shapes", "shapes", type=click.Choice([*SHAPES, DYNAMIC]), multiple=True, default=[*SHAPES, DYNAMIC])
def main(folder: Path, dialects: tuple[str, ...], precisions: tuple[str, ...], shapes: tuple[str, ...]) -> None:
    """Build the engines one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, runs = alone(make_weights, folder, "transformer"), []
    for precision in precisions:
        for dialect in dialects:
            graph = folder / f"{dialect}-{precision}.onnx"
            alone(write_graph, weights, dialect, precision, graph)
            for what in shapes:
                run = {"dialect": dialect, "precision": precision, "shapes": what} | alone(build, graph, what)
                runs.append(run)
                (folder / "tensorrt.json").write_text(json.dumps(runs, indent=1) + "\n")
                click.echo(f"{dialect} {precision} {what}: {run['seconds']:.0f} s {run['warnings']}", err=True)
            for file in folder.glob(f"{graph.name}*"):
                file.unlink()
    click.echo(table(runs))


if __name__ == "__main__":
    main()
