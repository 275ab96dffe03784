"""What `test_distributed.py` runs on two processes under torchrun: the tiny recipe whole and in parts, both ways.

torchrun --nproc-per-node 2 -m tests.training.two_processes SHARDS FOLDER [OPTION ...]

The options are of `python -m training transformer`.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.training.tiny import EVERY_STEP, GAN, RECIPE, VQ
from training import train_transformer, train_vq
from training.cli import cli


def main(shards: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    train_transformer.train(folder / "ddp", shards, None, None, RECIPE, dataclasses.replace(EVERY_STEP, accumulate=2))
    fsdp = dataclasses.replace(EVERY_STEP, parallel="fsdp")
    train_transformer.train(folder / "fsdp", shards, None, None, RECIPE, dataclasses.replace(fsdp, until=3))
    train_transformer.train(folder / "fsdp", shards, None, None, RECIPE, dataclasses.replace(fsdp, recompute=True))
    # Left in the middle, for one process to go on with.
    train_transformer.train(folder / "moved", shards, None, None, RECIPE, dataclasses.replace(fsdp, until=2))
    train_vq.train(folder / "vq", VQ, EVERY_STEP)
    train_vq.train(folder / "gan", GAN, EVERY_STEP)
    # The command itself, which `test_distributed.py` goes on with.
    cli.main(["transformer", str(folder / "command"), *sys.argv[3:], "--until", "1"], standalone_mode=False)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
