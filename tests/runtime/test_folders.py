"""Which files of a folder are edited: every picture that Pillow reads, and nothing that a system keeps beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from editar_rt.errors import PictureError
from editar_rt.images.folders import list_pictures, picture_endings

WANTED = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".tif", ".tga", ".ppm", ".jp2"}


def test_every_ending_of_pictures_that_pillow_reads_is_taken() -> None:
    assert set(picture_endings()) >= WANTED
    assert (".avif" in picture_endings()) == ("AVIF" in Image.OPEN)
    assert not {".eps", ".wmf", ".pdf", ".mpg", ".h5", ".fits"} & set(picture_endings())
    assert set(picture_endings(("JPEG", "MPO"))) == {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"}


def test_pictures_are_listed_by_name_and_the_rest_is_named(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.JPG", "a.jfif", "._a.jfif", ".DS_Store", "notes.txt", "film.mpg", "deep/c.png"):
        (tmp_path / name).touch()
    listing = list_pictures(tmp_path)
    assert [path.name for path in listing.pictures] == ["a.jfif", "b.JPG"]
    assert listing.sentence == (
        f"{tmp_path}: skipped 5 files that are not pictures: .DS_Store, ._a.jfif, deep, film.mpg, notes.txt"
    )
    deep = list_pictures(tmp_path, deep=True)
    assert [path.name for path in deep.pictures] == ["a.jfif", "b.JPG", "c.png"] and len(deep.passed_over) == 4


def test_only_the_first_of_many_are_named(tmp_path: Path) -> None:
    for n in range(9):
        (tmp_path / f"{n}.txt").touch()
    assert str(list_pictures(tmp_path).sentence).endswith("0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 4 more")


def test_a_folder_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="none cannot be read"):
        list_pictures(tmp_path / "none")
