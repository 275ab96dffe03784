"""Pictures that take their decoder more time than a picture of their size should."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from editar_rt.server import pictures
from editar_rt.server.errors import ApiError

LIMIT = 16_000_000


def progressive(scans: int) -> bytes:
    """A JPEG whose last scan comes again and again; each goes over the whole picture."""
    file = io.BytesIO()
    Image.new("L", (1000, 1000), 99).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scans * last + content[-2:]


def test_a_jpeg_of_thousands_of_scans_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    content = progressive(5000)
    monkeypatch.setattr(pictures, "DECODE_SECONDS", 0.02)
    with pytest.raises(ApiError, match="takes too long to read"):
        pictures.read_image(io.BytesIO(content), LIMIT)


def test_reading_in_small_pieces_gives_the_same_pixels() -> None:
    noise = Image.effect_noise((700, 500), 90).convert("RGB")
    for kind, options in (("JPEG", {"quality": 97}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {})):
        file = io.BytesIO()
        noise.save(file, kind, **options)
        expected = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
        assert pictures.read_image(file, LIMIT).tobytes() == expected.tobytes()
