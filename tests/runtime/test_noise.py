"""Gumbel noise from the request to the trace and the picture's text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import editar_rt
from editar_rt.errors import OptionError
from editar_rt.observe.trace import Trace
from tests.runtime.demo import PICTURE, WORDS


def test_the_noise_of_a_request_reaches_trace_and_picture(demo_editor: editar_rt.Editor, tmp_path: Path) -> None:
    result = demo_editor.edit(PICTURE, WORDS, seed=3, temperature=1.0, noise="gumbel", trace=tmp_path / "t.jsonl")
    other = demo_editor.edit(PICTURE, WORDS, seed=3, temperature=1.0)
    assert not np.array_equal(result.tokens, other.tokens)
    result.save(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as written:
        assert written.info["editar:noise"] == "gumbel"
    trace = Trace.load(tmp_path / "t.jsonl")
    assert trace.header.sampling["noise"] == "gumbel"
    found = editar_rt.replay(demo_editor, trace)
    assert found.difference is None


def test_variants_and_batches_draw_as_alone(demo_editor: editar_rt.Editor) -> None:
    alone = [demo_editor.edit(PICTURE, WORDS, seed=seed, temperature=1.0, noise="gumbel").tokens for seed in (4, 5)]
    variants = demo_editor.variants(PICTURE, WORDS, 2, seed=4, temperature=1.0, noise="gumbel")
    assert np.array_equal(np.stack([each.tokens for each in variants]), np.stack(alone))
    requests = [
        editar_rt.Request(PICTURE, WORDS, seed=4, temperature=1.0, noise="gumbel"),
        editar_rt.Request(PICTURE, WORDS, seed=5, temperature=1.0, noise="gumbel"),
        editar_rt.Request(PICTURE, WORDS, seed=5, temperature=1.0),
    ]
    batch = demo_editor.edit_batch(requests)
    assert np.array_equal(np.stack([each.tokens for each in batch[:2]]), np.stack(alone))
    assert not np.array_equal(batch[2].tokens, alone[1])


def test_another_noise_is_refused(demo_editor: editar_rt.Editor) -> None:
    with pytest.raises(OptionError, match="noise must be uniform or gumbel, got 'white'"):
        demo_editor.edit(PICTURE, WORDS, noise="white")
