"""Masks: what may change, on the demo bundle, token for token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import editar_rt
from editar_rt.errors import EmptyMaskWarning, OptionError, PictureError
from editar_rt.images.masks import box_mask, composite, dilate, feather, outpainted, read_mask, touched_cells
from tests.runtime.demo import BALL, CELL, COUNT, GRID, PICTURE, SIDE, WORDS
from tests.runtime.watching import forwarded_positions


def cells(*rows_and_columns: tuple[int, int]) -> np.ndarray:
    """A mask of the picture's size, white in the middle of some cells."""
    mask = np.zeros((SIDE, SIDE), bool)
    for row, column in rows_and_columns:
        mask[row * CELL + CELL // 2, column * CELL + CELL // 2] = True
    return mask


# Which tokens are drawn.


def test_a_full_mask_gives_the_tokens_and_the_picture_of_an_edit_without_one(demo_editor: editar_rt.Editor) -> None:
    sampling = editar_rt.Sampling(seed=3)
    plain = demo_editor.edit(PICTURE, WORDS, sampling=sampling)
    masked = demo_editor.edit(PICTURE, WORDS, sampling=sampling, mask=Image.new("L", (SIDE, SIDE), 255))
    assert np.array_equal(plain.tokens, masked.tokens)
    assert np.array_equal(np.asarray(plain.image), np.asarray(masked.image))


@pytest.mark.parametrize("put_back", [True, False])
def test_a_black_mask_gives_the_source_back_without_a_step_and_says_so(
    demo_editor: editar_rt.Editor, monkeypatch: pytest.MonkeyPatch, put_back: bool
) -> None:
    session = demo_editor.session(PICTURE)
    monkeypatch.setattr(demo_editor.backend, "make_decoder", None)  # not even a prefill
    with pytest.warns(EmptyMaskWarning, match="the mask has no white"):
        result = session.edit(WORDS, mask=Image.new("L", (SIDE, SIDE)), composite=put_back)
    assert np.array_equal(result.tokens, session.condition_tokens[0])
    if put_back:
        assert np.array_equal(np.asarray(result.image), np.asarray(session.source))


@pytest.mark.parametrize("sampling", [editar_rt.Sampling(seed=5), editar_rt.Sampling(cfg_scale=1.0)], ids=str)
def test_outside_the_dilated_mask_tokens_are_the_sources(
    demo_editor: editar_rt.Editor, sampling: editar_rt.Sampling
) -> None:
    session = demo_editor.session(PICTURE)
    result = session.edit("add a red cube", sampling=sampling, mask=cells((2, 2), (5, 6)), mask_margin=1)
    free = dilate(touched_cells(cells((2, 2), (5, 6)), GRID), 1).ravel()
    assert free.sum() == 18
    assert np.array_equal(result.tokens[~free], session.condition_tokens[0][~free])
    assert (result.tokens[free] != session.condition_tokens[0][free]).any()


def test_drawn_tokens_are_those_of_the_forced_scores(demo_editor: editar_rt.Editor) -> None:
    """Greedy tokens inside the mask are the largest guided logits given everything before them, in one pass."""
    mask, sampling = cells((3, 3), (6, 1)), editar_rt.Sampling(cfg_scale=2.0, greedy=True)
    session = demo_editor.session(PICTURE)
    result = session.edit(WORDS, sampling=sampling, mask=mask)
    states = demo_editor.encode_text([WORDS])
    cond, null = demo_editor.score(states, session.condition_tokens, result.tokens[None])
    free = dilate(touched_cells(mask, GRID), 1).ravel()
    best = (null + 2 * (cond - null)).argmax(-1)[0]
    assert np.array_equal(best[free], result.tokens[free])


def test_runs_of_known_tokens_are_one_chunk_and_those_behind_the_last_free_one_are_not_run(
    demo_editor: editar_rt.Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = demo_editor.session(PICTURE)
    # At random: where they began as the source's, the null row would keep tokens, and be fed in a chunk of its own.
    session.edit(WORDS, sampling=editar_rt.Sampling(temperature=100.0, top_k=0))
    seen = forwarded_positions(session, monkeypatch)
    session.edit("remove the cube", mask=cells((2, 1), (2, 2), (4, 0)), mask_margin=0)
    text = (1, demo_editor.model.text_tokens)
    # Tokens 17, 18 and 32 are free: 17 known ones come first, then the one drawn, then 18 and the 13 behind it.
    # Chunks go row by row.
    assert seen == [text, (1, 17), (1, 17), (2, 1), (1, 14), (1, 14)]


def test_a_first_token_that_is_known_is_taken_and_a_free_one_comes_from_the_prefill(
    demo_editor: editar_rt.Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = demo_editor.session(PICTURE)
    plain = session.edit(WORDS)
    seen = forwarded_positions(session, monkeypatch)
    first_alone = session.edit(WORDS, mask=cells((0, 0)), mask_margin=0)
    assert seen == []  # the text is there already, and nothing has to be fed
    assert first_alone.tokens[0] == plain.tokens[0]


def test_generating_with_known_tokens_is_what_a_mask_does(demo_editor: editar_rt.Editor) -> None:
    session, mask = demo_editor.session(PICTURE), cells((4, 4))
    masked = session.edit(WORDS, sampling=editar_rt.Sampling(seed=2), mask=mask)
    free = dilate(touched_cells(mask, GRID), 1).ravel()
    known = np.where(free, -1, session.condition_tokens)
    states, sampling = demo_editor.encode_text([WORDS]), editar_rt.Sampling(seed=2)
    found = demo_editor.generate(states, session.condition_tokens, sampling, known_tokens=known)
    assert np.array_equal(found[0], masked.tokens)


def test_rows_with_masks_of_their_own_have_the_tokens_they_have_alone(demo_editor: editar_rt.Editor) -> None:
    states = demo_editor.encode_text([WORDS, "remove the cube"])
    condition = demo_editor.session(PICTURE).condition_tokens.repeat(2, axis=0)
    known = condition.copy()
    known[0, 10:20] = known[1, 15:40] = -1
    sampling = editar_rt.Sampling(seed=7)
    together = demo_editor.generate(states, condition, sampling, known_tokens=known)
    for row in (0, 1):
        one = slice(row, row + 1)
        alone = demo_editor.generate(states[one], condition[one], sampling, known_tokens=known[one])
        assert np.array_equal(together[one], alone)


@pytest.mark.parametrize("bundle", ["golden_gpt_bundle", "golden_gpt_bundle_standard"])
@pytest.mark.parametrize("rows", [1, 2])
def test_chunks_of_known_tokens_are_exact_in_every_dialect(
    request: pytest.FixtureRequest, bundle: str, rows: int
) -> None:
    editor = editar_rt.load(request.getfixturevalue(bundle), device="cpu", threads=1)
    rng, model = np.random.default_rng(3), editor.model
    states = rng.standard_normal((rows, model.text_tokens, model.text_dim)).astype(np.float32)
    condition, known = (rng.integers(0, model.vocab_size, (rows, editor.picture_tokens), np.int32) for _ in range(2))
    free = np.isin(np.arange(editor.picture_tokens), [3, 4, 9, 13])
    # The null row comes in late, so that it has chunks of its own.
    sampling = editar_rt.Sampling(cfg_interval=(9, 16), greedy=True)
    tokens = editor.generate(states, condition, sampling, known_tokens=np.where(free, -1, known))
    cond, null = editor.score(states, condition, tokens)
    guided = null + sampling.scales(editor.picture_tokens).astype(np.float32)[:, None] * (cond - null)
    assert np.array_equal(tokens[:, ~free], known[:, ~free])
    assert np.array_equal(tokens[:, free], guided.argmax(-1)[:, free])


def test_progress_counts_known_tokens_too(demo_editor: editar_rt.Editor) -> None:
    seen: list[tuple[int, int]] = []
    demo_editor.edit(
        PICTURE, WORDS, mask=cells((2, 1)), mask_margin=0, on_progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(17, COUNT), (18, COUNT), (COUNT, COUNT)]


# Pixels.


def test_pixels_outside_the_mask_are_the_sources_exactly(demo_editor: editar_rt.Editor) -> None:
    session = demo_editor.session(PICTURE)
    result = session.edit(WORDS, mask=BALL)
    inside = box_mask(BALL, (SIDE, SIDE))
    source, made = np.asarray(session.source), np.asarray(result.image)
    assert np.array_equal(made[~inside], source[~inside])
    assert (made[inside] != source[inside]).any()


def test_without_composite_the_picture_is_what_the_tokens_decode_to(demo_editor: editar_rt.Editor) -> None:
    result = demo_editor.edit(PICTURE, WORDS, mask=BALL, composite=False)
    decoded = demo_editor.decode_tokens(result.tokens[None])
    assert np.array_equal(np.asarray(result.image), editar_rt.images.pixels.to_pictures(decoded)[0])


def test_the_seam_lies_inside_the_mask_and_not_at_the_pictures_edge() -> None:
    mask = np.zeros((16, 16), bool)
    mask[:, :6] = True
    share = feather(mask, 2)  # cells of 8 pixels
    assert np.allclose(share[3], [1, 1, 1, 1, 2 / 3, 1 / 3] + [0] * 10)
    assert (share == share[0]).all()


def test_a_fine_stroke_takes_the_edited_picture_whole() -> None:
    stroke = np.zeros((16, 16), bool)
    stroke[:, 5] = True
    assert np.array_equal(feather(stroke, 2), stroke)


def test_putting_back_is_exact_at_both_ends() -> None:
    values = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    other = values[:, ::-1]
    assert np.array_equal(composite(values, other, np.zeros((1, 256), np.float32)), other)
    assert np.array_equal(composite(values, other, np.ones((1, 256), np.float32)), values)


# Masks of every kind.


def test_masks_of_any_size_are_fitted_as_their_picture_is() -> None:
    """A 96×64 picture loses 16 pixels left and right; a mask of a third of its size does so too."""
    mask = np.zeros((64, 96), bool)
    mask[:32, 48:] = True
    for given in (mask, Image.fromarray(mask).resize((288, 192)), mask[::2, ::2]):
        fitted = read_mask(given, (96, 64), 64)
        assert fitted[:32, 32:].all() and fitted.sum() == 32 * 32


def test_grey_is_thresholded_and_what_is_transparent_is_black() -> None:
    grey = Image.fromarray(np.uint8([[127, 128], [0, 255]]))
    assert read_mask(grey, (2, 2), 2).tolist() == [[False, True], [False, True]]
    alpha = Image.new("RGBA", (2, 2), (255, 255, 255, 0))
    alpha.putpixel((1, 0), (255, 255, 255, 255))
    assert read_mask(alpha, (2, 2), 2).tolist() == [[False, True], [False, False]]


def test_a_fine_stroke_is_not_lost() -> None:
    stroke = np.zeros((1000, 1000), bool)
    stroke[:, 500] = True
    assert read_mask(stroke, (1000, 1000), 64)[:, 32].all()


def test_dilating_grows_in_all_eight_directions_and_stops_at_the_edge() -> None:
    one = np.zeros((5, 5), bool)
    one[0, 1] = True
    assert np.argwhere(dilate(one, 1)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert np.array_equal(dilate(one, 0), one) and dilate(one, 99).all()


def test_outpainting_puts_the_picture_on_a_larger_square() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    canvas, mask = outpainted(picture, (10, 0, 10, 0))
    assert canvas.size == (60, 60) and mask.shape == (60, 60)
    assert np.array_equal(np.asarray(canvas)[15:45, 10:50], np.asarray(picture))
    assert np.array_equal(~mask, box_mask((10, 15, 40, 30), (60, 60)))
    assert outpainted(picture, (0, 0, 0, 0))[0].size == (40, 40)


def test_outpainting_keeps_the_picture_in_the_middle(demo_editor: editar_rt.Editor) -> None:
    canvas, mask = outpainted(PICTURE, (CELL,) * 4)
    result = demo_editor.edit(canvas, "change the background to snow", mask=mask)
    fitted = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    kept = ~read_mask(mask, canvas.size, SIDE)
    assert kept.sum() >= (SIDE * SIDE // (SIDE + 2 * CELL) - 2) ** 2
    assert np.array_equal(np.asarray(result.image)[kept], fitted[kept])


# What is refused.


@pytest.mark.parametrize(
    ("mask", "error", "says"),
    [
        (Image.new("L", (64, 32), 255), PictureError, "64×32 pixels and the picture 128×128.* the picture's aspect"),
        (Path("none.png"), PictureError, "there is no picture none.png"),
        ((0, 0, 129, 3), OptionError, r"the box 0,0,129,3 .* must lie in the picture, which has 128×128 pixels"),
        ((-1, 0, 5, 5), OptionError, "must lie in the picture"),
        ((3, 3, 0, 5), OptionError, "must lie in the picture"),
    ],
)  # fmt: skip
def test_bad_masks_are_refused_in_one_sentence(
    demo_editor: editar_rt.Editor, mask: object, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        demo_editor.edit(PICTURE, WORDS, mask=mask)


def test_an_unreadable_mask_is_refused(demo_editor: editar_rt.Editor, tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"not a picture")
    with pytest.raises(PictureError, match="is not a picture in a format that can be read"):
        demo_editor.edit(PICTURE, WORDS, mask=tmp_path / "mask.png")


def test_masks_are_for_edits_alone(demo_editor: editar_rt.Editor) -> None:
    with pytest.raises(OptionError, match="task depth cannot do"):
        demo_editor.edit(PICTURE, "a ball", task="depth", mask=(0, 0, 9, 9))
    with pytest.raises(OptionError, match="mask_margin must be 0 or more, got -1"):
        demo_editor.edit(PICTURE, WORDS, mask=(0, 0, 9, 9), mask_margin=-1)


@pytest.mark.parametrize(("margins", "says"), [((-1, 0, 0, 0), "must be 0 or more"), ((0, 0, 0, 0), "nothing to add")])
def test_bad_margins_are_refused(margins: tuple[int, int, int, int], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        outpainted(Image.new("RGB", (8, 8)), margins)
    with pytest.raises(PictureError, match="at most 64 million"):
        outpainted(Image.new("RGB", (8, 8)), (10**6, 0, 0, 0))


def test_known_tokens_of_another_shape_are_refused(demo_editor: editar_rt.Editor) -> None:
    states, condition = demo_editor.encode_text([WORDS]), np.zeros((1, COUNT), np.int32)
    with pytest.raises(OptionError, match=r"known_tokens must be integers \[B, 64\]"):
        demo_editor.generate(states, condition, known_tokens=np.zeros((1, 3), np.int32))
    tokens = demo_editor.model.vocab_size
    with pytest.raises(OptionError, match=f"known_tokens must be 0 to {tokens - 1}"):
        demo_editor.generate(states, condition, known_tokens=np.full((1, COUNT), tokens))
    with pytest.raises(OptionError, match="as many rows, got 2 and 1"):
        demo_editor.generate(states, condition, known_tokens=np.zeros((2, COUNT), np.int32))
