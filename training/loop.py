"""What every training run shares: its folder with log, checkpoints and pictures, its schedules and its random numbers.

A run's folder holds `log.jsonl` (one JSON object a line), what is needed to resume (`last.pt`, or `step-*/` where the
model is sharded) and sample grids. Files are written beside and renamed into place, so killing a run never leaves a
broken checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from training.checkpoints import CheckpointError
from training.errors import first_line
from training.locks import FolderLock
from training.provenance import made_with
from training.recipes.fields import Ema, flat, of_checkpoint

LAST = "last.pt"


def settle(partial: Path, path: Path) -> None:
    """Rename a file that is written, once its content is on the disk."""
    with open(partial, "rb") as written:
        os.fsync(written.fileno())  # a rename that outlives a power cut must not outlive the content
    partial.replace(path)


def cosine_schedule(step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """Factor on the peak learning rate: linear warm-up, then a half cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def trapezoid_schedule(step: int, steps: int, warmup: int, decay: float) -> float:
    """Factor on the peak learning rate: linear warm-up, constant, then linear to 0 over the last `decay` of the steps.

    Until the fall begins nothing depends on `steps`, so a run can be made longer.
    """
    return min(1.0, (step + 1) / warmup, (steps - step) / (decay * steps))


def batch_rng(seed: int, step: int) -> np.random.Generator:
    """The random numbers of one step's data; they follow from (seed, step), so a resumed run sees the same data."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, step]))


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Average:
    """Exponential moving average of a model's parameters, the weights that are exported.

    Args:
        ema: where it keeps no average, the average's values are the model's own.
    """

    def __init__(self, model: nn.Module, ema: Ema) -> None:
        self.model, self.ema = model, ema
        self.kept = {k: v.detach().clone() for k, v in model.state_dict().items()} if ema.decay else {}

    @property
    def values(self) -> dict[str, Tensor]:
        return self.kept or self.model.state_dict()

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        if not self.kept:
            return
        weight = 1 - self.ema.decay
        if self.ema.warmup:  # early weights are forgotten faster
            weight = max(weight, 1 / (1 + 0.1 * step))
        floating = [(self.kept[k], v) for k, v in model.state_dict().items() if v.is_floating_point()]
        torch._foreach_lerp_([local(a) for a, _ in floating], [local(b) for _, b in floating], weight)


class RunFolder:
    """One training run on disk; in a `with` statement nobody else trains in that folder meanwhile.

    Args:
        recipe: the dataclass that decides what is learned.
        writes: whether this process writes; of several that train together, the first one does.

    Attributes:
        inputs: what else decides what is learned, such as data and the weights to start from, by a text that differs
            where they do (`training.provenance`). A checkpoint of others is refused.
        show: is told every line of the log as text.
        listeners: are told every line of the log: the step, and its numbers by name.
    """

    def __init__(self, folder: Path | str, recipe: Any, writes: bool = True) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise CheckpointError(f"{folder} is a file; give the folder of a run, new or begun")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.kind = type(recipe)
        self.recipe: dict[str, Any] = dataclasses.asdict(recipe)
        self.writes = writes
        self.inputs: dict[str, str] = {}
        self._lock = FolderLock(self.folder)
        self.started = time.monotonic()
        self.seconds_before = 0.0  # of earlier processes of the same run
        self.show: Callable[[str], None] = _to_terminal
        self.listeners: list[Callable[[int, dict[str, float | str]], None]] = []

    def __enter__(self) -> RunFolder:
        if self.writes:
            self._lock.take()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return (self.folder / LAST).exists() or any(self.folder.glob("step-*/checkpoint.json"))

    @property
    def seconds(self) -> float:
        """Time trained so far, over all processes of the run."""
        return self.seconds_before + time.monotonic() - self.started

    def log(self, step: int, **values: float | str) -> None:
        """One line to `log.jsonl`, and to whoever listens."""
        if not self.writes:
            return
        line = {"step": step, "seconds": round(self.seconds, 1), **values}
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")
        self.show("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()))
        for listener in self.listeners:
            listener(step, values)

    def save(self, name: str, state: dict[str, Any]) -> Path:
        """Write `state` (tensors and plain values) to `name` in the folder, atomically."""
        path = self.folder / name
        if self.writes:
            partial = path.with_name(path.name + ".partial")
            with open(partial, "wb") as f:
                torch.save(state, f)
            settle(partial, path)
        return path

    def save_last(self, step: int, keep: int = 1, **state: Any) -> None:
        """Write what a run goes on from; of more than the last one, `keep` stay as `step-00000250.pt` too."""
        path = self.save(LAST, {**self.facts(step), **state})
        if self.writes and keep > 1:
            link(path, self.folder / f"step-{step:08d}.pt")
            for old in sorted(self.folder.glob("step-*.pt"))[:-keep]:
                old.unlink()

    def keep_best(self, name: str, measure: str, value: float) -> None:
        """Keep the file `name` as `best-NAME` where no line of the log has a lower value."""
        if self.writes and value <= min(
            line[measure] for line in [*log_lines(self.folder / "log.jsonl"), {measure: value}] if measure in line
        ):
            link(self.folder / name, self.folder / f"best-{name}")

    def facts(self, step: int) -> dict[str, Any]:
        """What a checkpoint says about itself."""
        return {
            "step": step,
            "seconds": self.seconds,
            "recipe": self.recipe,
            "inputs": self.inputs,
            "made_with": made_with(),
        }

    def load_last(self) -> dict[str, Any] | None:
        """The state to resume from, or None for a new run; tensors are mapped from the disk, not read.

        Raises:
            CheckpointError: where the folder holds a run of another recipe or other data, or a file that is not whole.
        """
        path = self.folder / LAST
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path} is not a whole checkpoint: {first_line(error)}") from None
        self.go_on(path, state)
        return state

    def go_on(self, path: Path, facts: dict[str, Any]) -> None:
        """Make sure that a checkpoint is of this recipe and these inputs, and take up its clock and its log.

        One written before inputs were kept is taken for theirs.
        """
        ignored = {"steps", "minutes", "schedule.steps"}  # a run may be made longer
        theirs, ours = of_checkpoint(self.kind, facts["recipe"]), flat(self.recipe)
        differ = [k for k in ours if k not in ignored and _plain(theirs[k]) != _plain(ours[k])]
        if differ:
            found = ", ".join(f"{k} {theirs[k]} instead of {ours[k]}" for k in differ)
            raise CheckpointError(
                f"{path} was made by another recipe ({found}); choose another folder, or go on with that recipe (--set "
                "gives a single field)"
            )
        began = facts.get("inputs", {})
        others = [
            f"{name} {began[name]} instead of {given}"
            for name, given in self.inputs.items()
            if began.get(name, given) != given
        ]
        if others:
            raise CheckpointError(
                f"{path} was trained on other inputs ({'; '.join(others)}); give those it began with, or choose "
                "another folder"
            )
        self.seconds_before = facts["seconds"]
        self._forget_after(facts["step"])

    def _forget_after(self, step: int) -> None:
        """Drop what was logged after the checkpoint: it will be logged again."""
        path = self.folder / "log.jsonl"
        if not self.writes or not path.exists():
            return
        kept = "".join(json.dumps(line) + "\n" for line in log_lines(path) if line["step"] <= step)
        if kept.encode() != path.read_bytes():
            partial = path.with_name(path.name + ".partial")
            partial.write_text(kept, encoding="utf-8")
            partial.replace(path)


def link(path: Path, name: Path) -> None:
    """Give a file another name, in place of what has it; a copy where the file system knows no links."""
    partial = name.with_name(name.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(path, partial)
    except OSError:
        shutil.copyfile(path, partial)
    partial.replace(name)


def log_lines(path: Path) -> list[dict[str, Any]]:
    """What the lines of a `log.jsonl` say, each with its step.

    Lines that say nothing are passed over: what a kill or a full disk leaves of a log must not keep its run from going
    on.
    """
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and type(line.get("step")) in (int, float):
            lines.append(line)
    return lines


def _plain(value: Any) -> Any:
    """A recipe's value as JSON gives it back."""
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _to_terminal(text: str) -> None:
    if sys.stderr.isatty():
        print(text, file=sys.stderr)
