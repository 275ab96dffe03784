"""The loop that every recipe runs in, on one process or many: batches, pieces, updates, averages, checkpoints, logs.

A recipe is a `Task`: it says what a step's batch is and what its losses are. Everything a step draws follows from the
recipe's seed and the step alone, and a checkpoint holds all the rest, so a run that was stopped goes on exactly as if
it had not been.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from training import sharded
from training.checkpoints import CheckpointError
from training.choices import DEVICES, FSDP_PRECISIONS, PRECISIONS, WAYS
from training.data.records import BadRecords
from training.distributed import World
from training.errors import NotFinite, OutOfMemory, TrainingError
from training.logs import Sinks, measured_peak, profiled
from training.loop import Average, RunFolder
from training.optimizers import LossScale, Optimizer
from training.prefetch import Coming, pinned
from training.recipes.fields import Ema, check_fields

NO_MEMORY = "can't allocate memory"  # in what PyTorch says on a CPU
AUTOCAST: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a recipe is carried out. But for rounding, none of it decides what is learned: a run may go on with other
    values."""

    device: str = "auto"  # auto, cpu or cuda
    parallel: str = "auto"  # see `training.distributed`
    precision: str = "float32"  # float32, bfloat16 or float16, of products under autocast; weights stay float32
    accumulate: int = 1  # pieces that a process takes its share of a batch in, one after the other
    recompute: bool = False  # layers run again in the backward pass in place of keeping what is inside of them
    compile: str = ""  # backend of torch.compile for the layers, such as inductor; "" leaves them as they are
    prefetch: int = 0  # coming batches that are prepared meanwhile
    workers: int = 1  # threads that prepare them
    tf32: bool = False  # float32 products on a GPU keep 10 bits of their factors' fractions, which is faster
    fsdp_precision: str = "float32"  # or bfloat16: how sharded layers are put together; their shares stay float32
    until: int = 0  # stop after this step, with a checkpoint; 0 goes on to the recipe's last
    log_every: int = 50  # steps
    save_every: int = 250
    keep: int = 1  # the last checkpoints that stay
    sample_every: int = 0  # steps between grids of sample pictures; 0 makes none
    tensorboard: bool = False
    wandb: str = ""  # project of Weights & Biases
    peak_tflops: float = 0.0  # of one device, for MFU; 0 reports none, below 0 measures
    profile: bool = False  # write a trace of a few steps after the first ones

    def __post_init__(self) -> None:
        check_fields(
            self,
            "execution.",
            {"device": DEVICES, "parallel": WAYS, "precision": PRECISIONS, "fsdp_precision": FSDP_PRECISIONS},
            at_least_one=("accumulate", "workers", "log_every", "save_every", "keep"),
            any_sign=("peak_tflops",),
        )
        if self.compile and self.compile not in (backends := torch.compiler.list_backends(exclude_tags=())):
            raise TrainingError(
                f"compile is a backend of torch.compile, one of {', '.join(backends)}; got {self.compile}"
            )


@dataclasses.dataclass
class Phase:
    """One update of a step: whose, by which loss."""

    name: str  # of the optimizer's state in a checkpoint
    module: nn.Module  # as `World.wrap` returned it
    optimizer: Optimizer
    loss: Callable[[Any, int], Tensor]  # of the prepared batch and the piece of it
    factor: Callable[[int], float]  # on the learning rates, by step
    begins: int = 0  # at this step
    gradient: str = "gradient"  # what its norm is called in the log


Prepared = TypeVar("Prepared")


class Examples(Protocol):
    """What a task draws its batches from, as far as the engine asks."""

    @property
    def bad(self) -> BadRecords | None:
        """Broken records met so far; None where there can be none."""


class Task(Protocol[Prepared]):
    """A recipe as the engine runs it."""

    steps: int
    seed: int
    averaged: nn.Module  # what is exported
    ema: Ema  # of its average
    modules: dict[str, nn.Module]  # what a checkpoint holds, by its name there
    root: nn.Module  # holds all that is trained
    phases: list[Phase]
    work: tuple[float, float]  # of one step, over all processes: tokens, floating-point operations
    lowers_memory: tuple[str, ...]  # options that do, besides smaller pieces and a smaller batch

    @property
    def source(self) -> Examples:
        """Where batches come from."""

    def prepare(self, step: int) -> Prepared:
        """This process's share of a step's batch; draws from nothing but the seed and the step."""

    def begin(self, step: int, prepared: Prepared, average: Average) -> None:
        """What comes before a step's updates."""

    def end(self, step: int, prepared: Prepared, average: Average) -> None:
        """What comes after them."""

    def measures(self, done: int) -> dict[str, float]:
        """Numbers for the log after `done` steps; every process asks."""

    def unlogged(self) -> dict[str, Any]:
        """Plain values of the steps since the last line of the log, for a checkpoint; every process asks."""

    def load_unlogged(self, values: dict[str, Any]) -> None:
        """Takes up what `unlogged` gave."""

    def describe(self, prepared: Prepared) -> str:
        """Names the batch, for a message."""

    def state(self) -> dict[str, Tensor]:
        """What else a checkpoint holds."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave."""

    def publish(self, done: int, average: Average) -> None:
        """Write what users take from the run; every process comes here before a checkpoint.

        So what a run leaves behind is never older than its last checkpoint, whenever it is killed.
        """

    def score(self, done: int, average: Average) -> None:
        """Measure the averaged weights on what they are not trained on; every process comes here after a checkpoint."""

    def show(self, done: int, average: Average, sinks: Sinks) -> None:
        """Make a grid of sample pictures."""


