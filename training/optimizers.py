"""Updates of weights: AdamW as the paper has it, and Muon with AdamW for the demo's small models."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from training.distributed import whole
from training.errors import NotFinite


class Optimizer:
    """Some PyTorch optimizers over one model, clipped together.

    Args:
        parameters: everything they update.
        optimizers: with their peak learning rates.
        clip: the norm to which a longer gradient is shortened.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizers: Iterable[tuple[torch.optim.Optimizer, float]],
        clip: float = 1.0,
    ) -> None:
        self.parameters = list(parameters)
        self.optimizers, self.peaks = zip(*optimizers)
        self.clip = clip

    def clip_gradient(self, scale: float = 1.0) -> float:
        """Divide the gradient by `scale` and shorten it to `clip`; returns its norm before that."""
        if scale != 1:
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], 1 / scale)
        return float(whole(nn.utils.clip_grad_norm_(self.parameters, self.clip)))

    def apply(self, factor: float) -> None:
        """One update by the gradient that is there, with `factor` on the learning rates; clears the gradient."""
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
        self.clear()

    def clear(self) -> None:
        for p in self.parameters:
            p.grad = None

    def step(self, factor: float) -> float:
        """Clip and apply; returns the gradient's norm.

        Raises:
            NotFinite: where the gradient is not finite; nothing was changed then.
        """
        norm = self.clip_gradient()
        if not math.isfinite(norm):
            raise NotFinite("the gradient is not finite; the last checkpoint is kept")
        self.apply(factor)
        return norm

    def state_dict(self) -> list[dict[str, Any]]:
        return [o.state_dict() for o in self.optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            # In memory of its own: a checkpoint that is mapped may be replaced while the run goes on.
            optimizer.load_state_dict(_copied(state))


def _copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _copied(value) for name, value in state.items()}
    return state.clone() if isinstance(state, Tensor) else state


class AdamW(Optimizer):
    """AdamW that decays matrices (and tables, and kernels) but no vectors, with the paper's betas."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, clip: float = 1.0, fused: bool = False
    ) -> None:
        trained = [p for p in parameters if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.95), fused=fused)
        super().__init__(trained, [(adam, lr)], clip)


class MuonAdam(Optimizer):
    """Muon for the chosen matrices and AdamW for everything else, as one optimizer.

    Muon orthogonalizes the update of a matrix; on these small models it needs a third of AdamW's steps. A convolution
    counts as the matrix [out, everything else]; its view shares the parameter's memory.
    """

    def __init__(
        self, model: nn.Module, matrices: list[nn.Parameter], muon_lr: float, adam_lr: float, weight_decay: float
    ) -> None:
        chosen = {id(p) for p in matrices}
        parameters = list(model.parameters())
        self.views = [(p, nn.Parameter(_as_matrix(p.detach()))) for p in matrices]
        if any(p.data_ptr() != v.data_ptr() for p, v in self.views):
            raise ValueError("a matrix must share its parameter's memory; is the model's memory format channels_last?")
        others = [p for p in parameters if id(p) not in chosen]
        muon = torch.optim.Muon(
            [v for _, v in self.views], lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        adam = torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
        super().__init__(parameters, [(muon, muon_lr), (adam, adam_lr)])

    def apply(self, factor: float) -> None:
        for p, v in self.views:
            v.grad = None if p.grad is None else _as_matrix(p.grad)
        super().apply(factor)


def _as_matrix(x: Tensor) -> Tensor:
    """[out, ...] as [out, rest], a view where a convolution's weights lie channels last."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1) if x.ndim == 4 else x


class LossScale:
    """The factor on a float16 loss that keeps small gradients above zero: halved when they overflow, else doubled.

    PyTorch's GradScaler decides that on each process's own part of the gradient; over sharded weights the processes
    would then disagree on whether to update. Here the clipped norm decides, which all of them share.
    """

    def __init__(self, value: float = 2.0**16, patience: int = 2000) -> None:
        self.value = value
        self.patience = patience  # good steps after which it is doubled
        self.good = 0

    def update(self, finite: bool) -> None:
        if not finite:
            self.value, self.good = self.value / 2, 0
        elif self.good + 1 == self.patience:
            self.value, self.good = self.value * 2, 0
        else:
            self.good += 1
