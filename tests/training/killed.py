"""Runs that are killed (SIGKILL) in the middle of writing their second checkpoint, for `test_engine.py`.

python -m tests.training.killed SHARDS FOLDER: the folders FOLDER/none and FOLDER/fsdp.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from tests.training.tiny import EVERY_STEP, RECIPE
from training import train_transformer


def killed(shards: Path, folder: Path, way: str) -> None:
    torch.set_num_threads(1)
    whole, parts, written = torch.save, dcp.save, [0]

    def killing(write: Any, *arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        written[0] += 1
        if written[0] == 3:  # the first checkpoint and the weights beside it are there; this one has no name yet
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = lambda *a, **k: killing(whole, *a, **k)
    dcp.save = lambda *a, **k: killing(parts, *a, **k)
    train_transformer.train(folder, shards, None, None, RECIPE, dataclasses.replace(EVERY_STEP, parallel=way))


if __name__ == "__main__":
    for way in ("none", "fsdp"):
        child = os.fork()  # each is a process of its own; PyTorch is imported once
        if child == 0:
            killed(Path(sys.argv[1]), Path(sys.argv[2]) / way, way)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(f"{way} was not killed")