class Engine(Generic[Prepared]):
    """Runs a task in its folder, from the last checkpoint on."""

    def __init__(self, run: RunFolder, task: Task[Prepared], execution: Execution, world: World) -> None:
        self.run_folder, self.task, self.execution, self.world = run, task, execution, world
        self.average = Average(task.averaged, task.ema)
        self.scale = LossScale() if execution.precision == "float16" else None
        self.loss = torch.zeros(())  # of the last step's first phase
        self.first = self.saved = self._resume()
        self.peak = execution.peak_tflops * 1e12
        if self.peak < 0:
            self.peak = measured_peak(world.device, AUTOCAST[execution.precision] or torch.float32)

    # Checkpoints.

    def _tensors(self) -> dict[str, Tensor]:
        """Everything a sharded checkpoint holds, by name."""
        tensors = {f"{name}.{k}": v for name, m in self.task.modules.items() for k, v in m.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.kept.items()}
        for phase in self.task.phases:
            tensors |= {f"{phase.name}.{k}": v for k, v in self._optimizer_state(phase).items() if torch.is_tensor(v)}
        return tensors

    def _optimizer_state(self, phase: Phase) -> dict[str, Any]:
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        return dict(get_optimizer_state_dict(self.task.root, phase.optimizer.optimizers, options=options))

    def _resume(self) -> int:
        """Takes up the newest checkpoint; returns the step to go on with."""
        run = self.run_folder
        parts = sharded.newest(run.folder)
        facts = sharded.read_facts(parts) if parts else None
        last = run.load_last()
        if last and not (facts and facts["step"] > last["step"]):
            if self.world.sharded:
                raise CheckpointError(
                    f"{run.folder / 'last.pt'} is of a run that was not sharded; go on with --parallel ddp or none"
                )
            for name, module in self.task.modules.items():
                module.load_state_dict(last[name])
            for phase in self.task.phases:
                phase.optimizer.load_state_dict(last[phase.name])
            for name, value in self.average.kept.items():
                value.copy_(last["average"][name])
            self.task.load_state(last)
            self._load_facts(last)
            return int(last["step"])
        if parts and facts:
            run.go_on(parts, facts)
            self._read_parts(parts)
            self._load_facts(facts)
            return int(facts["step"])
        return 0

    def _read_parts(self, path: Any) -> None:
        tensors = self._tensors()
        sharded.read(path, tensors)
        for name, module in self.task.modules.items():
            module.load_state_dict({k: tensors[f"{name}.{k}"] for k in module.state_dict()})
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        for phase in self.task.phases:
            state = self._optimizer_state(phase)
            state |= {k: tensors[f"{phase.name}.{k}"] for k in state if f"{phase.name}.{k}" in tensors}
            set_optimizer_state_dict(self.task.root, phase.optimizer.optimizers, state, options=options)

    def _load_facts(self, facts: dict[str, Any]) -> None:
        if unlogged := facts.get("unlogged"):
            self.task.load_unlogged(unlogged)
        if self.scale and "loss_scale" in facts:
            self.scale.value, self.scale.good = facts["loss_scale"]

    def save(self, done: int) -> None:
        """A checkpoint after `done` steps, whole or sharded."""
        extra: dict[str, Any] = {"unlogged": self.task.unlogged()}
        if self.scale:
            extra["loss_scale"] = [self.scale.value, self.scale.good]
        if self.world.sharded:
            facts = self.run_folder.facts(done) | extra
            sharded.write(self.run_folder.folder, facts, self._tensors(), self.world, self.execution.keep)
        elif self.world.is_first:
            state = {name: module.state_dict() for name, module in self.task.modules.items()}
            state |= {phase.name: phase.optimizer.state_dict() for phase in self.task.phases}
            state |= {"average": self.average.kept, **self.task.state(), **extra}
            self.run_folder.save_last(done, self.execution.keep, **state)
        self.world.wait()
        self.saved = done

    # Steps.

    def run(self) -> None:
        """All steps that are left, with what comes after them.

        Raises:
            NotFinite, OutOfMemory: the last checkpoint is kept.
        """
        task, execution, run = self.task, self.execution, self.run_folder
        last = min(task.steps, execution.until or task.steps)
        if self.first >= last:
            task.publish(self.first, self.average)  # whoever removed it wants it again
        sinks = Sinks(run, self.first, task.steps, execution.tensorboard, execution.wandb)
        seconds, counted = 0.0, 0
        try:
            with (
                tensor_cores(execution.tf32),
                profiled(run, execution.profile) as profiler,
                Coming(self._prepared, last, execution.prefetch, execution.workers) as coming,
            ):
                for step in range(self.first, last):
                    begun = time.perf_counter()
                    with self._told_what_to_lower(step):
                        prepared = coming.take(step)
                        norms = self._step(step, prepared)
                    profiler.step()
                    seconds, counted = seconds + time.perf_counter() - begun, counted + 1
                    done = step + 1
                    if sinks.progress:
                        sinks.advance(done, float(self.loss), f"{counted * task.work[0] / seconds:.0f} tokens/s")
                    if done % execution.log_every == 0:
                        measures = task.measures(done) | self._bad_records()
                        run.log(done, **measures, **norms, **self._speed(counted / seconds))
                        seconds, counted = 0.0, 0
                    with self._told_what_to_lower(step):
                        if done % execution.save_every == 0 or done == last:
                            task.publish(done, self.average)
                            self.save(done)
                            task.score(done, self.average)
                        if execution.sample_every and done % execution.sample_every == 0:
                            task.show(done, self.average, sinks)
        finally:
            sinks.close()

    def _prepared(self, step: int) -> Prepared:
        """This process's share of a step's batch, in memory that a GPU copies from while it works."""
        prepared = self.task.prepare(step)
        return pinned(prepared) if self.world.device.type == "cuda" else prepared

    def _bad_records(self) -> dict[str, float]:
        """How many all processes have met; every process asks."""
        bad = self.task.source.bad
        return {} if bad is None else {"bad_records": self.world.sum(torch.tensor(float(bad.total))).item()}

    def _step(self, step: int, prepared: Prepared) -> dict[str, float]:
        # Dropout is drawn from the global generator, each process's in its own way.
        torch.manual_seed(int(np.random.SeedSequence([self.task.seed, step, self.world.rank]).generate_state(1)[0]))
        self.task.begin(step, prepared, self.average)
        norms = {}
        for phase in self.task.phases:
            if step >= phase.begins:
                norms[phase.gradient] = self._update(phase, step, prepared)
        self.average.update(self.task.averaged, step)
        self.task.end(step, prepared, self.average)
        return norms

    def _update(self, phase: Phase, step: int, prepared: Prepared) -> float:
        pieces = self.execution.accumulate
        scale = self.scale.value if self.scale else 1.0
        total = torch.zeros((), device=self.world.device)
        dtype = AUTOCAST[self.execution.precision]
        for piece in range(pieces):
            with self.world.accumulating(phase.module, last=piece == pieces - 1):
                with torch.autocast(self.world.device.type, dtype, enabled=dtype is not None):
                    loss = phase.loss(prepared, piece)
                (loss * (scale / pieces) if scale / pieces != 1 else loss).backward()
            total = total + loss.detach() / pieces
        if phase is self.task.phases[0]:
            self.loss = total
        norm = phase.optimizer.clip_gradient(scale)
        finite = math.isfinite(norm)
        if finite:
            phase.optimizer.apply(phase.factor(step))
        elif self.scale is None or self.scale.value <= 1:
            phase.optimizer.clear()
            raise NotFinite(self._what_is_not_finite(phase, step, prepared, float(total)))
        else:
            phase.optimizer.clear()
        if self.scale and phase is self.task.phases[0]:
            self.scale.update(finite)
        return norm

    def _what_is_not_finite(self, phase: Phase, step: int, prepared: Prepared, loss: float) -> str:
        # A sum over processes has made every gradient bad; only a bad loss says whose batch did it.
        told = self.world.gathered(None if math.isfinite(loss) else self.task.describe(prepared))
        batches = "; ".join(text for text in told if text) or self.task.describe(prepared)
        what = "loss" if any(told) else "gradient"
        kept = f"the checkpoint of step {self.saved} is kept" if self.saved else "there is no checkpoint yet"
        return (
            f"step {step}: the {what} of {phase.name} is not finite; the batch is {batches}; {kept}; look at that "
            "batch, lower the learning rate, or go on in bfloat16 or float32"
        )

    @contextlib.contextmanager
    def _told_what_to_lower(self, step: int) -> Any:
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError | MemoryError) and NO_MEMORY not in str(error):
                raise
            ways = "".join(f", {way}" for way in self.task.lowers_memory)
            kept = f"; the checkpoint of step {self.saved} is kept" if self.saved else ""
            raise OutOfMemory(
                f"step {step}: out of memory on {self.world.device}; take the batch in more pieces "
                f"(--accumulate {2 * self.execution.accumulate}){ways}, or lower the batch{kept}"
            ) from None

    def _speed(self, steps_a_second: float) -> dict[str, float]:
        tokens, operations = self.task.work
        values = {"tokens_per_second": tokens * steps_a_second}
        if self.peak:
            values["mfu"] = operations * steps_a_second / (self.peak * self.world.size)
        return values


@contextlib.contextmanager
def tensor_cores(tf32: bool) -> Iterator[None]:
    """Float32 products and convolutions on a GPU are rounded to TF32 meanwhile, or not at all."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
