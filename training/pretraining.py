"""The loop of the small encoders, of text and of pictures, that learn what the world shows and are frozen then."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from training.loop import RunFolder, cosine_schedule
from training.optimizers import MuonAdam

SAVE_EVERY = 500  # steps

BatchLoss = Callable[[int], tuple[Tensor, dict[str, float]]]


def pretrain(
    run: RunFolder,
    model: nn.Module,
    heads: nn.Module,
    optimizer: MuonAdam,
    batch_loss: BatchLoss,
    steps: int,
    warmup: int,
    log_every: int = 50,
) -> None:
    """Train an encoder with heads that are thrown away afterwards; goes on where the run was stopped.

    Args:
        batch_loss: the loss of a step's batch, and more numbers for the log.
    """
    first = 0
    if state := run.load_last():
        first = state["step"]
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
    for step in range(first, steps):
        loss, measures = batch_loss(step)
        loss.backward()
        optimizer.step(cosine_schedule(step, steps, warmup))
        done = step + 1
        if done % log_every == 0:
            run.log(done, loss=loss.item(), **measures)
        if done % SAVE_EVERY == 0 or done == steps:
            run.save_last(done, model=model.state_dict(), heads=heads.state_dict(), optimizer=optimizer.state_dict())


def replace_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Put in the place of a folder what `write` makes in a new one, once it is whole."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder
