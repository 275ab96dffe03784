"""Clients that read slowly: partial pictures are dropped, results are not, memory is bounded."""

from __future__ import annotations

import asyncio
import io
import socket
import time
from typing import Any

import pytest
from PIL import Image

from editar_rt.results import Result
from editar_rt.server.errors import cancelled
from editar_rt.server.outbox import Finished, Outbox, Partial
from tests.server.running import form, serving, until

PICTURE: Any = Image.new("RGB", (8, 8))
RESULT: Any = Result(PICTURE, None, {})  # type: ignore[arg-type]


def taken(fill: Any) -> list[Any]:
    """What a client gets that begins to read when all has happened."""

    async def read() -> list[Any]:
        outbox = Outbox()
        fill(outbox)
        await asyncio.sleep(0)  # what the engine's thread has passed on arrives
        found = []
        while (item := await outbox.take_within(0.01)) is not None:
            found.append(item)
        return found

    return asyncio.run(read())


def test_of_partial_pictures_the_newest_of_each_variant_is_kept() -> None:
    def fill(outbox: Outbox) -> None:
        for row in range(1, 8):
            for variant in range(2):
                outbox.preview(variant, PICTURE, row - 1, row)

    assert [(item.variant, item.row) for item in taken(fill)] == [(0, 7), (1, 7)]


def test_no_result_is_dropped() -> None:
    def fill(outbox: Outbox) -> None:
        for variant in range(8):
            outbox.preview(variant, PICTURE, 0, 1)
            outbox.result(variant, RESULT, [])

    found = taken(fill)
    assert [item.variant for item in found if isinstance(item, Finished)] == list(range(8))
    assert sum(isinstance(item, Partial) for item in found) == 8


def test_an_error_comes_after_what_was_there() -> None:
    def fill(outbox: Outbox) -> None:
        outbox.result(0, RESULT, [])
        outbox.failed(cancelled())

    first, second = taken(fill)
    assert isinstance(first, Finished) and second.code == "cancelled"


def test_a_listener_whose_loop_is_gone_does_not_disturb_the_engine() -> None:
    async def make() -> Outbox:
        return Outbox()

    asyncio.run(make()).result(0, RESULT, [])


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_reader_that_takes_nothing_is_closed(stream: str) -> None:
    """The answer is larger than what the system's buffers take: two pictures of noise."""
    with serving("--send-timeout", "1") as server, server.client() as client:
        request = client.build_request("POST", "/v1/images/edits", **noise(n="2", stream=stream))
        request.read()
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
            kind = request.headers["content-type"]
            head = f"POST /v1/images/edits HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n"
            raw.sendall(f"{head}content-length: {len(request.content)}\r\n\r\n".encode() + request.content)
            until(lambda: "POST /v1/images/edits" in server.logged() or b"image_edit" in raw.recv(8, socket.MSG_PEEK))
            time.sleep(3)
            count = received(raw)
        assert client.get("/health").status_code == 200
        whole = client.post("/v1/images/edits", **noise(n="2", stream=stream))  # a reader that takes it
        assert whole.status_code == 200 and count < len(whole.content) - 1_000_000


def noise(**fields: str) -> dict[str, Any]:
    """An edit of a large picture of noise, of which a corner may change."""
    picture, mask = Image.effect_noise((1500, 1500), 100).convert("RGB"), Image.new("L", (1500, 1500))
    mask.paste(255, (0, 0, 99, 99))
    files = []
    for name, image in (("image", picture), ("mask", mask)):
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        files.append((name, ("a.png", file.getvalue())))
    return {**form(restore="true", fit="pad", **fields), "files": files}


def received(raw: socket.socket) -> int:
    """The number of bytes until a connection's end."""
    raw.settimeout(20)
    count = 0
    try:
        while chunk := raw.recv(1 << 20):
            count += len(chunk)
    except ConnectionError:
        pass
    return count
