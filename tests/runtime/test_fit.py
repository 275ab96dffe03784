"""Pictures of any shape fitted to the model's square, and results put back into them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image, ImageFilter

from editar_rt.errors import OptionError, PictureError
from editar_rt.images.fit import FITS, Fit, Placement, fit_square, resize
from editar_rt.images.masks import box_mask, feather, read_mask
from tests.runtime.demo import GRID, SIDE

SIZES = [(300, 200), (200, 300), (128, 128), (97, 61), (640, 64), (50, 1200), (1, 1), (3, 700)]


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def smooth(size: tuple[int, int]) -> Image.Image:
    """Slopes of another steepness each way, so that a shift or a turn shows."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    return Image.fromarray(np.uint8(np.stack([255 * x, 200 * y, 120 * (x + y)], axis=-1)))


# To the square.


@pytest.mark.parametrize("how", FITS)
@pytest.mark.parametrize("size", SIZES)
def test_every_picture_becomes_a_square(size: tuple[int, int], how: Fit) -> None:
    placement = Placement(size, 64, how)
    assert placement.fit(noise(size)).size == (64, 64)
    left, top, right, bottom = placement.covered
    assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64


def test_crop_is_the_middle_square_that_models_are_trained_on() -> None:
    picture = noise((300, 200))
    assert Placement(picture.size, 64).fit(picture).tobytes() == fit_square(picture, 64).tobytes()


def test_pad_shows_the_whole_picture_and_continues_its_border() -> None:
    picture = smooth((300, 200))
    square = np.asarray(Placement(picture.size, 96, "pad").fit(picture))
    whole = np.asarray(resize(picture, (96, 64)))
    assert np.array_equal(square[16:80], whole)
    assert (square[:16] == whole[0]).all() and (square[80:] == whole[-1]).all()


def test_stretch_shows_the_whole_picture() -> None:
    picture = noise((300, 200))
    square = Placement(picture.size, 64, "stretch").fit(picture)
    assert square.tobytes() == resize(picture, (64, 64)).tobytes()


@pytest.mark.parametrize(
    ("size", "digest"),
    [
        ((40, 103), "662df91c79b38e38"),
        ((64, 900), "bd5d0eed94348c4a"),
        ((900, 64), "2f869ac5dd68c99a"),
        ((5, 2000), "dc3de8793b7f4170"),
        ((2000, 5), "025382e6ef491b6f"),
        ((153, 398), "cbe5560c7d95f4e4"),
    ],
)
def test_resizing_gives_the_same_pixels_with_every_version_of_pillow(size: tuple[int, int], digest: str) -> None:
    """Versions differ in which pass comes first; these digests are what 10.1 and 13.0 give."""
    assert hashlib.sha256(fit_square(noise(size), 64).tobytes()).hexdigest()[:16] == digest


# Masks.


@pytest.mark.parametrize("how", ["pad", "stretch"])
@pytest.mark.parametrize("reduction", [1, 5, 23, 31, 64])
def test_a_lone_white_pixel_survives_any_reduction(reduction: int, how: Fit) -> None:
    width, height = 32 * reduction, 20 * reduction + 3
    rng = np.random.default_rng(reduction)
    for x, y in zip(rng.integers(0, width, 20), rng.integers(0, height, 20), strict=True):
        white = np.zeros((height, width), bool)
        white[y, x] = True
        assert Placement((width, height), 32, how).fit_mask(white).any()


@pytest.mark.parametrize("how", FITS)
@pytest.mark.parametrize("size", SIZES)
def test_a_white_mask_frees_what_shows_the_picture_and_nothing_else(size: tuple[int, int], how: Fit) -> None:
    placement = Placement(size, 64, how)
    left, top, right, bottom = placement.covered
    expected = box_mask((left, top, right - left, bottom - top), (64, 64))
    assert np.array_equal(read_mask(np.ones(size[::-1], bool), size, 64, how), expected)


@pytest.mark.parametrize("how", FITS)
def test_masks_lie_where_their_picture_lies(how: Fit) -> None:
    """A mask of a third of its picture's size, too."""
    size, box = (288, 192), (120, 60, 60, 60)
    white = box_mask(box, size)
    shown = np.asarray(Placement(size, 96, how).fit(Image.fromarray(np.uint8(white) * 255))) > 127
    for given in (white, Image.fromarray(white).resize((96, 64)), box):
        assert np.array_equal(read_mask(given, size, 96, how), shown)


