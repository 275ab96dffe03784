"""The picture while it is being made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import editar_rt
from editar_rt.errors import OptionError, PictureError
from editar_rt.generation.decoding import Step
from editar_rt.images.pixels import to_pictures
from editar_rt.observe.preview import Previewer, half_blocks, save_animation
from tests.runtime.demo import BALL, COUNT, GRID, PICTURE, WORDS


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def shown_rows(step: float, cost: float, share: float, expected: float, rows: int = 32) -> tuple[list[int], Previewer]:
    """The rows after which previews that cost so much are shown, with steps that take so long."""
    clock, shown = Clock(), []

    def show(tokens: np.ndarray, done: int) -> None:
        shown.append(done // rows)
        clock.now += cost

    previewer = Previewer(show, share, expected, rows, clock)
    tokens = np.zeros((1, rows * rows), np.int32)
    for position in range(rows * rows):
        clock.now += step
        previewer(Step(position, tokens[:, :1], np.zeros((1, 2), np.float32)), tokens)
        assert previewer.seconds <= share * (clock.now - previewer.seconds) + 1e-9
    return shown, previewer


def test_cheap_previews_come_after_every_row_but_the_last() -> None:
    shown, _ = shown_rows(step=0.1, cost=0.1, share=0.1, expected=0.1)
    assert shown == list(range(1, 32))


def test_dear_ones_skip_rows_so_that_the_budget_is_kept_at_any_time() -> None:
    # A row takes 3.2 s and a preview 3 s, a tenth of 30 s: every ten rows or so.
    shown, previewer = shown_rows(step=0.1, cost=3.0, share=0.1, expected=3.0)
    assert shown == [10, 19, 29]
    assert previewer.seconds == pytest.approx(9)


def test_without_a_budget_there_are_none() -> None:
    assert shown_rows(step=0.1, cost=0.1, share=0.0, expected=0.1)[0] == []


def test_nothing_is_shown_again_after_a_run_of_known_tokens() -> None:
    shown: list[int] = []
    previewer = Previewer(lambda tokens, done: shown.append(done), 1.0, 0.0, GRID)
    tokens = np.zeros((1, COUNT), np.int32)
    for position, count, drawn in ((0, 8, False), (8, 1, True), (9, 7, False), (16, 8, False), (24, 40, False)):
        previewer(Step(position, tokens[:, :count], np.zeros((1, 2), np.float32) if drawn else None), tokens)
    assert shown == [16]


def test_a_preview_is_the_decoded_rows_above_and_the_sources_below(demo_editor: editar_rt.Editor) -> None:
    session, previews = demo_editor.session(PICTURE), []
    for _ in range(2):  # so that the cost of a preview is known; the first measurement may include the part's opening
        session.edit(WORDS)
    result = session.edit(WORDS, on_preview=lambda *preview: previews.append(preview), preview_share=1.0)
    assert previews
    for picture, done, total in previews:
        assert done % GRID == 0 and total == COUNT
        mixed = np.where(np.arange(COUNT) < done, result.tokens, session.condition_tokens)
        assert np.array_equal(np.asarray(picture), to_pictures(demo_editor.decode_tokens(mixed))[0])


def test_what_previews_took_is_reported_apart_from_the_steps(demo_editor: editar_rt.Editor) -> None:
    plain = demo_editor.edit(PICTURE, WORDS)
    assert "preview" not in plain.timings
    timings = demo_editor.edit(PICTURE, WORDS, on_preview=lambda *_: None).timings
    assert sum(timings[s] for s in ("encode", "text", "prefill", "decode", "preview", "pixels")) <= timings["total"]


def test_previews_change_no_token(demo_editor: editar_rt.Editor) -> None:
    plain = demo_editor.edit(PICTURE, WORDS)
    watched = demo_editor.edit(PICTURE, WORDS, on_preview=lambda *_: None, preview_share=1.0)
    assert np.array_equal(plain.tokens, watched.tokens)


def test_frames_go_from_the_source_to_the_result(demo_editor: editar_rt.Editor) -> None:
    session = demo_editor.session(PICTURE)
    result = session.edit(WORDS, mask=BALL)
    frames = session.frames()
    assert np.array_equal(np.asarray(frames[0]), np.asarray(session.source))
    assert np.array_equal(np.asarray(frames[-1]), np.asarray(result.image))
    assert 2 < len(frames) <= 1 + GRID


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_animations_hold_every_frame_and_repeat(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    save_animation(frames, tmp_path / name)
    with Image.open(tmp_path / name) as animation:
        assert animation.n_frames == 3 and animation.info["loop"] == 0
        for n, frame in enumerate(frames):
            animation.seek(n)
            assert animation.convert("RGB").getpixel((3, 3)) == frame.getpixel((3, 3))


def test_animations_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    frame = Image.new("RGB", (4, 4))
    with pytest.raises(OptionError, match=r"an animation must be named .png or .gif, got a.mp4"):
        save_animation([frame], tmp_path / "a.mp4")
    with pytest.raises(PictureError, match="cannot write"):
        save_animation([frame], tmp_path / "none" / "a.gif")


def test_a_terminal_shows_two_pixels_a_character() -> None:
    picture = Image.fromarray(np.uint8([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 9, 9]]]))
    text = half_blocks(picture, 2)
    assert text.plain == "▀▀\n"
    colours = [(span.style.color.triplet, span.style.bgcolor.triplet) for span in text.spans]
    assert colours == [((255, 0, 0), (0, 0, 255)), ((0, 255, 0), (9, 9, 9))]


def test_a_share_above_one_is_refused(demo_editor: editar_rt.Editor) -> None:
    with pytest.raises(OptionError, match="preview_share must be 0 to 1, got 2"):
        demo_editor.edit(PICTURE, WORDS, preview_share=2)


def test_results_and_sessions_show_themselves_in_a_notebook(demo_editor: editar_rt.Editor) -> None:
    session = demo_editor.session(PICTURE)
    assert session._repr_html_().count("<img") == 1
    results = session.variants("make the <ball> green", 2)
    assert results[0]._repr_png_().startswith(b"\x89PNG")
    assert "make the &lt;ball&gt; green (seed 0)" in results[0]._repr_html_()
    assert session._repr_html_().count('<img width="192" src="data:image/png;base64,') == 3
