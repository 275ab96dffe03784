"""Checkpoints that every process writes its part of: `step-00001200/`, safetensors shards and a small JSON file.

PyTorch's distributed checkpoints pickle their metadata; their safetensors form does not, and is used here, so nothing
is ever unpickled. A folder gets its name only when all of it is written and on the disk, and the one before it is
removed only then.
Any number of processes reads what any other number wrote, sharded or not.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from training.checkpoints import CheckpointError
from training.distributed import World
from training.errors import first_line

FACTS = "checkpoint.json"
NAME = re.compile(r"step-\d{8}")

# Warns at every use that it may change.
logging.getLogger("torch.distributed.checkpoint._dedup_save_plans").setLevel(logging.ERROR)


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, if there is one."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and (path / FACTS).exists()]
    return max(found, default=None)


def read_facts(path: Path) -> dict[str, Any]:
    """What a checkpoint says about itself."""
    try:
        facts: dict[str, Any] = json.loads((path / FACTS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path / FACTS} is not JSON: {first_line(error)}") from None
    return facts


def write(folder: Path, facts: dict[str, Any], tensors: dict[str, Tensor], world: World, keep: int = 1) -> Path:
    """Write a checkpoint, all processes together, then remove the older ones but for the last `keep`."""
    path = folder / f"step-{facts['step']:08d}"
    if path.exists():  # the same step of the same recipe is the same checkpoint
        return path
    partial = path.with_name(path.name + ".partial")
    if world.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    world.wait()
    dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True))
    # A name that outlives a power cut must not outlive the content. Each process asks for all of the files: a machine
    # empties only its own memory, and what is on the disk already costs nothing.
    for written in (*partial.iterdir(), partial):
        _to_disk(written)
    world.wait()
    if world.is_first:
        partial.rename(path)
        _to_disk(folder)  # the new name, before the older checkpoints go
        names = {other for other in folder.glob("step-*") if NAME.match(other.name) and other.is_dir()}
        whole = sorted(other for other in names if NAME.fullmatch(other.name))
        for other in names - set(whole[-keep:]):
            shutil.rmtree(other)
    world.wait()
    return path


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, lie on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError:
        if not path.is_dir():  # some network file systems do it for files alone
            raise
    finally:
        os.close(opened)


def read(path: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` (by name, sharded or whole) from a checkpoint, all processes together.

    Raises:
        CheckpointError: a tensor that is not there or has another shape, or a file that is not whole.
    """
    try:
        reader = dcp.HuggingFaceStorageReader(str(path))
        dcp.load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    except (CheckpointException, SafetensorError, RuntimeError, ValueError) as error:
        failures = getattr(error, "failures", None)
        reason = next(iter(failures.values()))[0] if failures else error
        raise CheckpointError(f"{path} does not hold this run's checkpoint: {first_line(reason)}") from None
