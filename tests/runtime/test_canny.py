"""Edges are those that EditAR was trained with; `tests/golden/make_canny.py` says how the golden ones were made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from editar_rt.images.canny import canny_edges

with np.load(Path(__file__).parents[1] / "golden/canny.npz") as file:
    PICTURES, EDGES = file["pictures"], np.unpackbits(file["edges"], axis=-1).astype(bool)


@pytest.mark.parametrize("number", range(len(PICTURES)))
def test_edges_of_photographs_and_scenes_are_kornias(number: int) -> None:
    found, wanted = canny_edges(PICTURES[number])[..., 0] > 0, EDGES[number]
    assert wanted.sum() > 500
    # Exactly so where this was written; on another processor the last bit may decide a tie otherwise.
    assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) >= 0.99


def test_edges_are_white_on_black_in_three_channels() -> None:
    edges = canny_edges(PICTURES[0][:90, :70])
    assert edges.shape == (90, 70, 3) and edges.dtype == np.uint8 and set(np.unique(edges)) == {0, 255}
    assert (edges == edges[..., :1]).all()


def test_weak_edges_stay_where_a_chain_of_them_reaches_a_strong_one() -> None:
    """A step along a whole picture that fades from strong to weak, and one that is weak everywhere."""
    fading, faint = np.zeros((32, 64, 3), np.uint8), np.zeros((32, 64, 3), np.uint8)
    fading[16:] = np.linspace(40, 12, 64)[None, :, None]
    faint[16:] = 12
    assert canny_edges(fading)[..., 0].any(axis=0).mean() > 0.95
    assert not canny_edges(faint).any()


def test_a_picture_without_edges_has_none() -> None:
    assert not canny_edges(np.full((9, 9, 3), 77, np.uint8)).any()
