"""Weights that a graph's numbers cannot hold are refused by name before the work."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from export.bundle_writer import Options, Sources, write_bundle
from export.checkpoint_reader import read_transformer, read_vq
from export.precision import Storage
from export.weight_ranges import largest_values, text_types
from tests.conftest import GPT_TINY_HEADS, golden_weights
from training.weights_file import CheckpointError

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value", "storage", "message"),
    [
        ("norm.weight", NAN, Storage(), "contains NaN or infinity in norm.weight"),
        ("layers.1.attention.wo.weight", -INFINITY, Storage("int8"), "NaN or infinity in layers.1.attention.wo.weight"),
        ("img_uncond_embedding", NAN, Storage("int4"), "NaN or infinity in img_uncond_embedding"),
        (
            "layers.2.feed_forward.w2.weight",
            -7e4,
            Storage("fp16"),
            "w2.weight contains 70000, but the largest fp16 is 65504",
        ),
        ("tok_embeddings.weight", 7e4, Storage("int8"), "tok_embeddings.weight contains 70000.*--precision fp32"),
        ("output.weight", 7e4, Storage("int8", provider="cuda"), "output.weight contains 70000"),
        ("output.weight", 3.4e38, Storage("bf16", provider="cuda"), "the largest bf16 is 3.38953e.38"),
        ("output.weight", 1e300, Storage(), r"the largest fp32 is 3.40282e\+38$"),
    ],
)
def test_a_transformers_weights(tmp_path: Path, name: str, value: float, storage: Storage, message: str) -> None:
    weights = golden_weights("gpt_tiny")
    weights[name] = weights[name].double()
    weights[name].view(-1)[7] = value
    torch.save({"model": weights}, tmp_path / "a.pt")
    sources = Sources(transformer=read_transformer(tmp_path / "a.pt", GPT_TINY_HEADS))
    with pytest.raises(CheckpointError, match=message):
        write_bundle(tmp_path / "bundle", sources, Options(storage=storage))
    assert not (tmp_path / "bundle").exists()


def test_a_tokenizers_and_a_text_encoders_weights(tiny_sources: Sources, tmp_path: Path) -> None:
    assert tiny_sources.vq is not None and tiny_sources.text_encoder is not None
    state = {name: tensor.clone() for name, tensor in tiny_sources.vq.tensors.items()}
    state["post_quant_conv.bias"][0] = NAN
    torch.save({"model": state, "config": tiny_sources.vq.config.to_dict()}, tmp_path / "vq.pt")
    with pytest.raises(CheckpointError, match="NaN or infinity in post_quant_conv.bias"):
        write_bundle(tmp_path / "b", Sources(vq=read_vq(tmp_path / "vq.pt")), Options(image_size=32))
    for largest in ({"shared.weight": INFINITY}, {"shared.weight": 7e4}):
        text = dataclasses.replace(tiny_sources.text_encoder, largest=largest)
        with pytest.raises(CheckpointError, match="shared.weight"):
            write_bundle(tmp_path / "b", Sources(text_encoder=text), Options(storage=Storage("fp16")))


def test_what_a_text_encoder_keeps_in_float32_may_be_larger() -> None:
    assert text_types(Storage("fp16"))("encoder.block.0.layer.1.DenseReluDense.wo.weight") == torch.float32
    assert text_types(Storage("fp16"))("shared.weight") == torch.float16
    assert text_types(Storage("int8"))("shared.weight") == torch.float32


def test_magnitudes_of_every_floating_type() -> None:
    types = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
    assert largest_values({str(t): torch.tensor([1.0, -2.0]).to(t) for t in types}) == {str(t): 2.0 for t in types}
