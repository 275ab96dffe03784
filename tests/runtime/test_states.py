"""Text states computed in one place and used in another."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import editar_rt
from editar_rt.bundle.manifest import MANIFEST_NAME, Manifest
from editar_rt.errors import OptionError, TextStatesError
from editar_rt.text.states import load_states, save_states
from tests.commands import Command
from tests.runtime.test_cli import refused


@pytest.fixture(scope="module")
def lean_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle without its text encoder."""
    import dataclasses
    import shutil

    from editar_rt import names

    folder = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("lean") / "bundle"))
    manifest = Manifest.from_json((folder / MANIFEST_NAME).read_text())
    dropped = [f for f in manifest.files if f.startswith((names.TEXT_ENCODER, "tokenizer"))]
    for name in dropped:
        (folder / name).unlink()
    lean = dataclasses.replace(
        manifest,
        parts={k: v for k, v in manifest.parts.items() if k != names.TEXT_ENCODER},
        files={k: v for k, v in manifest.files.items() if k not in dropped},
        tokenizer=None,
    )
    (folder / MANIFEST_NAME).write_text(lean.to_json())
    return folder


def test_an_edit_with_states_from_elsewhere_is_the_same_edit(
    editar: Command, tiny_bundle: Path, lean_bundle: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (32, 32), "orange").save(tmp_path / "in.png")
    words = ("make the ball red", "--task", "depth")
    assert editar("text", tiny_bundle, *words, "-o", tmp_path / "states.npz").code == 0
    outputs = {
        "whole": (tiny_bundle,),
        "file": (lean_bundle, "--text-states", tmp_path / "states.npz"),
        "bundle": (lean_bundle, "--text-states", tiny_bundle),
    }
    pictures = []
    for name, (bundle, *options) in outputs.items():
        done = editar("edit", bundle, tmp_path / "in.png", *words, "-o", tmp_path / f"{name}.png", *options)
        assert done.code == 0, done.stderr
        with Image.open(tmp_path / f"{name}.png") as picture:
            pictures.append(np.asarray(picture))
    assert np.array_equal(pictures[0], pictures[1]) and np.array_equal(pictures[0], pictures[2])


def test_without_an_encoder_the_way_out_is_named(editar: Command, lean_bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "in.png")
    done = editar("edit", lean_bundle, tmp_path / "in.png", "x", "-o", tmp_path / "out.png")
    refused(done, 1, "has no text encoder", "text_states")
    assert not (tmp_path / "out.png").exists()


def test_states_of_another_width_are_refused(lean_bundle: Path) -> None:
    editor = editar_rt.load(lean_bundle)
    with pytest.raises(editar_rt.EditarError, match=r"text_states must be \[B, 120, 64\], got \[1, 120, 32\]"):
        editor.edit(Image.new("RGB", (32, 32)), "x", text_states=np.zeros((1, 120, 32), np.float32))


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "states.npz"
    with pytest.raises(TextStatesError, match="No such file"):
        load_states(path)
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(TextStatesError, match="is not a file of text states"):
        load_states(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(TextStatesError, match="make one with: editar text"):
        load_states(path)
    np.savez(path, states=np.asarray([{"a": 1}], object))  # pickled
    with pytest.raises(TextStatesError, match="is not a file of text states"):
        load_states(path)
    save_states(path, np.full((1, 4, 2), np.nan, np.float32), "x")
    with pytest.raises(TextStatesError, match="finite float32"):
        load_states(path)
    with pytest.raises(TextStatesError, match="cannot write"):
        save_states(tmp_path / "no" / "states.npz", np.zeros((1, 4, 2), np.float32), "x")


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def header(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"states.npy": header("(1, 1, 1)") + bytes(65 << 20)}, "it unpacks to more than 64 MiB"),
        ({"states.npy": header("(1, 1000000, 1000000)") + bytes(16)}, "an array of float32 .* in [0-9]+ bytes"),
        ({"states.npy": header("(1, -5, 4)")}, "an array of float32"),
        ({"states.npy": header("(1, 1, 1)", "|O") + bytes(8)}, "an array of object"),
        ({"states.npy": b"no array"}, "is not a file of text states"),
        ({"prompt.npy": header("(1,)") + bytes(4)}, "is not a file of text states"),
    ],
    ids=["bomb", "lie", "negative", "pickle", "nothing", "other"],
)
def test_no_memory_is_taken_for_a_file_that_claims_too_much(
    tmp_path: Path, members: dict[str, bytes], says: str
) -> None:
    with pytest.raises(TextStatesError, match=says):
        load_states(packed(tmp_path / "states.npz", members))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs")
def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "states.npz")
    with pytest.raises(TextStatesError, match="is not a regular file"):
        load_states(tmp_path / "states.npz")


@pytest.mark.parametrize(
    ("words", "options"), [("make the ball blue", {}), ("make the ball red", {"task": "depth"})], ids=["words", "task"]
)
def test_states_of_another_prompt_are_refused(
    tiny_bundle: Path, tmp_path: Path, words: str, options: dict[str, Any]
) -> None:
    editor = editar_rt.load(tiny_bundle, device="cpu", threads=1)
    save_states(tmp_path / "s.npz", editor.encode_text(["make the ball red"]), "make the ball red")
    given = load_states(tmp_path / "s.npz")
    picture = Image.new("RGB", (32, 32))
    assert editor.edit(picture, "make the ball red", text_states=given).finished
    with pytest.raises(OptionError, match="the text states are those of 'make the ball red', and the edit's prompt is"):
        editor.edit(picture, words, text_states=given, **options)
