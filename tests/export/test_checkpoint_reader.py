"""Weights in every layout they are published in, and what is said about those that do not fit."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import re
import types
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from export.checkpoint_reader import build_transformer, build_vq, read_transformer, read_vq
from tests.conftest import GPT_TINY_HEADS, golden_weights
from training.checkpoints import open_vq
from training.config import TRANSFORMER_PRESETS, VQ_PRESETS, TransformerConfig, VQConfig
from training.models.transformer import Transformer
from training.models.vq import VQModel
from training.sizes import transformer_config, vq_config
from training.weights_file import CheckpointError

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return golden_weights("gpt_tiny")


def with_prefix(weights: Weights, prefix: str) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def save(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("key", ["model", "module", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_every_layout(weights: Weights, tmp_path: Path, key: str | None, prefix: str) -> None:
    state = with_prefix(weights, prefix)
    checkpoint = read_transformer(save({key: state} if key else state, tmp_path / "a.pt"), heads=GPT_TINY_HEADS)
    assert checkpoint.tensors.keys() == weights.keys()
    assert all(torch.equal(checkpoint.tensors[name], weights[name]) for name in weights)


def test_sizes_come_from_the_shapes(weights: Weights, tmp_path: Path) -> None:
    checkpoint = read_transformer(save(weights, tmp_path / "a.pt"), heads=4)
    assert checkpoint.config == TransformerConfig(
        dim=128, n_layer=3, n_head=4, vocab_size=256, block_size=16, cls_token_num=120, caption_dim=64, multiple_of=32
    )
    assert checkpoint.parameters == sum(tensor.numel() for tensor in weights.values())


def test_what_training_leaves_in_the_file_is_ignored(weights: Weights, tmp_path: Path) -> None:
    content = {
        "model": weights | {"alignment.weight": torch.zeros(3), "alignment.bias": torch.zeros(3)},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
        "steps": 40_000,
        "args": argparse.Namespace(lr=1e-4),  # the one class that official files hold
    }
    checkpoint = read_transformer(save(content, tmp_path / "a.pt"), heads=GPT_TINY_HEADS)
    assert checkpoint.tensors.keys() == weights.keys()


def test_safetensors_and_half_precision(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, path)
    model = build_transformer(read_transformer(path, heads=GPT_TINY_HEADS))
    assert torch.equal(model.output.weight, weights["output.weight"].bfloat16().float())


def test_the_old_file_format(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(OrderedDict(weights), path, _use_new_zipfile_serialization=False)
    assert read_transformer(path, heads=GPT_TINY_HEADS).tensors.keys() == weights.keys()


@pytest.mark.parametrize("name", list(TRANSFORMER_PRESETS))
def test_published_transformers_are_known_by_their_shapes(name: str) -> None:
    config = TRANSFORMER_PRESETS[name]
    with torch.device("meta"):
        state = Transformer(config).state_dict()
    found = transformer_config(Path("a.pt"), state)
    assert found.hidden_dim == config.hidden_dim
    # Several roundings can give one hidden width.
    assert dataclasses.replace(found, multiple_of=config.multiple_of) == config


@pytest.mark.parametrize("name", ["VQ-16", "VQ-8"])
def test_published_vq_tokenizers_are_known_by_their_shapes(name: str) -> None:
    with torch.device("meta"):
        state = VQModel(VQ_PRESETS[name]).state_dict()
    assert vq_config(Path("a.pt"), state) == VQ_PRESETS[name]


def test_a_stored_configuration_says_what_shapes_do_not(tmp_path: Path) -> None:
    config = VQConfig(channels=16, channel_multipliers=(1, 2), res_blocks=1, z_channels=16, norm_groups=4)
    path = save({"model": VQModel(config).state_dict(), "config": config.to_dict()}, tmp_path / "a.pt")
    checkpoint = read_vq(path)
    assert checkpoint.config == config
    assert build_vq(checkpoint).config.norm_groups == 4


def test_heads_must_be_said_for_an_unknown_width(weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"width 128 is not among.*1280: 20.*give --heads N"):
        read_transformer(save(weights, tmp_path / "a.pt"))


def test_heads_that_do_not_divide_the_width(weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must be a multiple of 4, got 128 / 5"):
        read_transformer(save(weights, tmp_path / "a.pt"), heads=5)


def test_every_tensor_that_does_not_fit_is_named(weights: Weights, tmp_path: Path) -> None:
    state = dict(weights)
    del state["layers.1.attention.wo.weight"], state["norm.weight"]
    state["layers.2.ffn_norm.weight"] = torch.zeros(64)
    state["freqs"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        read_transformer(save(state, tmp_path / "a.pt"), heads=GPT_TINY_HEADS)
    for part in (
        "missing: layers.1.attention.wo.weight, norm.weight;",
        "unexpected: freqs;",
        "mis-shaped: layers.2.ffn_norm.weight has shape [64] instead of [128]",
    ):
        assert part in str(error.value)


def test_weights_of_a_text_to_image_model_lack_what_editing_needs(weights: Weights, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in weights.items() if name != "img_uncond_embedding"}
    with pytest.raises(CheckpointError, match="lacks img_uncond_embedding"):
        read_transformer(save(state, tmp_path / "a.pt"), heads=GPT_TINY_HEADS)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo run > {self.trace}",)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_runs_code_is_refused_unrun(weights: Weights, tmp_path: Path, new_format: bool) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "a.pt"
    torch.save({"model": weights, "args": Malicious(trace)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match=r"is refused: it needs \w+\.system, and loading that could run code"):
        read_transformer(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pt", b"not a checkpoint", "is refused|not a whole PyTorch file"),
        ("a.pt", b"", "not a whole PyTorch file"),
        ("a.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "not a whole safetensors file"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_vq(path)


def test_a_truncated_file(weights: Weights, tmp_path: Path) -> None:
    path = save(weights, tmp_path / "a.pt")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="not a whole PyTorch file"):
        read_transformer(path)


@pytest.mark.parametrize("content", [[1, 2], {"model": {}}, {"steps": 3}])
def test_files_without_a_model(tmp_path: Path, content: Any) -> None:
    with pytest.raises(CheckpointError, match=r"not a dictionary of tensors|lacks tok_embeddings\.weight"):
        read_transformer(save(content, tmp_path / "a.pt"))


class Settings:
    """Some other program's class."""

    def __init__(self) -> None:
        self.width = 128


