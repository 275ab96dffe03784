"""What the options of an execution do beside how fast it goes: what stays in the folder, and what is handed on."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.training.data_sets import world_samples  # noqa: E402
from tests.training.tiny import EVERY_STEP, RECIPE, SIZE, Parts, make, read_log  # noqa: E402
from training import engine, train_transformer  # noqa: E402
from training.batches import _epoch_order, draw  # noqa: E402
from training.data.folder import write_folder  # noqa: E402
from training.engine import Execution, tensor_cores  # noqa: E402
from training.errors import TrainingError  # noqa: E402
from training.loop import RunFolder  # noqa: E402
from training.prefetch import Coming, pinned  # noqa: E402
from training.recipes.fields import changed  # noqa: E402
from training.weights_file import read_weights  # noqa: E402


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make(tmp_path_factory.mktemp("tiny"))


def train(folder: Path, parts: Parts, recipe: Any = RECIPE, validation: Path | None = None, **execution: Any) -> Path:
    how = dataclasses.replace(EVERY_STEP, **execution)
    arguments = (parts.public, parts.text_encoder, parts.vq, recipe, how)
    return train_transformer.train(folder, *arguments, validation=validation)


@pytest.mark.parametrize("way", ["none", "fsdp"])
def test_the_last_checkpoints_stay(parts: Parts, tmp_path: Path, way: str) -> None:
    train(tmp_path, parts, parallel=way, save_every=1, keep=2)
    names = sorted(path.name.partition(".")[0] for path in tmp_path.glob("step-*"))
    assert names == ["step-00000003", "step-00000004"]


def test_an_earlier_checkpoint_may_be_gone_on_from(parts: Parts, tmp_path: Path) -> None:
    train(tmp_path / "run", parts, save_every=1, keep=3)
    (tmp_path / "earlier").mkdir()
    (tmp_path / "run/step-00000002.pt").rename(tmp_path / "earlier/last.pt")
    train(tmp_path / "earlier", parts)
    assert read_log(tmp_path / "earlier")[-1]["loss"] == pytest.approx(read_log(tmp_path / "run")[-1]["loss"], abs=1e-6)


def test_the_best_weights_stay(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, RECIPE)
    for step, loss in enumerate((3.0, 1.0, 2.0)):
        run.save("transformer.pt", {"step": step})
        run.log(step, validation_loss=loss)
        run.keep_best("transformer.pt", "validation_loss", loss)
    assert torch.load(tmp_path / "best-transformer.pt", weights_only=True) == {"step": 1}


def test_pictures_that_are_not_trained_on_validate_too(parts: Parts, tmp_path: Path) -> None:
    write_folder(tmp_path / "kept", world_samples(2, ("recolour",), size=SIZE))
    train(tmp_path / "run", parts, validation=tmp_path / "kept", until=2)
    line = read_log(tmp_path / "run")[-1]
    assert line["validation_loss"] > 0 and "validation_right_edit" in line
    assert (tmp_path / "run/best-transformer.pt").exists()


def test_the_log_has_the_mean_loss_since_its_last_line(parts: Parts, tmp_path: Path) -> None:
    train(tmp_path / "each", parts)
    train(tmp_path / "pairs", parts, log_every=2)
    each, pairs = (np.asarray([line["loss"] for line in read_log(tmp_path / name)]) for name in ("each", "pairs"))
    np.testing.assert_allclose(pairs, each.reshape(2, 2).mean(1), rtol=1e-6)


def test_a_run_hands_on_safetensors_with_a_card(parts: Parts, tmp_path: Path) -> None:
    made = train(tmp_path / "name", parts, until=1)
    file = read_weights(tmp_path / "name/transformer.safetensors")
    tensors, config = file.tensors, file.config
    published = torch.load(made, weights_only=True)
    assert config == published["config"] and tensors.keys() == published["model"].keys()
    assert all(torch.equal(tensor, published["model"][name]) for name, tensor in tensors.items())
    card = (tmp_path / "name/README.md").read_text()
    assert "# name\n" in card and "after 1 steps" in card and "| optimizer.lr | 0.003 |" in card
    assert "| tokens | 2 shards of 8 groups (" in card and "| torch | " in card and "| loss | " in card


def test_a_trace_is_written_where_asked(parts: Parts, tmp_path: Path) -> None:
    train(tmp_path, parts, changed(RECIPE, {"schedule.steps": 5}), profile=True)
    names = {event.get("name", "") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert "aten::scaled_dot_product_attention" in names


def test_sharded_layers_may_be_put_together_in_bfloat16(parts: Parts, tmp_path: Path) -> None:
    for name, precision in (("exact", "float32"), ("rounded", "bfloat16")):
        train(tmp_path / name, parts, parallel="fsdp", fsdp_precision=precision, until=2)
    exact, rounded = (read_log(tmp_path / name)[-1]["loss"] for name in ("exact", "rounded"))
    assert exact != rounded and rounded == pytest.approx(exact, rel=2**-6)  # bfloat16 keeps 8 bits
    shares = torch.load(tmp_path / "rounded/transformer.pt", weights_only=True)["model"].values()
    assert {tensor.dtype for tensor in shares} == {torch.float32}


def test_tf32_is_on_while_training_alone() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for tf32, precision in ((True, "high"), (False, "highest")):
        with tensor_cores(tf32):
            assert torch.get_float32_matmul_precision() == precision and torch.backends.cudnn.allow_tf32 == tf32
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("field", ["workers", "keep", "accumulate"])
def test_counts_of_nothing_are_refused(field: str) -> None:
    with pytest.raises(TrainingError, match=f"{field} must be at least 1, got 0"):
        Execution(**{field: 0})


def test_an_unknown_precision_of_shards_is_refused() -> None:
    with pytest.raises(TrainingError, match="fsdp_precision is one of float32, bfloat16, got 'float16'"):
        Execution(fsdp_precision="float16")


def test_several_threads_prepare_batches_at_once_and_they_come_in_order() -> None:
    both = threading.Barrier(2, timeout=10)  # passed by two at once alone

    def prepare(step: int) -> int:
        both.wait()
        return step

    with Coming(prepare, 4, ahead=3, workers=2) as coming:
        assert [coming.take(step) for step in range(4)] == [0, 1, 2, 3]


@dataclasses.dataclass
class Nested:
    tensors: list[Any]
    count: int
    nothing: None = None


def test_all_tensors_of_a_batch_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)
    found = pinned(Nested([torch.zeros(1), Nested([torch.zeros(1)], 2)], 3))
    assert found.tensors[0] == found.tensors[1].tensors[0] == 1 and (found.count, found.tensors[1].count) == (3, 2)


def test_an_epoch_is_shuffled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _epoch_order.cache_clear()
    drawn = np.concatenate([draw([7], first, 4, 10) for first in range(0, 20, 4)])
    assert _epoch_order.cache_info().misses == 2
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:].tolist()) == list(range(10))
    assert drawn[:10].tolist() == np.random.default_rng([7, 0]).permutation(10).tolist()


def test_batches_are_pinned_for_a_gpu_alone(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "pinned", lambda value: pytest.fail("nothing is pinned on a CPU"))
    train(tmp_path, parts, until=1)
