"""Where a run's numbers go beside `log.jsonl`: a progress bar on a terminal, TensorBoard, Weights & Biases; and speed.

Speed is tokens/s (positions that go through the transformer, forward and backward) and, where a peak is known, MFU:
the floating-point operations that the model's matrices and attention take, over what the devices could do in that time.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from training.errors import TrainingError
from training.loop import RunFolder

if TYPE_CHECKING:
    from rich.progress import Progress

PROFILED = 3  # steps
TRACE = "trace.json"


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a plain square product here, the best of three: a peak to stand in for
    the maker's figure.
    """
    side = 8192 if device.type == "cuda" else 1024  # rows and columns
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):  # the first one warms up, and is never the best
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best


def operations(forward: Callable[[], object]) -> float:
    """Floating-point operations of training through `forward`: those of its products, counted, and twice as many for
    the backward pass. What recomputing repeats does not count."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        forward()
    return 3.0 * counter.get_total_flops()


class Profiler(Protocol):
    """Is told of every step that has ended."""

    def step(self) -> None: ...


class _NoProfiler:
    def step(self) -> None:
        pass


@contextlib.contextmanager
def profiled(run: RunFolder, asked: bool) -> Iterator[Profiler]:
    """Records `PROFILED` steps, after a few that warm up, to `trace.json` in the run's folder.

    Chrome's `about:tracing` and https://ui.perfetto.dev show such a file.
    """
    if not asked or not run.writes:
        yield _NoProfiler()
        return
    from torch.profiler import profile, schedule

    when = schedule(wait=1, warmup=1, active=PROFILED, repeat=1)
    with profile(schedule=when, on_trace_ready=lambda p: p.export_chrome_trace(str(run.folder / TRACE))) as profiler:
        yield profiler


class Sinks:
    """Listeners of a run's log, and its progress bar.

    Args:
        tensorboard: write `tensorboard/` in the run's folder.
        wandb: project of Weights & Biases to log to; "" for none.

    Raises:
        TrainingError: a library that was asked for and is not installed.
    """

    def __init__(self, run: RunFolder, first: int, steps: int, tensorboard: bool = False, wandb: str = "") -> None:
        self.board: Any = None
        self.wandb: Any = None
        self.progress: Progress | None = None
        if not run.writes:
            return
        if tensorboard:
            self.board = _board(run.folder / "tensorboard")
            run.listeners.append(self._to_board)
        if wandb:
            self.wandb = _wandb(wandb, run)
            run.listeners.append(lambda step, values: self.wandb.log(values, step=step))
        if sys.stderr.isatty():
            self.progress = _progress()
            self.bar = self.progress.add_task("", total=steps, completed=first, loss=float("nan"), speed="")
            self.progress.start()
            run.show = self.progress.console.print

    def _to_board(self, step: int, values: dict[str, float | str]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self.board.add_scalar(name, value, step)

    def advance(self, done: int, loss: float, speed: str) -> None:
        """Show how far the run is."""
        if self.progress:
            self.progress.update(self.bar, completed=done, loss=loss, speed=speed)

    def picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """uint8 [H, W, 3] to whoever shows pictures."""
        if self.board:
            self.board.add_image(name, picture, step, dataformats="HWC")
        if self.wandb:
            self.wandb.log({name: _wandb_module().Image(picture)}, step=step)

    def close(self) -> None:
        for sink, end in ((self.progress, "stop"), (self.board, "close"), (self.wandb, "finish")):
            if sink is not None:
                getattr(sink, end)()


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4g}  {task.fields[speed]}"),
        console=Console(stderr=True),
    )


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TrainingError("TensorBoard is not installed; pip install tensorboard, or go without it") from None
    return SummaryWriter(str(folder))


def _wandb_module() -> Any:
    try:
        import wandb
    except ImportError:
        raise TrainingError("Weights & Biases is not installed; pip install wandb, or go without it") from None
    return wandb


def _wandb(project: str, run: RunFolder) -> Any:
    # The folder's name is the run's: a resumed run goes on in the same one.
    name = run.folder.resolve().name
    return _wandb_module().init(project=project, name=name, id=name, resume="allow", config=run.recipe)
