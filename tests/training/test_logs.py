"""What a run says goes to Weights & Biases too, as its library is called; a stub stands in for the library."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from training.errors import TrainingError  # noqa: E402
from training.logs import Sinks  # noqa: E402
from training.loop import RunFolder  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Recipe:
    steps: int = 7


class Stub(ModuleType):
    """The part of `wandb` that is called; keeps what it is told, in order."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.told: list[Any] = []

    def init(self, *, project: str, name: str, id: str, resume: str, config: dict[str, Any]) -> Stub:  # noqa: A002
        self.told.append(("init", project, name, id, resume, config))
        return self

    def log(self, values: dict[str, Any], *, step: int) -> None:
        self.told.append(("log", step, values))

    def finish(self) -> None:
        self.told.append(("finish",))

    class Image:
        def __init__(self, picture: np.ndarray) -> None:
            self.picture = picture


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Stub:
    stub = Stub()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    return stub


def test_a_run_is_begun_logged_and_ended_at_weights_and_biases(tmp_path: Path, wandb: Stub) -> None:
    run = RunFolder(tmp_path / "first", Recipe())
    sinks = Sinks(run, 0, 7, wandb="project")
    # A resumed run goes on in the same one: its id is the folder's name.
    assert wandb.told == [("init", "project", "first", "first", "allow", {"steps": 7})]
    run.log(3, loss=0.5, note="warm")
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    sinks.picture("samples", picture, 4)
    sinks.close()
    _, logged, (_, step, shown), end = wandb.told
    assert logged == ("log", 3, {"loss": 0.5, "note": "warm"})
    assert step == 4 and list(shown) == ["samples"] and np.array_equal(shown["samples"].picture, picture)
    assert end == ("finish",)


def test_a_resumed_run_has_the_same_id_from_wherever_its_folder_is_named(
    tmp_path: Path, wandb: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    Sinks(RunFolder(tmp_path / "run", Recipe()), 0, 7, wandb="p").close()
    monkeypatch.chdir(tmp_path / "run")
    Sinks(RunFolder(".", Recipe()), 0, 7, wandb="p").close()
    first, second = [told for told in wandb.told if told[0] == "init"]
    assert first == second


def test_only_the_process_that_writes_logs_and_only_when_asked(tmp_path: Path, wandb: Stub) -> None:
    for folder, writes, project in (("second", False, "project"), ("plain", True, "")):
        run = RunFolder(tmp_path / folder, Recipe(), writes=writes)
        sinks = Sinks(run, 0, 7, wandb=project)
        run.log(1, loss=0.5)
        sinks.picture("samples", np.zeros((2, 2, 3), np.uint8), 1)
        sinks.close()
    assert wandb.told == []


def test_weights_and_biases_asked_for_and_not_installed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it fails
    with pytest.raises(TrainingError, match="Weights & Biases is not installed; pip install wandb"):
        Sinks(RunFolder(tmp_path / "run", Recipe()), 0, 7, wandb="project")
