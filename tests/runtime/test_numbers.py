"""Numbers at the edges: each is taken without a word of NumPy's, or refused in one sentence that names it.

`tests/cpp/test_cli.py` asks the C++ runtime the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import editar_rt
from editar_rt import Sampling
from editar_rt.cli import edit
from editar_rt.editor import Editor
from editar_rt.errors import OptionError
from tests.commands import Command
from tests.conftest import golden_arrays
from tests.runtime.demo import BALL, BUNDLE, COUNT, PICTURE, WORDS
from tests.runtime.edges import ALIKE, REFUSED, TAKEN, option, pairs, rounds

GOLDEN = golden_arrays("gpt_tiny")
NOISES = {"temperature": ("uniform", "gumbel"), "top_p": ("uniform", "gumbel")}
SAMPLED = [(name, text, noise) for name, text in pairs(TAKEN) for noise in NOISES.get(name, ("uniform",))]


@pytest.fixture(autouse=True)
def nothing_is_warned_of() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        yield


def number(name: str, text: str) -> Any:
    """A value as Python's callers give it."""
    if name == "cfg_scale":
        return text if ":" in text else float(text)
    if name in ("temperature", "top_p"):
        return float(text)
    if "," in text:
        return tuple(number(name, part) for part in text.split(","))
    try:
        return int(text)
    except ValueError:
        return float(text)


def numbers(texts: dict[str, str]) -> dict[str, Any]:
    return {name: number(name, text) for name, text in texts.items()}


def edited(editor: Editor, name: str, text: str, **options: Any) -> list[int]:
    """The tokens of an edit with this number."""
    mask = {"mask": BALL} if name == "mask_margin" else {}
    tokens = editor.edit(PICTURE, WORDS, **{name: number(name, text)}, **mask, **options).tokens
    return tokens.ravel().tolist()


@pytest.mark.parametrize(("name", "text", "noise"), SAMPLED)
def test_a_number_is_taken_in_python(name: str, text: str, noise: str, demo_editor: Editor) -> None:
    assert len(edited(demo_editor, name, text, noise=noise)) == COUNT


@pytest.mark.parametrize(("name", "texts", "same"), ALIKE)
@pytest.mark.parametrize("noise", ["uniform", "gumbel"])
def test_a_number_that_is_as_good_as_another_gives_its_tokens(
    name: str, texts: tuple[str, ...], same: dict[str, Any], noise: str, demo_editor: Editor
) -> None:
    expected = demo_editor.edit(PICTURE, WORDS, noise=noise, **same).tokens.ravel().tolist()
    for text in texts:
        assert edited(demo_editor, name, text, noise=noise) == expected, text


@pytest.mark.parametrize(("name", "text"), pairs(REFUSED))
def test_a_number_is_refused_in_python(name: str, text: str, demo_editor: Editor) -> None:
    with pytest.raises(OptionError, match=rf"^{name} must be [^\n]+, got [^\n]+$|^cfg_scale has 1 values"):
        if name == "n":
            demo_editor.variants(PICTURE, WORDS, number(name, text))
        else:
            edited(demo_editor, name, text)


@pytest.mark.parametrize("text", ["1e-4000", "1e4000"])
@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_numbers_that_only_numpy_has_are_refused(name: str, text: str) -> None:
    with pytest.raises(OptionError, match=f"^{name} must be"):
        Sampling(**{name: np.longdouble(text)})


@pytest.mark.parametrize("bundle", ["golden_gpt_bundle_delta_head", "golden_gpt_bundle_native"])
@pytest.mark.parametrize("noise", ["uniform", "gumbel"])
def test_a_device_draws_the_same_or_leaves_it_to_the_host(
    bundle: str, noise: str, golden_gpt_bundle: Path, request: pytest.FixtureRequest
) -> None:
    device = editar_rt.load(request.getfixturevalue(bundle), device="emulated")
    host = editar_rt.load(golden_gpt_bundle, device="cpu", threads=1)
    for name in ("temperature", "top_p"):
        for text in TAKEN[name]:
            for top_k in (0, 20):
                sampling = Sampling(noise=noise, seed=3, top_k=top_k, **{name: float(text)})
                tokens = [each.generate(GOLDEN["text"], GOLDEN["image_tokens"], sampling) for each in (device, host)]
                assert np.array_equal(*tokens), (name, text, top_k)


# The command line.


@pytest.mark.parametrize("texts", rounds())
def test_numbers_are_taken_on_the_command_line(
    texts: dict[str, str], editar: Command, demo_editor: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit, "start", lambda *given: demo_editor)
    options = [option(*pair) for pair in texts.items()] + ["--box", ",".join(map(str, BALL))]
    done = editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "a.png", *options)
    assert (done.code, done.stderr) == (0, "")
    expected = demo_editor.edit(PICTURE, WORDS, mask=BALL, **numbers(texts))
    with Image.open(tmp_path / "a.png") as made:
        assert np.array_equal(np.asarray(made), np.asarray(expected.image))


@pytest.mark.parametrize(("name", "text"), pairs(REFUSED))
def test_a_number_is_refused_on_the_command_line(
    name: str, text: str, editar: Command, demo_editor: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit, "start", lambda *given: demo_editor)
    done = editar("edit", BUNDLE, PICTURE, WORDS, "-o", tmp_path / "a.png", option(name, text))
    assert (done.code, done.stdout) == (2, "") and not list(tmp_path.iterdir())
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"editar: {name} ") or option(name, "").rstrip("=") in said
