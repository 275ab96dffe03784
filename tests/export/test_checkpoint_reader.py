"""Weights in every layout they are published in, and what is said about those that do not fit."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from export.checkpoint_reader import build_transformer, build_vq, read_transformer, read_vq
from tests.conftest import GPT_TINY_HEADS, golden_weights
from training.checkpoints import CheckpointError
from training.config import TRANSFORMER_PRESETS, VQ_PRESETS, TransformerConfig, VQConfig
from training.models.transformer import Transformer
from training.models.vq import VQModel

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
def test_published_transformers_are_known_by_their_shapes(name: str, tmp_path: Path) -> None:
    config = TRANSFORMER_PRESETS[name]
    with torch.device("meta"):
        state = Transformer(config).state_dict()
    found = read_transformer(save_shapes(state, tmp_path)).config
    assert found.hidden_dim == config.hidden_dim
    # Several roundings can give one hidden width.
    assert dataclasses.replace(found, multiple_of=config.multiple_of) == config


@pytest.mark.parametrize("name", ["VQ-16", "VQ-8"])
def test_published_vq_tokenizers_are_known_by_their_shapes(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        state = VQModel(VQ_PRESETS[name]).state_dict()
    assert read_vq(save_shapes(state, tmp_path)).config == VQ_PRESETS[name]


def save_shapes(state: dict[str, torch.Tensor], folder: Path) -> Path:
    """A checkpoint of zeros with the shapes of `state`, in a file of a few kilobytes."""
    return save({name: torch.zeros(1).expand(tensor.shape) for name, tensor in state.items()}, folder / "a.pt")


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


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file"):
        read_transformer(tmp_path / "none.pt")
