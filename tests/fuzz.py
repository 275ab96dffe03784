"""Throws damaged and wrong-typed things at everything that reads what strangers write.

    python -m tests.fuzz --long              # half an hour, all subjects
    python -m tests.fuzz traces --tries 5000 --seed 7

A try may be taken, or refused with one of the project's own errors; anything else is a finding, printed with the seed
that makes it again. `tests/test_fuzz.py` runs a few tries of each subject.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import click
import numpy as np
from PIL import Image

import editar_rt
from editar_rt.bundle.folder import Bundle, file_digest
from editar_rt.errors import EditarError, EditarWarning
from editar_rt.measure.memory import memory_needs
from editar_rt.observe.trace import Header, Trace
from editar_rt.text.states import load_states, save_states
from tests.runtime import crafted

LONG_TRIES = 20_000
# What a field, an option or an argument may be given instead of what it takes.
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**400, 0.5, -0.0, 1e39, float("nan"), float("inf"), "", "x", "1",
    "\x1b[2J", "\ud800", "../x", "/", "a" * 5000, [], [1], [[]], ["x", None], {}, {"x": 1}, {"": []}, b"", b"\xff",
)  # fmt: skip
JSON_ODD = tuple(each for each in ODD if not isinstance(each, bytes))


# Changing things.


def spoiled(rng: Random, value: Any) -> Any:
    """A JSON value with one place in it changed, left out or repeated."""
    document = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        each = waiting.pop()
        keys = list(each) if isinstance(each, dict) else range(len(each)) if isinstance(each, list) else ()
        for key in keys:
            places.append((each, key))
            waiting.append(each[key])
    if not places or rng.random() < 0.02:
        return rng.choice(JSON_ODD)
    holder, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.7:
        holder[key] = copy.deepcopy(rng.choice(JSON_ODD))
    elif kind < 0.85:
        del holder[key]
    elif isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[str(rng.choice(JSON_ODD))[:50]] = copy.deepcopy(holder[key])
    return document


def damaged(rng: Random, content: bytes) -> bytes:
    """Bytes with some of them changed, cut off, put in or moved."""
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, size = rng.randrange(len(out) + 1), rng.choice((1, 1, 4, 64))
        kind = rng.randrange(5)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + size] = rng.randbytes(size)
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = out[rng.randrange(len(out) + 1) :][:size]
        else:
            del out[at:]
    return bytes(out)


# The subjects: each makes one try in an empty folder.


def manifests(rng: Random, folder: Path) -> None:
    """A manifest with one value changed, or damaged bytes."""
    shutil.copytree(_bundle(), folder / "bundle")
    path = folder / "bundle" / "bundle.json"
    content = path.read_bytes()
    document = spoiled(rng, json.loads(content))
    path.write_bytes(damaged(rng, content) if rng.random() < 0.3 else json.dumps(document).encode("utf-8"))
    bundle = Bundle.open(folder / "bundle")
    bundle.check()
    memory_needs(bundle)
    _ = bundle.default_sampling


def graphs(rng: Random, folder: Path) -> None:
    """A graph of damaged bytes, listed with its hash as a stranger would."""
    shutil.copytree(_bundle(), folder / "bundle")
    path, manifest = folder / "bundle" / crafted.DECODER.file, folder / "bundle" / "bundle.json"
    path.write_bytes(damaged(rng, path.read_bytes()))
    document = json.loads(manifest.read_bytes())
    document["files"][path.name] = dataclasses.asdict(file_digest(path))
    manifest.write_text(json.dumps(document), encoding="utf-8")
    editar_rt.load(folder / "bundle", "cpu", 1, cache=False).decode_tokens(np.zeros((1, 4), np.int32))


def traces(rng: Random, folder: Path) -> None:
    """A trace with one value changed, or damaged bytes, in both formats."""
    suffix = rng.choice((".jsonl", ".npz"))
    path = folder / f"trace{suffix}"
    content = _traces()[suffix]
    if suffix == ".jsonl" and rng.random() < 0.7:
        lines = spoiled(rng, [json.loads(line) for line in content.splitlines()])
        content = "\n".join(map(json.dumps, lines if isinstance(lines, list) else [lines])).encode("utf-8")
        path.write_bytes(content)
    else:
        path.write_bytes(damaged(rng, content))
    trace = Trace.load(path)
    trace.save(folder / "again.jsonl")
    trace.save(folder / "again.npz")


def text_states(rng: Random, folder: Path) -> None:
    """A file of text states of damaged bytes."""
    path = folder / "states.npz"
    save_states(path, np.zeros((1, 4, 8), np.float32), "make the ball red")
    path.write_bytes(damaged(rng, path.read_bytes()))
    load_states(path)


def recipes(rng: Random, folder: Path) -> None:
    """A recipe of training or of a target with one value changed, or damaged bytes."""
    from export.precision import storage
    from export.recipe import FOLDER, TENSORRT, read_engines
    from training.recipes import files, transformer, vq

    published = [*FOLDER.glob("*.toml"), *files.FOLDER.glob("*.toml")]
    source = rng.choice(sorted(published))
    content, path = source.read_bytes(), folder / "recipe.toml"
    if rng.random() < 0.3:
        content = damaged(rng, content)
    else:
        lines = content.decode("utf-8").splitlines()
        settings = [n for n, line in enumerate(lines) if "=" in line and not line.startswith("#")]
        if settings:
            at = rng.choice(settings)
            lines[at] = f"{lines[at].partition('=')[0]}= {rng.choice(TOML_ODD)}"
        content = "\n".join([*lines, *rng.choices(("", "[recipe]", "recipe = 5", "[[onnx]]", "[x.y]"), k=1)]).encode()
    path.write_bytes(content)
    if source.parent != FOLDER:
        model = rng.choice((vq, transformer))
        files.combined(model.Recipe, str(path), model.__name__.rpartition(".")[2], {})
    elif f"[{TENSORRT}]".encode() in content:
        read_engines(str(path))
    else:
        storage(str(path))


TOML_ODD = (
    "true", "0", "-1", "3", "99999999999", "0.5", "2.0", "-0.5", "1e39", "nan", "inf", "''", "'zz'", "'\\u001b'", "[]",
    "[1]", "['x']", "{}", "{x = 1}", "1979-05-27", "{",
)  # fmt: skip


def checkpoints(rng: Random, folder: Path) -> None:
    """A transformer's weights in one of their formats, of damaged bytes."""
    import argparse

    import safetensors.torch
    import torch

    from export.checkpoint_reader import build_transformer, read_transformer
    from training.config import TransformerConfig
    from training.models.transformer import Transformer

    config = TransformerConfig(
        dim=16, n_layer=2, n_head=2, vocab_size=8, block_size=4, cls_token_num=3, caption_dim=4, multiple_of=8
    )
    weights = {name: torch.zeros(value.shape) for name, value in Transformer(config).state_dict().items()}
    path = folder / rng.choice(("a.pt", "a.safetensors"))
    if path.suffix == ".pt":
        content = {"model": weights, "config": config.to_dict(), "args": argparse.Namespace(lr=1)}
        torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.5)
    else:
        safetensors.torch.save_file(weights, path, metadata={"config": json.dumps(config.to_dict())})
    path.write_bytes(damaged(rng, path.read_bytes()))
    build_transformer(read_transformer(path))


