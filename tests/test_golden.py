"""The PyTorch models answer what the reference implementation answered for the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.golden.seeded_checkpoint import gpt_state, vq_state  # noqa: E402
from training.config import VQ_PRESETS, TransformerConfig  # noqa: E402
from training.models.transformer import Transformer  # noqa: E402
from training.models.vq import VQModel  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"


def arrays(name: str) -> dict[str, Any]:
    with np.load(GOLDEN / name) as file:
        return {key: torch.from_numpy(file[key]) for key in file}


def tensors(state: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.from_numpy(value) for name, value in state.items()}


@pytest.fixture(scope="module")
def gpt() -> Transformer:
    config = json.loads((GOLDEN / "gpt_tiny.json").read_text())["config"]
    model = Transformer(TransformerConfig.from_dict(config)).eval()
    model.load_state_dict(tensors(gpt_state("gpt_tiny/", config)))
    return model


@pytest.fixture(scope="module")
def gpt_golden() -> dict[str, Any]:
    return arrays("gpt_tiny.npz")


@pytest.fixture(scope="module")
def vq() -> VQModel:
    model = VQModel(VQ_PRESETS["VQ-16"]).eval()
    model.load_state_dict(tensors(vq_state(json.loads((GOLDEN / "vq16.json").read_text())["shapes"])))
    return model


@pytest.fixture(scope="module")
def vq_golden() -> dict[str, Any]:
    return arrays("vq16.npz")


def test_forced_logits(gpt: Transformer, gpt_golden: dict[str, Any]) -> None:
    answers = gpt.score(gpt_golden["text"], gpt_golden["image_tokens"], gpt_golden["forced_tokens"])
    for logits, name in zip(answers, ("forced_logits_cond", "forced_logits_uncond")):
        expected = gpt_golden[name]
        # Largest error over the spread (largest minus smallest logit); float32 measured at 3e-7.
        assert (logits - expected).abs().max() / (expected.max() - expected.min()) < 2e-4, name


@pytest.mark.parametrize(
    ("name", "cfg_scale", "cfg_interval", "picture"),
    [
        ("cfg1", 1.0, -1, True),
        ("cfg3", 3.0, -1, True),
        ("cfg3_interval8", 3.0, 8, True),
        ("cfg3_image_dropped", 3.0, -1, False),
    ],
)
def test_greedy_tokens(
    gpt: Transformer, gpt_golden: dict[str, Any], name: str, cfg_scale: float, cfg_interval: int, picture: bool
) -> None:
    condition = gpt_golden["image_tokens"] if picture else None
    tokens = gpt.generate(gpt_golden["text"], condition, cfg_scale, cfg_interval, greedy=True)
    assert tokens.tolist() == gpt_golden[f"greedy_tokens_{name}"].tolist()


@torch.no_grad()
def test_picture_to_tokens(vq: VQModel, vq_golden: dict[str, Any]) -> None:
    # The closest call is a cosine gap of 1e-3 between the two best rows; float32 errs by about 1e-6, so all must agree.
    assert vq_golden["margin"].min() > 5e-4
    assert vq.encode(vq_golden["image"])[0].tolist() == vq_golden["tokens"].tolist()


@torch.no_grad()
def test_tokens_to_picture(vq: VQModel, vq_golden: dict[str, Any]) -> None:
    decoded = vq.decode(vq_golden["tokens"][None])
    # These weights' picture spans 5; float32 measured at 6e-6.
    assert (decoded - vq_golden["decoded"]).abs().max() < 5e-4
