"""What a form becomes before it waits for the engine."""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

import editar_rt
from editar_rt.images.masks import FittedMask
from editar_rt.server.forms import Asked, read_form
from editar_rt.server.limits import Limits
from tests.runtime.demo import BUNDLE, SIDE, WORDS


@pytest.fixture(scope="module")
def editor() -> editar_rt.Editor:
    return editar_rt.load(BUNDLE, threads=1)


def read(editor: editar_rt.Editor, *fields: tuple[str, str]) -> Asked:
    """A form with a wide picture and its mask."""
    files: dict[str, list[BinaryIO]] = {}
    for name, mode in (("image", "RGB"), ("mask", "L")):
        file = io.BytesIO()
        Image.new(mode, (1200, 800), "white").save(file, "PNG")
        files[name] = [file]
    return read_form([("prompt", WORDS), *fields], files, editor, Limits())


def test_what_waits_is_as_small_as_the_models_square(editor: editar_rt.Editor) -> None:
    asked = read(editor)
    assert asked.picture.square.size == (SIDE, SIDE) and asked.picture.original is None
    mask = asked.request.mask
    assert isinstance(mask, FittedMask) and mask.square.shape == (SIDE, SIDE) and np.all(mask.square)
    assert asked.request.image is None


def test_a_picture_that_results_go_back_into_waits_whole(editor: editar_rt.Editor) -> None:
    original = read(editor, ("restore", "true")).picture.original
    assert original is not None and original.size == (1200, 800)
