"""Batches of steps to come, prepared by threads while the present one is trained on.

Threads are enough: decoding and scaling pictures, and reading from the disk, leave Python's lock to others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from torch import Tensor

Prepared = TypeVar("Prepared")


class Coming(Generic[Prepared]):
    """The batches of steps to come, `ahead` of them prepared by `workers` threads meanwhile."""

    def __init__(self, prepare: Callable[[int], Prepared], last: int, ahead: int, workers: int = 1) -> None:
        self.prepare, self.last, self.ahead = prepare, last, ahead
        self.pool = ThreadPoolExecutor(workers) if ahead else None
        self.waiting: dict[int, Future[Prepared]] = {}

    def take(self, step: int) -> Prepared:
        if self.pool is None:
            return self.prepare(step)
        for coming in range(step, min(step + 1 + self.ahead, self.last)):
            if coming not in self.waiting:
                self.waiting[coming] = self.pool.submit(self.prepare, coming)
        return self.waiting.pop(step).result()

    def __enter__(self) -> Coming[Prepared]:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)


def pinned(value: Any) -> Any:
    """A batch with its tensors in pinned memory, in whichever lists and dataclasses they lie."""
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, list):
        return [pinned(entry) for entry in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: pinned(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value