# And back.


@pytest.mark.parametrize("how", FITS)
@pytest.mark.parametrize("size", SIZES[:4])
def test_a_square_that_was_not_edited_comes_back_in_its_place(size: tuple[int, int], how: Fit) -> None:
    picture = smooth(size)
    placement = Placement(size, 128, how)
    back = placement.restore(placement.fit(picture), picture)
    assert back.size == size
    off = np.asarray(back, int) - np.asarray(picture)
    assert np.abs(off.mean()) < 0.5
    assert np.abs(off).max() <= 12  # at the picture's own edges, where a steep slope was squeezed


@pytest.mark.parametrize("how", FITS)
@pytest.mark.parametrize("size", [(1000, 1), (1, 6), (2, 1), (1, 1), (3, 1000)])
def test_thin_pictures_come_back_at_their_size(size: tuple[int, int], how: Fit) -> None:
    """Also where the middle square of a picture one pixel high shows the halves of two of its pixels."""
    picture, placement = Image.new("RGB", size, (9, 99, 199)), Placement(size, 64, how)
    assert placement.restore(placement.fit(picture), picture).getcolors() == [(size[0] * size[1], (9, 99, 199))]


@pytest.mark.parametrize("feathered", [True, False])
def test_crop_leaves_what_was_cut_off_as_it_is(feathered: bool) -> None:
    picture = noise((300, 200))
    placement = Placement(picture.size, 64)
    back = np.asarray(placement.restore(Image.new("RGB", (64, 64), "red"), picture, feathered))
    assert np.array_equal(back[:, :50], np.asarray(picture)[:, :50])
    assert np.array_equal(back[:, 250:], np.asarray(picture)[:, 250:])
    assert (back[:, 70:230] == (255, 0, 0)).all()
    assert (back[:, 51] == (255, 0, 0)).all() != feathered


def test_the_seam_lies_only_where_the_picture_was_cut() -> None:
    picture = Image.new("RGB", (300, 200))
    back = np.asarray(Placement(picture.size, 64).restore(Image.new("RGB", (64, 64), "white"), picture))[..., 0]
    assert (back == back[0]).all()
    seam = back[0, 50:66].astype(int)
    assert (np.diff(seam) >= 0).all() and seam[0] < 64 and seam[-1] == 255


@pytest.mark.parametrize("how", ["pad", "stretch"])
def test_pad_and_stretch_give_the_whole_result_without_a_seam(how: Fit) -> None:
    picture = noise((300, 200))
    back = Placement(picture.size, 64, how).restore(Image.new("RGB", (64, 64), "red"), picture)
    assert back.size == (300, 200) and (np.asarray(back) == (255, 0, 0)).all()


@pytest.mark.parametrize("how", FITS)
def test_outside_of_the_mask_the_originals_pixels_stay_at_their_own_resolution(how: Fit) -> None:
    picture = noise((900, 600))
    white = box_mask((400, 200, 100, 100), picture.size)
    placement = Placement(picture.size, SIDE, how)
    share = feather(placement.fit_mask(white), GRID)
    back = placement.restore(Image.new("RGB", (SIDE, SIDE), "red"), picture, share=share)
    changed = (np.asarray(back) != np.asarray(picture)).any(axis=-1)
    # A pixel of the square is up to 8 of the picture, and counts as white where any of them is.
    near = np.asarray(Image.fromarray(np.uint8(white) * 255).filter(ImageFilter.MaxFilter(17))) > 0
    assert not changed[~near].any() and changed[220:280, 420:480].all()
    assert (np.asarray(back)[240:260, 440:460] == (255, 0, 0)).all()


def test_the_original_is_not_written_to() -> None:
    picture = noise((300, 200))
    before = picture.tobytes()
    Placement(picture.size, 64).restore(Image.new("RGB", (64, 64)), picture)
    assert picture.tobytes() == before


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(OptionError, match="fit must be one of crop, pad, stretch, got 'squash'"):
        Placement((3, 2), 64, "squash")  # type: ignore[arg-type]
    placement = Placement((300, 200), 64)
    with pytest.raises(PictureError, match="64×64 pixels, and its placement was made for 300×200"):
        placement.fit(Image.new("RGB", (64, 64)))
    with pytest.raises(PictureError, match="the result has 32×32 pixels, not 64×64"):
        placement.restore(Image.new("RGB", (32, 32)), Image.new("RGB", (300, 200)))