def records(rng: Random, folder: Path) -> None:
    """A data set's list of edits with one value changed, or damaged bytes: bad records are left out, not raised."""
    from training.data.layouts import open_dataset
    from training.data.records import BadRecord

    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "orange").save(folder / name)
    document = [{"source_image": "a.png", "target_image": "b.png", "instruction": "make it red", "task": "edit"}] * 2
    spoilt = spoiled(rng, document)
    lines = spoilt if isinstance(spoilt, list) else [spoilt]
    content = "\n".join(map(json.dumps, lines)).encode("utf-8")
    (folder / "metadata.jsonl").write_bytes(damaged(rng, content) if rng.random() < 0.3 else content)
    dataset = open_dataset(folder)
    for index in range(len(dataset)):
        try:
            dataset[index]
        except BadRecord:
            continue


def command_lines(rng: Random, folder: Path) -> None:
    """A command with options and arguments that it may or may not take."""
    import editar_rt.server.run  # noqa: F401 - needs an extra
    from editar_rt.cli.app import cli

    name = rng.choice(sorted(cli.commands))
    command = cli.commands[name]
    Image.new("RGB", (8, 8), "orange").save(folder / "in.png")
    given = [str(_bundle()), str(folder / "in.png"), "make it red", str(folder / "none"), "-1", "0", "x", "", "a" * 300]
    given += ["1e39", "nan", "9" * 30, "[]", "\udcff", "-", str(folder), "1,2,3,4"]
    arguments = [name, "--bundle", str(_bundle())] if name == "demo" else [name]  # its own takes half a minute
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            usual = given[{"bundle": 0, "image": 1, "instruction": 2}.get(parameter.name or "", 3)]
            arguments.append(usual if rng.random() < 0.7 else rng.choice(given))
        elif rng.random() < 0.2 and parameter.name not in ("help", "output", "bundle"):
            arguments.append(rng.choice(parameter.opts))
            if not (isinstance(parameter, click.Option) and parameter.is_flag):
                arguments.append(rng.choice(given))
    arguments += (
        ["-o", str(folder / rng.choice(("out.png", "none/out.png", "out.txt", "")))] if rng.random() < 0.8 else []
    )
    with mock.patch("editar_rt.server.run.serve", return_value=0):  # it would not end
        cli.main(arguments, prog_name="editar", standalone_mode=False)


