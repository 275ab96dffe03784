"""Colours by their embedded profile, in sRGB; profiles that cannot be used."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editar_rt.errors import ColorProfileWarning
from editar_rt.images.masks import read_mask
from editar_rt.images.pixels import open_grey, open_picture, read_pixels
from tests.runtime.picture_files import (
    ADOBE_RGB,
    DISPLAY_P3,
    GREY,
    LINEAR_GREY,
    P3_GAMMA_22,
    SRGB,
    SRGB_GREY,
    cmyk_profile,
    png,
)

INKS = cmyk_profile([30, 40, 20, 60])


def saved(image: Image.Image, profile: bytes, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, icc_profile=profile, **({"quality": 100} if kind in ("JPEG", "WEBP") else {}))
    return stream.getvalue()


def of_grey(light: float) -> int:
    """sRGB's grey of a share of linear light."""
    return round(255 * (light * 12.92 if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("given", "profile", "srgb"),
    [
        ((60, 180, 60), DISPLAY_P3, (0, 183, 30)),
        ((60, 180, 60), P3_GAMMA_22, (0, 185, 22)),
        ((200, 80, 60), ADOBE_RGB, (230, 79, 56)),
    ],
    ids=["display-p3", "p3-gamma-2.2", "adobe-rgb"],
)
def test_colours_are_converted_by_their_profile(
    kind: str, given: tuple[int, ...], profile: bytes, srgb: tuple[int, ...]
) -> None:
    made = open_picture(saved(Image.new("RGB", (16, 16), given), profile, kind)).getpixel((8, 8))
    # JPEG and WebP round the given colour by up to 2 themselves.
    assert np.abs(np.subtract(made, srgb)).max() <= (1 if kind in ("PNG", "TIFF") else 6)


@pytest.mark.parametrize("mode", ["P", "RGBA", "PA"])
def test_palettes_and_pictures_with_alpha_are_converted_too(mode: str) -> None:
    picture = Image.new("RGB", (4, 4), (60, 180, 60)).convert("P", palette=Image.Palette.ADAPTIVE)
    picture = picture.convert("RGBA") if mode == "RGBA" else picture if mode == "P" else picture.convert("PA")
    picture.info["icc_profile"] = DISPLAY_P3
    assert np.abs(np.subtract(open_picture(picture).getpixel((1, 1)), (0, 183, 30))).max() <= 1


def test_linear_grey_becomes_srgbs() -> None:
    assert open_picture(saved(Image.new("L", (4, 4), 128), LINEAR_GREY)).getpixel((0, 0)) == (188,) * 3
    assert open_grey(saved(Image.new("L", (4, 4), 128), LINEAR_GREY)).getpixel((0, 0)) == 188


def test_linear_grey_of_16_bits_keeps_its_shadows() -> None:
    codes = np.uint16([[0, 20, 50, 100, 200, 257, 400, 1000, 5000, 32768, 65535]])
    made = np.asarray(open_grey(png(codes, 16, GREY, icc=LINEAR_GREY)))[0]
    assert np.abs(made.astype(int) - [of_grey(code / 65535) for code in codes[0]]).max() <= 1


def test_cmyk_is_converted_by_its_profile() -> None:
    made = open_picture(saved(Image.new("CMYK", (4, 4), (0, 0, 0, 255)), INKS, "TIFF")).getpixel((0, 0))
    # Lab's L = 40 is 11.3 % of the light.
    assert np.abs(np.array(made) - of_grey(0.1125)).max() <= 2
    assert open_picture(saved(Image.new("CMYK", (4, 4)), INKS, "TIFF")).getpixel((0, 0)) == (255,) * 3


@pytest.mark.parametrize(("mode", "profile"), [("RGB", SRGB), ("L", SRGB), ("L", SRGB_GREY)])
def test_where_the_profile_is_srgbs_own_the_pixels_stay(mode: str, profile: bytes) -> None:
    shape = (16, 16) if mode == "L" else (16, 16, 3)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    assert np.array_equal(np.asarray(open_picture(saved(picture, profile))), np.asarray(picture.convert("RGB")))


def test_a_picture_that_was_opened_is_not_converted_a_second_time() -> None:
    once = open_picture(saved(Image.new("RGB", (4, 4), (60, 180, 60)), DISPLAY_P3))
    assert not once.info and open_picture(once).tobytes() == once.tobytes()


def test_the_callers_picture_stays_as_it_was() -> None:
    picture = Image.new("RGB", (4, 4), (60, 180, 60))
    picture.info["icc_profile"] = DISPLAY_P3
    open_picture(picture)
    assert picture.getpixel((0, 0)) == (60, 180, 60) and picture.info["icc_profile"] == DISPLAY_P3


@pytest.mark.parametrize(
    ("mode", "profile"),
    [("RGB", b"no profile"), ("RGB", SRGB[:200]), ("RGB", b""), ("RGB", LINEAR_GREY), ("L", INKS)],
    ids=["rubbish", "cut", "empty", "grey-on-colours", "cmyk-on-grey"],
)
def test_a_profile_that_cannot_be_used_is_a_warning_and_the_pixels_stay(mode: str, profile: bytes) -> None:
    picture = Image.new(mode, (4, 4), 77)
    picture.info["icc_profile"] = profile
    with pytest.warns(ColorProfileWarning, match="the picture has a colour profile that cannot be used"):
        made = open_picture(picture)
    assert made.tobytes() == picture.convert("RGB").tobytes()


def test_the_warning_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(saved(Image.new("RGB", (4, 4)), b"no profile"))
    with pytest.warns(ColorProfileWarning, match=r"photo\.png has a colour profile"):
        open_picture(tmp_path / "photo.png")


def test_no_damage_to_a_profile_ends_in_anything_but_a_warning() -> None:
    rng, picture = np.random.default_rng(0), Image.new("RGB", (4, 4), (60, 180, 60))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ColorProfileWarning)
        for _ in range(200):
            content = bytearray(DISPLAY_P3[: rng.choice([len(DISPLAY_P3), rng.integers(1, len(DISPLAY_P3))])])
            for place in rng.integers(0, min(len(content), 400), 6):
                content[place] = rng.integers(0, 256)
            picture.info["icc_profile"] = bytes(content)
            assert open_picture(picture).mode == "RGB"


# Whoever reads pictures reads them so.


def test_the_models_input_and_masks_are_converted() -> None:
    content = saved(Image.new("L", (4, 4), 60), LINEAR_GREY)  # 60 of linear light is 132 of sRGB
    assert read_pixels(content, 4).max() > 0
    assert read_mask(content, (4, 4), 4).all()


def test_training_and_evaluation_read_converted_pictures(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from training.data.records import read_picture

    content = saved(Image.new("RGB", (4, 4), (60, 180, 60)), DISPLAY_P3)
    (tmp_path / "photo.png").write_bytes(content)
    for given in (content, tmp_path / "photo.png"):
        assert np.abs(read_picture(given, "photo").astype(int) - (0, 183, 30)).max() <= 1
