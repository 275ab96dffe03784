"""Edits recorded with version 0.1, before the loop was rebuilt: tokens and pictures stay."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

import editar_rt
from tests.conftest import GOLDEN
from tests.runtime.demo import SAMPLES

RECORDED: dict[str, Any] = json.loads((GOLDEN / "edits.json").read_text(encoding="utf-8"))


def tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def means(picture: Image.Image) -> np.ndarray:
    """The colours of 8×8 fields: another processor rounds a pixel otherwise, and no field."""
    values, field = np.asarray(picture, np.float64), picture.height // 8
    return values.reshape(8, field, 8, field, 3).mean((1, 3)).ravel()


def made(editor: editar_rt.Editor, case: dict[str, Any]) -> list[editar_rt.Result]:
    sampling = dataclasses.replace(editor.default_sampling, **tuples(case["sampling"]))
    pictures = [SAMPLES / name for name in RECORDED["pictures"]]
    if case["call"] == "batch":
        pairs = zip(pictures, RECORDED["instructions"], strict=True)
        return editor.edit_batch([editar_rt.Request(*pair, sampling=sampling) for pair in pairs])
    session, words = editor.session(pictures[case["picture"]]), RECORDED["instructions"][case["picture"]]
    options = tuples(case["options"])
    if case["call"] == "variants":
        return session.variants(words, 3, sampling=sampling, **options)
    if case["call"] == "resume":
        session.edit(words, sampling=sampling)
        return [session.resume(**options)]
    return [session.edit(words, sampling=sampling, **options)]


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda c: f"{c['call']} {c['sampling']} {c['options']}")
def test_recorded_edits_are_made_again(demo_editor: editar_rt.Editor, case: dict[str, Any]) -> None:
    results = made(demo_editor, case)
    for result, recorded in zip(results, case["results"], strict=True):
        assert result.tokens.tolist() == recorded["tokens"]
        assert np.abs(means(result.image) - recorded["means"]).max() < 1.5
