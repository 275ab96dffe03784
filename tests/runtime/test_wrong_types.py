"""An argument of another type is refused in one sentence, wherever Python gives it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import editar_rt
from editar_rt.bundle.folder import Bundle
from editar_rt.errors import EditarError
from editar_rt.generation.guidance import Schedule
from editar_rt.images import fit, folders, masks, pixels, writing
from editar_rt.observe import heatmap, preview, sheets
from editar_rt.observe.trace import Header, Trace
from editar_rt.session import Session
from editar_rt.text import prompts, states
from tests.runtime.demo import BUNDLE

WRONG = [None, -1, 1.5, True, "zz", b"zz", "a\0b", [], [1, 2], {}, (1,), object(), np.float32(1), np.zeros(3), np.nan]
PICTURE = Image.new("RGB", (64, 48))
STATES = np.zeros((1, 1, 1), np.float32)
TRACE = Trace(
    Header("", "", "", "", "edit", {}, [0], [0], 1, {}),
    np.zeros((1, 1), np.int32),
    np.ones(1, bool),
    np.zeros((1, 1), np.float32),
    np.zeros((1, 1), np.float32),
    np.zeros(1, np.float32),
    [PICTURE],
)
MODEL: Any = SimpleNamespace(exclusive=nullcontext, image_size=32)  # as far as it is needed to refuse
# What is called, and which of `WRONG` are right there.
CALLS: dict[str, tuple[Callable[[Any], object], tuple[int, ...]]] = {
    "load, path": (editar_rt.load, ()),
    "load, device": (lambda v: editar_rt.load(BUNDLE, device=v), ()),
    "load, threads": (lambda v: editar_rt.load(BUNDLE, threads=v), (0,)),
    "Bundle.open": (Bundle.open, ()),
    "open_picture": (pixels.open_picture, ()),
    "open_grey": (pixels.open_grey, ()),
    "read_pixels, side": (lambda v: pixels.read_pixels(PICTURE, v), ()),
    "Placement, size": (lambda v: fit.Placement(v, 8), (8,)),
    "Placement, side": (lambda v: fit.Placement((64, 48), v), ()),
    "Placement, how": (lambda v: fit.Placement((64, 48), 8, v), ()),
    "read_mask": (lambda v: masks.read_mask(v, (64, 48), 32), ()),
    "box_mask": (lambda v: masks.box_mask(v, (64, 48)), ()),
    "box_mask, width": (lambda v: masks.box_mask((0, 0, v, 2), (64, 48)), ()),
    "outpainted": (lambda v: masks.outpainted(PICTURE, v), ()),
    "outpainted, left": (lambda v: masks.outpainted(PICTURE, (v, 1, 1, 1)), ()),
    "save_picture, image": (lambda v: writing.save_picture(v, "x.png"), ()),
    "save_picture, path": (lambda v: writing.save_picture(PICTURE, v), ()),
    "save_picture, parameters": (lambda v: writing.save_picture(PICTURE, "x.png", v), (0, 9)),
    "save_picture, quality": (lambda v: writing.save_picture(PICTURE, "x.jpg", quality=v), (0,)),
    "list_pictures": (folders.list_pictures, ()),
    "Trace.load": (Trace.load, ()),
    "Trace.save": (TRACE.save, ()),
    "heatmap, trace": (heatmap.heatmap, ()),
    "heatmap, variant": (lambda v: heatmap.heatmap(TRACE, v), ()),
    "heatmap, measure": (lambda v: heatmap.heatmap(TRACE, 0, v), ()),
    "heatmap, side": (lambda v: heatmap.heatmap(TRACE, 0, "entropy", v), ()),
    "save_animation, frames": (lambda v: preview.save_animation(v, Path("x.png")), ()),
    "save_animation, path": (lambda v: preview.save_animation([PICTURE], v), ()),
    "contact_sheet": (sheets.contact_sheet, ()),
    "contact_sheet, columns": (lambda v: sheets.contact_sheet([sheets.Cell([PICTURE], "x")], v), ()),
    "load_states": (states.load_states, ()),
    "save_states, path": (lambda v: states.save_states(v, STATES, "x"), (4,)),
    "session, fit": (lambda v: Session(MODEL, PICTURE, v), (0,)),
    "session, restore": (lambda v: Session(MODEL, PICTURE, None, v), (3,)),
    "session.run": (lambda v: Session.run(MODEL, v), ()),
    "edit_batch": (lambda v: editar_rt.Editor.edit_batch(MODEL, v), ()),
    "build_prompt, task": (lambda v: prompts.build_prompt(v, "x"), ()),
    "build_prompt, text": (lambda v: prompts.build_prompt("edit", v), (4, 6)),
    "Schedule, shape": (lambda v: Schedule(v, (1, 2)), ()),
    "Schedule, values": (lambda v: Schedule("linear", v), (8,)),
    "Sampling, cfg_scale": (lambda v: editar_rt.Sampling(cfg_scale=v), (2, 3, 12)),
    "Sampling, cfg_interval": (lambda v: editar_rt.Sampling(cfg_interval=v), (1, 8)),
    "Sampling, temperature": (lambda v: editar_rt.Sampling(temperature=v), (2, 3, 12)),
    "Sampling, top_k": (lambda v: editar_rt.Sampling(top_k=v), ()),
    "Sampling, top_p": (lambda v: editar_rt.Sampling(top_p=v), (3, 12)),
    "Sampling, seed": (lambda v: editar_rt.Sampling(seed=v), ()),
    "Sampling, greedy": (lambda v: editar_rt.Sampling(greedy=v), (3,)),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_of_another_type_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call, right = CALLS[name]
    for value in (value for place, value in enumerate(WRONG) if place not in right):
        with pytest.raises(EditarError) as refused:
            call(value)
        assert str(refused.value) and "\n" not in str(refused.value)