def python_arguments(rng: Random, folder: Path) -> None:
    """A function of the runtime with one argument that is something else."""
    editor = _editor()
    picture = Image.new("RGB", (4, 4))
    calls: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (editar_rt.load, {"path": str(_bundle()), "device": "cpu", "threads": 1}),
        (editar_rt.Sampling, {field.name: field.default for field in dataclasses.fields(editar_rt.Sampling)}),
        (editor.decode_tokens, {"tokens": np.zeros((1, 4), np.int32)}),
        (editor.edit, {"image": picture, "instruction": "x", "task": "edit", "n": 1, "sampling": None, "mask": None}),
    ]
    function, arguments = rng.choice(calls)
    name = rng.choice(sorted(arguments))
    odd = [*ODD, np.float32(1), np.zeros(3), np.zeros((1, 4), "U1"), object(), picture, folder, print]
    function(**(arguments | {name: rng.choice(odd)}))


SUBJECTS = (manifests, graphs, traces, text_states, recipes, checkpoints, records, command_lines, python_arguments)


@functools.cache
def _bundle() -> Path:
    """A whole bundle by hand."""
    return crafted.write_bundle(Path(tempfile.mkdtemp(prefix="editar-fuzz-")) / "bundle")


@functools.cache
def _editor() -> editar_rt.Editor:
    return editar_rt.load(_bundle(), "cpu", 1, cache=False)


@functools.cache
def _traces() -> dict[str, bytes]:
    """By suffix."""
    header = Header(
        bundle="0" * 64, backend="x", version="1", instruction="make it red", task="edit", sampling={"top_k": 5},
        seeds=[0, 1], condition_tokens=[0, 1, 2, 3], done=3, timings={"decode": 0.5},
    )  # fmt: skip
    real = np.zeros((2, 4), np.float32)
    trace = Trace(header, real.astype(np.int32), real[0] == 0, real, real, real[0], [Image.new("RGB", (4, 4))] * 2)
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".jsonl", ".npz"):
            trace.save(Path(folder) / f"t{suffix}")
        return {path.suffix: path.read_bytes() for path in Path(folder).iterdir()}


def findings(subject: Callable[[Random, Path], None], tries: int, seed: int = 0) -> list[str]:
    """What went wrong otherwise than it may, each with the command that makes it again."""
    found = []
    for n in range(seed, seed + tries):
        with tempfile.TemporaryDirectory(prefix="editar-fuzz-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", EditarWarning)
            try:
                subject(Random(n), Path(folder))
            except (EditarError, click.ClickException, click.exceptions.Exit, EditarWarning):
                continue
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                again = f"python -m tests.fuzz {subject.__name__} --seed {n} --tries 1"
                found.append(f"{again}\n{traceback.format_exc(limit=-6)}")
    return found


@click.command(help=__doc__)
@click.argument("subjects", nargs=-1, type=click.Choice([subject.__name__ for subject in SUBJECTS]))
@click.option("--tries", type=click.IntRange(1), default=200, show_default=True, help="Tries of each subject.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the first try.")
@click.option("--long", is_flag=True, help=f"{LONG_TRIES} tries of each subject.")
def main(subjects: tuple[str, ...], tries: int, seed: int, long: bool) -> None:
    failed = 0
    for subject in SUBJECTS:
        if subjects and subject.__name__ not in subjects:
            continue
        begun = time.perf_counter()
        found = findings(subject, LONG_TRIES if long else tries, seed)
        failed += len(found)
        for each in found:
            click.echo(each)
        click.echo(f"{subject.__name__}: {len(found)} findings, {time.perf_counter() - begun:.0f} s", err=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
