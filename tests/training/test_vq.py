"""The VQ tokenizer's layout, shapes and lookup; its numbers are in test_golden.py."""

from __future__ import annotations

import json

import pytest

from tests.conftest import GOLDEN

torch = pytest.importorskip("torch")

from training.config import VQ_PRESETS, VQConfig  # noqa: E402
from training.models.vq import VQModel  # noqa: E402


def test_parameter_names_and_shapes_are_the_official_ones() -> None:
    spec = json.loads((GOLDEN / "vq16.json").read_text())
    with torch.device("meta"):
        model = VQModel(VQ_PRESETS["VQ-16"])
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == spec["shapes"]
    assert sum(p.numel() for p in model.parameters()) // 10**6 == 71  # published as 72 M


@pytest.mark.parametrize("name", VQ_PRESETS)
def test_a_token_spans_the_downsampling(name: str) -> None:
    """Shapes alone, on the meta device, which runs the large models at no cost."""
    config = VQ_PRESETS[name]
    side = 4 * config.downsampling
    with torch.device("meta"):
        model = VQModel(config)
        tokens = model.encode(torch.empty(2, 3, side, side))
        assert tokens.shape == (2, 16)
        assert model.decode(tokens).shape == (2, 3, side, side)


@pytest.fixture(scope="module")
def small() -> VQModel:
    torch.manual_seed(0)
    config = VQConfig(
        channels=8, channel_multipliers=(1, 2), res_blocks=1, z_channels=8, codebook_size=32, norm_groups=4
    )
    return VQModel(config).eval()


@torch.no_grad()
def test_codebook_rows_are_their_own_nearest(small: VQModel) -> None:
    """Whatever the length of the vector: only its direction counts."""
    tokens = torch.arange(32).view(2, 16)
    vectors = small.lookup(tokens)
    assert torch.equal(small.quantize_features(7 * vectors), tokens)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2, 4, 4))


@torch.no_grad()
def test_pictures_need_not_be_square(small: VQModel) -> None:
    tokens = small.encode(torch.rand(1, 3, 8, 12) * 2 - 1)
    assert tokens.shape == (1, 24)
    assert small.decode(tokens, grid=(4, 6)).shape == (1, 3, 8, 12)


def test_a_grid_that_tokens_do_not_fill_is_refused(small: VQModel) -> None:
    with pytest.raises(ValueError, match="24 tokens do not fill a grid of 4 x 4"):
        small.lookup(torch.zeros(1, 24, dtype=torch.long))


def test_norm_groups_must_divide_every_width() -> None:
    with pytest.raises(ValueError, match="norm_groups"):
        VQConfig(channels=100)
