"""Two processes train what one does, sharded or not, and one goes on with what two have left.

Losses may differ in the order of float32 sums alone: a batch of four is summed as 4, 2 + 2 or 1 + 1 + 1 + 1 rows. With
losses about 5, that is 1e-6 in a step; AdamW divides by the gradient's size, which can make more of it where gradients
are next to nothing, so four steps are given 1e-4.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.commands import Command  # noqa: E402
from tests.training.tiny import EVERY_STEP, RECIPE, SIZE, VQ, Parts, make, read_log, write_recipe  # noqa: E402
from training import sharded, train_transformer, train_vq  # noqa: E402
from training.checkpoints import CheckpointError, load_transformer  # noqa: E402
from training.errors import TrainingError  # noqa: E402
from training.recipes.fields import changed  # noqa: E402

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def one(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe on one process."""
    folder = tmp_path_factory.mktemp("one")
    train_transformer.train(folder, parts.public, None, None, RECIPE, EVERY_STEP)
    return folder


@pytest.fixture(scope="module")
def options(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of the command that trains the recipe."""
    recipe = write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.toml")
    return ["--tokens", str(parts.public), "--device", "cpu", "--recipe", str(recipe), "--log-every", "1"]


@pytest.fixture(scope="module")
def two(parts: Parts, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of `two_processes`."""
    folder = tmp_path_factory.mktemp("two")
    on_two_processes("-m", "tests.training.two_processes", str(parts.public), str(folder), *options)
    return folder


def on_two_processes(*command: str) -> str:
    """What they print."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*torchrun, *command], capture_output=True, text=True, cwd=ROOT, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(folder: Path) -> list[tuple[float, float, float]]:
    log = read_log(folder)
    return [(line["loss"], line["distillation"], line["gradient"]) for line in log]


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_of_one(one: Path, two: Path, way: str) -> None:
    """`ddp` takes its share in two pieces; `fsdp` was stopped after three steps and went on recomputing its layers."""
    found, wanted = (torch.tensor(losses(folder)) for folder in (two / way, one))
    assert found.shape == (4, 3)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_same_command_trains_on_any_number_of_processes_and_the_result_edits(
    trainer: Command, exporter: Command, parts: Parts, one: Path, two: Path, options: list[str], tmp_path: Path
) -> None:
    """Two processes began, one goes on, two end it; then the checkpoint is exported and edits a picture."""
    import editar_rt

    run, bundle = two / "command", tmp_path / "bundle"
    said = f"{run / 'transformer.pt'}\n"
    done = trainer("transformer", run, *options, "--until", "2")
    assert (done.code, done.stdout) == (0, said), done.stderr
    assert on_two_processes("-m", "tests.training.tiny", "transformer", str(run), *options) == said
    found, wanted = (torch.tensor(losses(folder)) for folder in (run, one))
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)
    made = ("--transformer", run / "transformer.pt", "--vq", parts.vq, "--text-encoder", parts.text_encoder)
    done = exporter("onnx", *made, "--heads", 2, "--image-size", SIZE, "-o", bundle)
    assert done.code == 0, done.stderr
    result = editar_rt.load(bundle, "cpu").edit(np.full((SIZE, SIZE, 3), 128, np.uint8), "make the ball red")
    assert result.image.size == (SIZE, SIZE)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_their_checkpoint_is_put_together_in_the_official_layout(one: Path, two: Path, way: str) -> None:
    found, wanted = (load_transformer(folder / "transformer.pt").state_dict() for folder in (two / way, one))
    assert list(found) == list(wanted)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=TOLERANCE)


def test_two_processes_train_the_tokenizer_of_one(two: Path, tmp_path: Path) -> None:
    """Two steps without the codebook, then k-means, then two with it: there a rounding can choose another row for one
    of the 256 vectors of a batch, which moves the loss by about that share."""
    train_vq.train(tmp_path, VQ, EVERY_STEP)
    found, wanted = ([line["loss"] for line in read_log(f) if "loss" in line] for f in (two / "vq", tmp_path))
    assert len(found) == len(wanted) == 4
    assert found[:2] == pytest.approx(wanted[:2], rel=TOLERANCE)
    assert found[2:] == pytest.approx(wanted[2:], rel=2 / 256)


def test_the_discriminator_is_trained_on_two_processes(two: Path) -> None:
    """Its batch normalization sees each process's pictures alone, so the numbers are not those of one."""
    lines = [line for line in read_log(two / "gan") if "loss" in line]
    assert [("loss_adversarial" in line, "discriminator_gradient" in line) for line in lines] == [
        (False, False), (True, True), (True, True), (True, True),
    ]  # fmt: skip


def test_a_sharded_run_keeps_one_checkpoint_without_pickles(two: Path) -> None:
    assert [path.name for path in sorted((two / "fsdp").glob("step-*"))] == ["step-00000004"]
    files = sorted(path.name for path in (two / "fsdp/step-00000004").iterdir())
    assert files[0] == "checkpoint.json" and len(files) == 3
    assert all(name.endswith(".safetensors") for name in files[1:])


def test_one_process_goes_on_with_what_two_have_left(parts: Parts, one: Path, two: Path) -> None:
    train_transformer.train(two / "moved", parts.public, None, None, RECIPE, EVERY_STEP)
    torch.testing.assert_close(
        torch.tensor(losses(two / "moved")), torch.tensor(losses(one)), rtol=TOLERANCE, atol=TOLERANCE
    )


def test_a_sharded_model_trains_on_one_process_too(parts: Parts, one: Path, tmp_path: Path) -> None:
    for until in (3, 0):
        execution = dataclasses.replace(EVERY_STEP, parallel="fsdp", until=until)
        train_transformer.train(tmp_path, parts.public, None, None, RECIPE, execution)
    torch.testing.assert_close(torch.tensor(losses(tmp_path)), torch.tensor(losses(one)), rtol=1e-6, atol=1e-6)


def test_a_sharded_run_does_not_go_on_with_a_whole_checkpoint(parts: Parts, one: Path) -> None:
    with pytest.raises(CheckpointError, match=r"last.pt is of a run that was not sharded; go on with --parallel ddp"):
        execution = dataclasses.replace(EVERY_STEP, parallel="fsdp")
        train_transformer.train(one, parts.public, None, None, RECIPE, execution)


def test_a_damaged_part_is_refused(parts: Parts, two: Path, tmp_path: Path) -> None:
    source = sharded.newest(two / "fsdp")
    assert source is not None
    copy = tmp_path / source.name
    copy.mkdir()
    for path in source.iterdir():
        content = path.read_bytes()
        (copy / path.name).write_bytes(content[:-64] if path.name.startswith("shard-00002") else content)
    with pytest.raises(CheckpointError, match="does not hold this run's checkpoint"):
        train_transformer.train(tmp_path, parts.public, None, None, RECIPE, EVERY_STEP)


def test_what_cannot_be_sharded_is_said(parts: Parts, tmp_path: Path) -> None:
    muon = changed(RECIPE, {"optimizer.name": "muon"})
    with pytest.raises(TrainingError, match="Muon takes whole matrices"):
        execution = dataclasses.replace(EVERY_STEP, parallel="fsdp")
        train_transformer.train(tmp_path, parts.public, None, None, muon, execution)


def test_a_batch_that_cannot_be_shared_is_refused(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="4 pictures a batch are not shared evenly by 1 processes with 3 pieces"):
        train_transformer.train(
            tmp_path, parts.public, None, None, RECIPE, dataclasses.replace(EVERY_STEP, accumulate=3)
        )
