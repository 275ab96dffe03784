"""What every training run shares: a folder with its log, its checkpoints and its pictures, and how it goes on later.

A run's folder holds `log.jsonl` (one JSON object a line), `last.pt` (everything needed to resume) and sample grids.
Files are written beside and renamed into place, so killing a run never leaves a broken checkpoint.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training.checkpoints import CheckpointError


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


class Average:
    """Exponential moving average of a model's parameters, the weights that are exported."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        # Early weights are forgotten faster: an average over a tenth of the steps so far.
        weight = max(1 - self.decay, 1 / (1 + 0.1 * step))
        floating = [(self.values[k], v) for k, v in model.state_dict().items() if v.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floating], [b for _, b in floating], weight)


class RunFolder:
    """One training run on disk."""

    def __init__(self, folder: Path | str, recipe: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recipe = recipe
        self.started = time.monotonic()
        self.seconds_before = 0.0  # of earlier processes of the same run

    @property
    def seconds(self) -> float:
        """Time trained so far, over all processes of the run."""
        return self.seconds_before + time.monotonic() - self.started

    def log(self, step: int, **values: float | str) -> None:
        """One line to `log.jsonl`, and to stderr where that is a terminal."""
        line = {"step": step, "seconds": round(self.seconds, 1), **values}
        with open(self.folder / "log.jsonl", "a") as f:
            f.write(json.dumps(line) + "\n")
        if sys.stderr.isatty():
            shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items())
            print(shown, file=sys.stderr)

    def save(self, name: str, state: dict[str, Any]) -> Path:
        """Write `state` (tensors and plain values) to `name` in the folder, atomically."""
        path = self.folder / name
        partial = path.with_name(path.name + ".partial")
        torch.save(state, partial)
        partial.replace(path)
        return path

    def save_last(self, step: int, **state: Any) -> None:
        self.save("last.pt", {"step": step, "seconds": self.seconds, "recipe": self.recipe, **state})

    def load_last(self) -> dict[str, Any] | None:
        """The state to resume from, or None for a new run.

        Raises:
            CheckpointError: where the folder holds a run of another recipe.
        """
        path = self.folder / "last.pt"
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, weights_only=True)
        ignored = {"steps", "minutes"}  # a run may be made longer
        differ = [k for k in self.recipe if k not in ignored and state["recipe"].get(k) != self.recipe[k]]
        if differ:
            found = ", ".join(f"{k} {state['recipe'].get(k)} instead of {self.recipe[k]}" for k in differ)
            raise CheckpointError(f"{path} was made by another recipe ({found}); choose another folder or remove it")
        self.seconds_before = state["seconds"]
        return state


class MuonAdam:
    """Muon for the chosen matrices and AdamW for everything else, as one optimizer.

    Muon orthogonalizes the update of a matrix; on these small models it needs a third of AdamW's steps. A convolution
    counts as the matrix [out, everything else]; its view shares the parameter's memory.
    """

    def __init__(
        self, model: nn.Module, matrices: list[nn.Parameter], muon_lr: float, adam_lr: float, weight_decay: float
    ) -> None:
        chosen = {id(p) for p in matrices}
        self.parameters = list(model.parameters())
        self.views = [(p, nn.Parameter(_as_matrix(p.detach()))) for p in matrices]
        if any(p.data_ptr() != v.data_ptr() for p, v in self.views):
            raise ValueError("a matrix must share its parameter's memory; is the model's memory format channels_last?")
        others = [p for p in self.parameters if id(p) not in chosen]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(
                [v for _, v in self.views], lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        )
        self.peaks = (muon_lr, adam_lr)

    def step(self, factor: float) -> float:
        """One update with `factor` on the learning rates; clears the gradients. Returns the gradient's norm.

        Raises:
            FloatingPointError: where the gradient is not finite; nothing was changed then.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0).item()
        if not math.isfinite(norm):
            raise FloatingPointError("the gradient is not finite; the last checkpoint is kept")
        for p, v in self.views:
            v.grad = None if p.grad is None else _as_matrix(p.grad)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
        for p in self.parameters:
            p.grad = None
        return norm

    def state_dict(self) -> list[dict[str, Any]]:
        return [o.state_dict() for o in self.optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def _as_matrix(x: torch.Tensor) -> torch.Tensor:
    """[out, ...] as [out, rest], a view where a convolution's weights lie channels last."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1) if x.ndim == 4 else x