class Table(dict[str, int]):
    """Some other program's dictionary."""


PASSED_OVER = {
    "numpy scalar": np.float64(0.5),
    "numpy array": np.arange(3),
    "path": Path("runs/one"),
    "namespace": types.SimpleNamespace(lr=1e-4, out=Path("x")),
    "class": Settings(),
    "dictionary": Table(steps=3),
    "default dictionary": defaultdict(list, a=[1]),
    "date": datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
}


@pytest.mark.parametrize("kind", PASSED_OVER)
@pytest.mark.parametrize("new_format", [True, False])
def test_other_programs_objects_beside_the_weights_are_passed_over_and_named(
    weights: Weights, tmp_path: Path, kind: str, new_format: bool
) -> None:
    content = {"args": {"value": PASSED_OVER[kind]}, "model": weights, "config": {"lr": 1e-4, "model": "large"}}
    path = tmp_path / "a.pt"
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    checkpoint = read_transformer(path, heads=GPT_TINY_HEADS)
    assert all(torch.equal(checkpoint.tensors[name], weights[name]) for name in weights)
    assert re.search(r"objects of [\w.]+(, [\w.]+)* were passed over", checkpoint.notes[0])
    assert "config is another program's and was passed over" in checkpoint.notes[-1]


@pytest.mark.parametrize(
    "config",
    [types.SimpleNamespace(dim=1), {"dim": np.int64(128), "n_head": 4}, {"dim": 128, "lr": 0.1}, [1, 2], {}, "GPT-B"],
    ids=repr,
)
def test_sizes_are_read_off_the_weights_where_the_config_is_not_ours(
    weights: Weights, tmp_path: Path, config: Any
) -> None:
    path = save({"model": weights, "config": config}, tmp_path / "a.pt")
    assert read_transformer(path, heads=GPT_TINY_HEADS).config.n_layer == 3


