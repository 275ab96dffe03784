"""Pictures that take much time: to decode, more than one of their size should; and to paste back and encode."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import pytest
from PIL import Image

from editar_rt.images.fit import Placement
from editar_rt.server import pictures
from editar_rt.server.errors import ApiError
from tests.server.browser import Server
from tests.server.running import form

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


def test_nobody_waits_for_the_whole_pictures_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    restore, held, go = Placement.restore, threading.Semaphore(0), threading.Event()

    def slow(self: Placement, *args: Any, **options: Any) -> Image.Image:
        held.release()
        assert go.wait(60)
        return restore(self, *args, **options)

    monkeypatch.setattr(Placement, "restore", slow)
    with Server() as server, ThreadPoolExecutor() as clients, httpx.Client(base_url=server.url, timeout=60) as client:
        whole = [clients.submit(client.post, "/v1/images/edits", **form(restore="true")) for _ in range(4)]
        assert held.acquire(timeout=60) and held.acquire(timeout=60)
        assert client.post("/v1/images/edits", **form()).status_code == 200
        assert client.post("/v1/images/edits", **form(stream="true")).status_code == 200
        go.set()
        assert [each.result().status_code for each in whole] == [200] * 4
