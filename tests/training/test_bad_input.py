"""Files that are damaged, cut off, or something else: one sentence, and no traceback."""

from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from click.testing import CliRunner  # noqa: E402

from tests.training.tiny import RECIPE, SIZE, Parts, make, read_log  # noqa: E402
from training import plots  # noqa: E402
from training.__main__ import main  # noqa: E402
from training.batches import TokenShards  # noqa: E402
from training.checkpoints import CheckpointError  # noqa: E402
from training.cli import cli  # noqa: E402
from training.config import TRANSFORMER_PRESETS  # noqa: E402
from training.data.records import DataError  # noqa: E402
from training.data.shards import read_settings  # noqa: E402
from training.data.tokens import write_shards  # noqa: E402
from training.errors import TrainingError  # noqa: E402
from training.loop import RunFolder, log_lines  # noqa: E402
from training.student import read_source, read_tokenizer  # noqa: E402

CONFIG = TRANSFORMER_PRESETS["GPT-tiny"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make(tmp_path_factory.mktemp("tiny"))


def _overwritten(content: bytes) -> bytes:
    third = len(content) // 3
    return content[:third] + bytes(64) + content[third + 64 :]


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("public", lambda content: b"not a shard"),
        ("public", lambda content: b""),
        ("public", lambda content: content[: len(content) // 2]),
        ("public", lambda content: content.replace(b"\x93NUMPY", b"\0NUMPY")),  # mapped from disk
        ("world", _overwritten),  # compressed, so that it is noticed
    ],
    ids=["junk", "empty", "cut off", "no arrays in it", "overwritten"],
)
def test_a_shard_that_is_not_whole_is_named(
    parts: Parts, tmp_path: Path, kind: str, spoil: Callable[[bytes], bytes]
) -> None:
    shutil.copytree(getattr(parts, kind), tmp_path / "shards")
    second = tmp_path / "shards/shard-00001.npz"
    second.write_bytes(spoil(second.read_bytes()))
    with pytest.raises(DataError, match=r"shard-00001\.npz is no whole token shard \(.+\); remove it"):
        TokenShards(tmp_path / "shards", CONFIG, read_tokenizer(parts.text_encoder))


@pytest.mark.parametrize(
    ("name", "cut", "message"),
    [
        ("text_states", np.s_[:, :, :8], "text_states has 1 x 8 x 16 values a group, in shard-00000.npz it has 1 x 12"),
        ("features", np.s_[..., :3], "features has 1 x 4 x 4 x 3 values a group, in shard-00000.npz it has 1 x 4 x 4"),
        ("text", np.s_[:, :0], "text has 0 values a group, in shard-00000.npz it has 1"),
    ],
)
def test_a_later_shard_of_other_shapes_is_named(
    parts: Parts, tmp_path: Path, name: str, cut: tuple[slice, ...], message: str
) -> None:
    shutil.copytree(parts.public, tmp_path / "shards")
    with np.load(tmp_path / "shards/shard-00001.npz") as shard:
        arrays = dict(shard)
    np.savez_compressed(tmp_path / "shards/shard-00001.npz", **(arrays | {name: arrays[name][cut]}))
    with pytest.raises(TrainingError, match=rf"shard-00001\.npz: {message}"):
        TokenShards(tmp_path / "shards", CONFIG, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"extraction.json is not the JSON object .*restore it, or extract into another folder"),
        (b"\xff\xfe", r"extraction.json is not the JSON object"),
        (b"[]", r"extraction.json is not the JSON object .*it holds a list"),
        (b"{}", r"extraction.json does not say the shares of the data sets; run"),
        (b'{"shares": {"a": "half"}}', r"extraction.json does not say the shares of the data sets; run"),
    ],
)
def test_an_extraction_file_that_does_not_say_the_shares_is_refused(
    parts: Parts, tmp_path: Path, content: bytes, message: str
) -> None:
    with np.load(parts.public / "shard-00000.npz") as shard:
        np.savez(tmp_path / "shard-0.npz", **dict(shard), source=["a"] * 4)
    (tmp_path / "extraction.json").write_bytes(content)
    with pytest.raises((DataError, TrainingError), match=message):
        TokenShards(tmp_path, CONFIG, None)


def test_a_folder_without_an_extraction_file_has_no_settings(tmp_path: Path) -> None:
    assert read_settings(tmp_path) is None


def test_a_text_encoder_without_weights_or_with_a_broken_tokenizer_is_refused(parts: Parts, tmp_path: Path) -> None:
    folder = shutil.copytree(parts.text_encoder, tmp_path / "text")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(CheckpointError, match=r"text cannot be loaded: .*give the folder of a T5"):
        read_source(CONFIG, parts.world, None, folder, None)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(
        TrainingError, match=r"tokenizer.json is not a tokenizer \(.+\); give the text encoder's folder"
    ):
        read_source(CONFIG, parts.world, None, folder, None)


def test_tokens_of_a_file_that_is_no_tokenizer_are_refused_across_processes(tmp_path: Path) -> None:
    with open(tmp_path / "vq.pt", "wb") as file:
        pickle.dump({"model": Path("/")}, file)
    with pytest.raises(CheckpointError, match=r"vq.pt is refused: .*loading that could run code"):
        write_shards(tmp_path / "tokens", tmp_path / "vq.pt", SIZE, seed=0, shards=1, groups=1, workers=1)


def test_a_run_below_a_file_is_one_sentence(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    words = ["transformer", str(tmp_path / "file/run"), "--tokens", str(parts.public), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["training", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err == f"training: {tmp_path / 'file/run'}: Not a directory\n"


JUNK = b'\0\0\0\nnot JSON\n[1]\n{"loss": 1}\n{"step": "two"}\n\xff\n'


def test_lines_of_a_log_that_say_nothing_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + JUNK + b'{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    assert log_lines(path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]
    assert plots.read_log(path) == {"loss": ([1, 2], [2.0, 1.5])}
    drawn = CliRunner().invoke(cli, ["plot", str(tmp_path), "-o", str(tmp_path / "curves.png")])
    assert drawn.exit_code == 0 and (tmp_path / "curves.png").exists()


def test_a_run_goes_on_whatever_stands_in_its_log(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, RECIPE)
    for step in (1, 2, 3):
        run.log(step, loss=float(step))
        with open(tmp_path / "log.jsonl", "ab") as file:
            file.write(JUNK)
    again = RunFolder(tmp_path, RECIPE)
    again.go_on(tmp_path / "last.pt", run.facts(2))
    assert [line["loss"] for line in read_log(tmp_path)] == [1.0, 2.0]


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "demo", "FOLDER", "-o"),
        ("evaluate", "demo", "FOLDER", "--sheet"),
        ("evaluate", "guidance", "FOLDER", "-o"),
        ("evaluate", "guidance", "FOLDER", "--plot"),
        ("plot", "FOLDER", "-o"),
        ("data", "check", "FOLDER", "--sheet"),
    ],
    ids=" ".join,
)
def test_outputs_that_cannot_be_written_are_refused_before_the_work(command: tuple[str, ...], tmp_path: Path) -> None:
    words = [str(tmp_path) if word == "FOLDER" else word for word in command]  # no bundle, run or data: never looked at
    for output, message in ((tmp_path / "absent/out", "there is no folder"), (tmp_path, "it is a folder")):
        done = CliRunner().invoke(cli, [*words, str(output)])
        assert isinstance(done.exception, TrainingError) and message in str(done.exception)