def test_the_moving_average_is_taken_and_said_unless_chosen_otherwise(weights: Weights, tmp_path: Path) -> None:
    average = {name: tensor / 2 for name, tensor in weights.items()}
    path = save({"model": weights, "ema": average}, tmp_path / "a.pt")
    for chosen, expected, told in ((None, average, 1), ("ema", average, 0), ("model", weights, 0)):
        checkpoint = read_transformer(path, GPT_TINY_HEADS, chosen)
        assert torch.equal(checkpoint.tensors["norm.weight"], expected["norm.weight"])
        assert len(checkpoint.notes) == told
    assert "holds model and ema: ema, the moving average, is taken" in read_transformer(path, 4).notes[0]
    with pytest.raises(
        CheckpointError, match="holds no averaged weights; take those that it has, with --weights model"
    ):
        read_transformer(save(weights, tmp_path / "b.pt"), GPT_TINY_HEADS, "ema")


CONFIG = TransformerConfig(
    dim=128, n_layer=3, n_head=4, vocab_size=256, block_size=16, cls_token_num=120, caption_dim=64, multiple_of=32
).to_dict()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_layer": 10**8}, "other sizes than its config says: n_layer 3 instead of 100000000"),
        ({"block_size": 10**8}, "block_size 16 instead of 100000000"),
        ({"n_layer": 10**20}, "n_layer must be an integer from 1 to 2147483647, got 1000"),
        ({"n_head": 0}, "n_head must be an integer from 1"),
        ({"n_head": 4.0}, r"n_head must be an integer from 1 to 2147483647, got 4\.0"),
        ({"dim": "zz"}, "dim must be an integer .* got 'zz'"),
        ({"dim": [128]}, r"dim must be an integer .* got \(128,\)"),
        ({"norm_eps": float("nan")}, "norm_eps must be a number above 0, got nan"),
        ({"rope_base": -1}, "rope_base must be a number above 0, got -1"),
        ({"rope_base": True}, "rope_base must be a number above 0, got True"),
    ],
)
def test_a_config_that_claims_what_the_weights_are_not_is_refused(
    weights: Weights, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    path = save({"model": weights, "config": CONFIG | changed}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        read_transformer(path)


@pytest.mark.parametrize("changed", [{"channel_multipliers": [1] * 99}, {"channel_multipliers": 1}, {"norm_groups": 0}])
def test_a_tokenizers_config_is_held_against_its_weights_too(tmp_path: Path, changed: dict[str, Any]) -> None:
    config = VQConfig(channels=16, channel_multipliers=(1, 2), res_blocks=1, z_channels=16, norm_groups=4)
    content = {"model": VQModel(config).state_dict(), "config": config.to_dict() | changed}
    for read in (read_vq, open_vq):
        with pytest.raises(CheckpointError, match=f"config cannot be: {next(iter(changed))} must be"):
            read(save(content, tmp_path / "a.pt"))
    content["config"] = config.to_dict() | {"res_blocks": 10**8}
    for read in (read_vq, open_vq):
        with pytest.raises(CheckpointError, match="res_blocks 1 instead of 100000000"):
            read(save(content, tmp_path / "a.pt"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layers.99999999.norm.weight", torch.zeros(1), "holds layers up to number 99999999 and lacks number 3"),
        (f"layers.{'9' * 5000}.norm.weight", torch.zeros(1), "unexpected: layers.9{70,80}…"),
        ("\x1b[31mred", torch.zeros(1), r"unexpected: '\\x1b\[31mred'"),
        ("norm.weight", torch.zeros(128, dtype=torch.complex64), r"norm.weight is complex \(complex64\)"),
        ("norm.weight", torch.zeros(128, dtype=torch.int8), "norm.weight is of the type int8"),
        ("norm.weight", torch.zeros(128).to_sparse(), "norm.weight is not a plain tensor"),
        ("norm.weight", torch.zeros(128, device="meta"), "norm.weight has no values"),
        ("norm.weight", torch.zeros(1).expand(128), r"norm.weight has the shape \[128\], and fewer values than that"),
        (
            "img_uncond_embedding",
            torch.zeros(10**12, 0),
            r"img_uncond_embedding must have 2 dimensions, none of them 0",
        ),
    ],
)
def test_names_and_tensors_that_are_no_weights_are_refused_by_name(
    weights: Weights, tmp_path: Path, name: str, value: torch.Tensor, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_transformer(save(weights | {name: value}, tmp_path / "a.pt"), heads=GPT_TINY_HEADS)


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10 << 20))
    with pytest.raises(CheckpointError, match="is a compressed archive of 10485760 bytes"):
        read_transformer(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file"):
        read_transformer(tmp_path / "none.pt")
