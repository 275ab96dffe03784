"""`python -m export verify`: right bundles pass, wrong ones are named by part, output and token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from editar_rt import names
from editar_rt.bundle.folder import Bundle
from export.bundle_writer import Options, Sources, write_bundle
from export.checkpoint_reader import read_transformer
from export.verify import _PyTorchRunner, _questions, verify
from tests.commands import Command
from tests.conftest import GPT_TINY_HEADS, golden_weights
from tests.golden.seeded_checkpoint import gpt_state
from training.config import TransformerConfig

DECODERS = {names.DECODER, names.DECODER_CHUNKS}


def test_a_right_bundle_agrees_in_every_part_and_token(tiny_bundle: Path, tiny_sources: Sources) -> None:
    report = verify(tiny_bundle, tiny_sources, steps=16)
    assert report.holds
    assert {c.part for c in report.parts} == {"vq_encoder", "vq_decoder", "text_encoder", "prefix", *DECODERS}
    assert [g.first_difference for g in report.generated] == [None, None]
    assert max(c.error for c in report.parts) < 2e-5


def test_the_runtime_of_a_device_is_compared_too(golden_gpt_bundle_delta: Path, tiny_sources: Sources) -> None:
    sources = Sources(transformer=tiny_sources.transformer)
    report = verify(golden_gpt_bundle_delta, sources, steps=16, device="emulated")
    assert report.holds and [g.first_difference for g in report.generated] == [None, None]
    assert report.backend.endswith("emulating TensorRT")
    through = [c for c in report.parts if c.output.startswith("text_prefix")]
    assert len(through) == 2 and all(c.error < 2e-5 for c in through)  # ONNX Runtime, and the backend


SIZES = (
    TransformerConfig(dim=64, n_layer=2, n_head=2, vocab_size=128, block_size=9, caption_dim=32, multiple_of=16),
    TransformerConfig(dim=192, n_layer=4, n_head=3, vocab_size=512, block_size=16, caption_dim=48, multiple_of=64),
    TransformerConfig(dim=320, n_layer=1, n_head=20, vocab_size=300, block_size=25, caption_dim=24, multiple_of=256),
)


@pytest.mark.parametrize("config", SIZES, ids=lambda c: f"width {c.dim}")
def test_other_sizes_give_the_tokens_of_the_model_that_the_golden_numbers_pin(
    config: TransformerConfig, tmp_path: Path
) -> None:
    state = gpt_state(f"width_{config.dim}/", config.to_dict())
    torch.save({"model": {name: torch.from_numpy(value) for name, value in state.items()}}, tmp_path / "weights.pt")
    sources = Sources(transformer=read_transformer(tmp_path / "weights.pt", config.n_head))
    assert sources.transformer is not None and sources.transformer.config.hidden_dim == config.hidden_dim
    write_bundle(tmp_path / "bundle", sources, Options())
    report = verify(tmp_path / "bundle", sources, steps=config.block_size)
    assert report.holds and [g.first_difference for g in report.generated] == [None, None]


def test_half_precision_stays_within_its_bound(golden_gpt_bundle_fp16: Path, tiny_sources: Sources) -> None:
    report = verify(golden_gpt_bundle_fp16, Sources(transformer=tiny_sources.transformer), steps=8)
    assert report.holds and report.precision == "fp16"
    errors = {c.part: c.error for c in report.parts}
    assert 1e-5 < errors["decoder"] < 1e-2 and errors["prefix"] < 2e-4


def test_pytorch_answers_to_what_it_is_fed(golden_gpt_bundle: Path, tiny_sources: Sources) -> None:
    sources = Sources(transformer=tiny_sources.transformer)
    question = next(iter(_questions(Bundle.open(golden_gpt_bundle), sources)))
    other = {name: values + 1 for name, values in question.inputs.items()}
    with _PyTorchRunner(question, question.inputs) as runner:
        first, second = ({**runner.infer(feed)} for feed in (question.inputs, other))
    assert not np.allclose(first[names.TEXT_PREFIX], second[names.TEXT_PREFIX])
    assert not hasattr(runner, "model")  # it makes room for the graph


@pytest.fixture
def other_weights(tmp_path: Path) -> Path:
    """The golden transformer with one matrix a tenth larger."""
    weights = golden_weights("gpt_tiny")
    weights["layers.1.attention.wo.weight"] = weights["layers.1.attention.wo.weight"] * 1.1
    torch.save({"model": weights}, tmp_path / "other.pt")
    return tmp_path / "other.pt"


def test_other_weights_are_found(exporter: Command, golden_gpt_bundle: Path, other_weights: Path) -> None:
    done = exporter("verify", golden_gpt_bundle, "--against", other_weights, "--heads", GPT_TINY_HEADS, "--json")
    assert done.code == 1 and "differ from those of its checkpoints" in done.stderr
    assert "Traceback" not in done.stderr
    document = done.document
    wrong = {c["part"] for c in document["parts"] if not c["holds"]}
    assert wrong == DECODERS and document["holds"] is False


def test_the_table_says_what_was_compared(exporter: Command, golden_gpt_bundle: Path, tiny_sources: Sources) -> None:
    assert tiny_sources.transformer is not None
    path = tiny_sources.transformer.path
    done = exporter("verify", golden_gpt_bundle, "--against", path, "--heads", GPT_TINY_HEADS, "--steps", 4)
    assert done.code == 0, done.stderr
    assert "logits, chunk after a past" in done.stdout and "greedy, 4 tokens, cfg_scale 3: equal" in done.stdout


def test_checkpoints_of_something_else_are_refused(
    exporter: Command, golden_gpt_bundle: Path, tiny_sources: Sources, tmp_path: Path
) -> None:
    assert tiny_sources.vq is not None
    done = exporter("verify", golden_gpt_bundle, "--against", tiny_sources.vq.path)
    assert done.code == 2 and "none of the checkpoints belongs to a part" in done.stderr
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    done = exporter("verify", golden_gpt_bundle, "--against", tmp_path / "a.pt")
    assert done.code == 1 and "neither a transformer nor a VQ tokenizer; it contains a" in done.stderr
