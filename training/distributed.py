"""The processes that train one model together, as `torchrun` starts them; one process alone is such a world too.

Three ways to put a model on them: `none` (one process), `ddp` (every process has it whole and gradients are averaged)
and `fsdp` (`fully_shard`: every process keeps its share of weights, gradients and optimizer states, and layers are
put together while they run). What is computed is the same in all of them, up to the order of sums.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from training.errors import TrainingError


class World:
    """This process's place among those that train together.

    Attributes:
        rank, size: which process this is, of how many.
        device: where its share of the work is done.
        way: one of `choices.WAYS`, but for `auto`.
        gathered_in: the type that sharded layers are put together in; None keeps their own. Gradients are summed in
            float32.
    """

    def __init__(
        self, rank: int, size: int, device: torch.device, way: str, gathered_in: torch.dtype | None = None
    ) -> None:
        self.rank, self.size, self.device, self.way, self.gathered_in = rank, size, device, way, gathered_in

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes logs, pictures and whole checkpoints."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        return self.way == "fsdp"

    def share(self, count: int) -> slice:
        """This process's part of `count` things, which the number of processes divides."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of every process's `x`, a new tensor."""
        if self.size == 1:
            return x.clone()
        total = x.clone().to(self.device)
        dist.all_reduce(total)
        return total.to(x.device)

    def gathered(self, value: Any) -> list[Any]:
        """Every process's plain value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, *tensors: Tensor) -> None:
        """Overwrite tensors with the first process's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            dist.barrier()

    def wrap(self, module: nn.Module, layers: nn.ModuleList | None = None, find_unused: bool = False) -> nn.Module:
        """The module to call in training, on `device`; call it in place of `module`.

        Args:
            layers: what is put together one at a time where the module is sharded.
            find_unused: whether some steps leave some parameters without a gradient.
        """
        module.to(self.device)
        if self.way == "ddp":
            return DistributedDataParallel(module, find_unused_parameters=find_unused)
        if self.way == "fsdp":
            if layers is None:
                raise TrainingError("this model is small and not made to be sharded; choose --parallel ddp")
            mesh = dist.init_device_mesh(self.device.type, (self.size,))
            # Inputs stay as they are: sums of weights and angles must not be rounded.
            policy = MixedPrecisionPolicy(self.gathered_in, torch.float32, cast_forward_inputs=False)
            for layer in layers:
                fully_shard(layer, mesh=mesh, mp_policy=policy)
            return fully_shard(module, mesh=mesh, mp_policy=policy)
        return module

    def accumulating(self, wrapped: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Gradients stay with each process until the `last` piece of a batch."""
        if isinstance(wrapped, FSDPModule):
            wrapped.set_requires_gradient_sync(last)
        elif isinstance(wrapped, DistributedDataParallel) and not last:
            return wrapped.no_sync()
        return contextlib.nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, put together; every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_state(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, each put together and on the CPU; every process has to ask for them."""
    return {name: whole(tensor).cpu() for name, tensor in values.items()}


def started() -> tuple[int, int, int]:
    """(rank, number of processes, rank on this machine) as `torchrun` says them; of one process alone without it."""
    rank, size, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    return rank, size, local_rank


def pick_device(name: str, local_rank: int) -> torch.device:
    """`auto` (a GPU where there is one), `cpu` or `cuda`: one device a process."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise TrainingError("device cuda was asked for and PyTorch finds none here; choose --device cpu")
    if local_rank >= torch.cuda.device_count():
        raise TrainingError(
            f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; "
            f"start as many with torchrun --nproc-per-node {torch.cuda.device_count()}"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


@contextlib.contextmanager
def join(device: str = "auto", way: str = "auto", gathered_in: torch.dtype | None = None) -> Iterator[World]:
    """Meet the processes that `torchrun` started beside this one; without it this one is alone.

    Args:
        device: `auto`, `cpu` or `cuda`.
        gathered_in: see `World`.
        way: one of `choices.WAYS`; `auto` is `ddp` for several processes and `none` for one.

    Raises:
        TrainingError: a device that is not there, or `none` for several processes.
    """
    rank, size, local_rank = started()
    place = pick_device(device, local_rank)
    if way in ("auto", "ddp"):
        way = "ddp" if size > 1 else "none"
    if way == "none" and size > 1:
        raise TrainingError(f"--parallel none is one process alone, torchrun started {size}; choose ddp or fsdp")
    if way == "none" or dist.is_initialized():  # by the caller, who meets the others once for several runs
        yield World(rank, size, place, way, gathered_in)
        return
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    if size > 1:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield World(rank, size, place, way, gathered_in)
    finally:
        # What DistributedDataParallel holds of the group must go before it: threads of a group that outlives its end
        # have been seen to abort a process that had finished.
        gc.collect()
        dist.destroy_process_group()
