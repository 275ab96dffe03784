"""The text encoder: shapes, padding, and the way through a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from training.models.text_encoder import T5_PRESETS, build_text_encoder, encode, load_text_encoder  # noqa: E402


@torch.no_grad()
def test_a_saved_encoder_answers_the_same_and_ignores_what_is_padded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_text_encoder(T5_PRESETS["T5-demo"], vocab_size=64).eval()
    ids = torch.tensor([[5, 9, 1, 0, 0, 0], [7, 8, 9, 10, 11, 1]])
    mask = (ids != 0).long()
    states = encode(model, ids, mask)
    assert states.shape == (2, 6, 128)
    assert states.dtype == torch.float32

    model.save_pretrained(tmp_path)
    torch.testing.assert_close(encode(load_text_encoder(tmp_path), ids, mask), states)

    other = ids.clone()
    other[0, 3:] = 33
    torch.testing.assert_close(encode(model, other, mask)[0, :3], states[0, :3])
