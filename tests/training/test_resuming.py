"""A run goes on with what it began with alone, one process at a time, and its checkpoints say what that was."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.training.tiny import EVERY_STEP, RECIPE, Parts, make  # noqa: E402
from training import sharded, train_transformer  # noqa: E402
from training.checkpoints import CheckpointError  # noqa: E402
from training.errors import TrainingError  # noqa: E402
from training.locks import FolderLock  # noqa: E402
from training.loop import RunFolder  # noqa: E402
from training.optimizers import AdamW  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make(tmp_path_factory.mktemp("tiny"))


def train(folder: Path, shards: Path, init: Path | None = None, say: Any = lambda line: None, **execution: Any) -> Path:
    how = dataclasses.replace(EVERY_STEP, **execution)
    return train_transformer.train(folder, shards, None, None, RECIPE, how, init=init, report=say)


@pytest.fixture(scope="module")
def begun(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, from weights."""
    folder = tmp_path_factory.mktemp("begun")
    weights = train(folder / "weights", parts.public, until=1)
    train(folder / "run", parts.public, weights, until=1)
    return folder


def one_shard(parts: Parts, folder: Path) -> dict[str, Any]:
    (folder / "shard-00000.npz").write_bytes((parts.public / "shard-00000.npz").read_bytes())
    return {"shards": folder}


def other_texts(parts: Parts, folder: Path) -> dict[str, Any]:
    for path in parts.public.iterdir():
        with np.load(path) as shard:
            np.savez(folder / path.name, **{**shard, "text": np.full((4, 1), "make it red")})
    return {"shards": folder}


def other_weights(parts: Parts, folder: Path) -> dict[str, Any]:
    return {"init": train(folder / "other", parts.public, until=2)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (one_shard, r"tokens 2 shards of 8 groups \(\w{12}\) instead of 1 shards of 4 groups \(\w{12}\)"),
        (other_texts, r"tokens 2 shards of 8 groups \(\w{12}\) instead of 2 shards of 8 groups \(\w{12}\)"),
        (other_weights, r"init transformer.pt \(\w{12}\) instead of transformer.pt \(\w{12}\)"),
        (lambda parts, folder: {"init": None}, r"init transformer.pt \(\w{12}\) instead of no weights"),
    ],
)
def test_a_run_does_not_go_on_with_other_inputs(
    parts: Parts, begun: Path, tmp_path: Path, change: Callable[[Parts, Path], dict[str, Any]], said: str
) -> None:
    given = {"shards": parts.public, "init": begun / "weights/transformer.pt"} | change(parts, tmp_path)
    with pytest.raises(CheckpointError, match=rf"last.pt was trained on other inputs \({said}\); give those"):
        train(begun / "run", given["shards"], given["init"], until=1)


def test_inputs_may_lie_elsewhere(parts: Parts, begun: Path, tmp_path: Path) -> None:
    for path in parts.public.iterdir():
        (tmp_path / path.name).symlink_to(path)
    train(begun / "run", tmp_path, begun / "weights/transformer.pt", until=1)


def test_a_resumed_run_does_not_say_again_how_it_starts(parts: Parts, tmp_path: Path) -> None:
    said: list[str] = []
    train(tmp_path, parts.public, say=said.append, until=1)
    assert said == ["training starts from random weights: no --init, and the recipe has no head start"]
    train(tmp_path, parts.public, say=said.append, until=2)
    assert len(said) == 1


@pytest.mark.parametrize("way", ["none", "fsdp"])
def test_a_checkpoint_says_what_it_came_from(parts: Parts, tmp_path: Path, way: str) -> None:
    train(tmp_path, parts.public, parallel=way, until=1)
    parted = sharded.newest(tmp_path)
    facts = sharded.read_facts(parted) if parted else torch.load(tmp_path / "last.pt", weights_only=True)
    assert facts["step"] == 1 and facts["recipe"]["data"]["pictures"] == 4
    assert facts["inputs"].keys() == {"init", "tokens"}
    assert torch.__version__.startswith(facts["made_with"]["torch"].partition("+")[0])
    assert {"editar_rt", "python", "numpy"} <= facts["made_with"].keys()


def test_a_second_run_in_a_folder_is_refused_while_the_first_lives(parts: Parts, tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path, RECIPE),
        pytest.raises(TrainingError, match=r"is being trained in by process \d+ on .+; wait until it has ended, stop"),
    ):
        train(tmp_path, parts.public)
    train(tmp_path, parts.public, until=1)


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    holding = "import sys, time; from pathlib import Path; from training.locks import FolderLock\n"
    holding += "FolderLock(Path(sys.argv[1])).take(); print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", holding, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout and process.stdout.readline() == b"held\n"
        with pytest.raises(TrainingError, match=f"by process {process.pid} on"):
            FolderLock(tmp_path).take()
        process.send_signal(signal.SIGKILL)
    FolderLock(tmp_path).take()


def test_an_optimizer_keeps_nothing_of_the_checkpoint_that_it_was_loaded_from() -> None:
    """A checkpoint is mapped, and its file is replaced while the run goes on."""
    weights = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = AdamW([weights], lr=0.1, weight_decay=0.0)
    weights.sum().backward()
    optimizer.apply(1.0)
    states = optimizer.state_dict()
    optimizer.load_state_dict(states)
    kept = optimizer.optimizers[0].state[weights]
    given = states[0]["state"][0]
    assert torch.equal(kept["exp_avg"], given["exp_avg"])
    assert all(kept[name].data_ptr() != given[name].data_ptr() for name in given)
