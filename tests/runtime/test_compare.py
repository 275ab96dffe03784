"""How far two outputs are apart."""

from __future__ import annotations

import json

import numpy as np
import pytest

from editar_rt.bundle.compare import Comparison

NAN = float("nan")


@pytest.mark.parametrize(
    ("found", "expected", "difference", "error", "identical"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0, 0.0, True),
        ([1.5, -4.0], [1.0, -4.0], 0.5, 0.125, False),  # over the largest expected value
        ([0.0, 0.0], [0.0, 0.0], 0.0, 0.0, True),
        ([NAN, 1.0], [1.0, 1.0], NAN, NAN, False),
        ([1.0, 1.0], [NAN, 1.0], NAN, NAN, False),
    ],
)
def test_values(found: list[float], expected: list[float], difference: float, error: float, identical: bool) -> None:
    seen = Comparison.of("decoder", "logits", np.asarray(found), np.asarray(expected), 0.2)
    assert (seen.difference, seen.error) == pytest.approx((difference, error), nan_ok=True)
    assert seen.identical == identical and seen.holds == (error <= 0.2)


def test_tokens_must_be_equal_where_one_is_expected() -> None:
    """Whatever the bound; a negative one stands for any."""
    found = np.asarray([3, 4, 5, 6])
    assert Comparison.of("vq_encoder", "tokens", found, np.asarray([3, -1, 5, 6]), 0.5).holds
    seen = Comparison.of("vq_encoder", "tokens", found, np.asarray([3, -1, 5, 9]), 0.5)
    assert not seen.holds and seen.difference == 1 and seen.error == pytest.approx(1 / 3)
    assert Comparison.of_tokens("vq_encoder", "tokens", found, np.asarray([3, 4, 5, 9]), 0.25).holds


def test_json_has_no_nan() -> None:
    seen = Comparison.of("decoder", "logits", np.asarray([NAN]), np.ones(1), 0.2)
    document = json.loads(json.dumps(seen.to_json(), allow_nan=False))
    assert document["error"] is None and document["holds"] is False
