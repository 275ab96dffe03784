"""The configuration of nginx in the docs, before two servers; only the addresses are changed."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.server.running import Server, form, serving, until
from tests.tools import require_program

CONFIGURATION = Path(__file__).parents[2] / "docs" / "serving" / "nginx.conf"
HOST = "editar.example.com"
NGINX = require_program("nginx", "apt-get install nginx-light")
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def balancing(servers: Sequence[Server], folder: Path) -> Iterator[httpx.Client]:
    """A client of nginx before the servers."""
    port, text = free_port(), CONFIGURATION.read_text()
    for name, server in zip(("editar-1:8765", "editar-2:8765"), servers, strict=True):
        text = text.replace(name, server.url.removeprefix("http://"))
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};")
    paths = "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in TEMPORARY)
    (folder / "nginx.conf").write_text(text.replace("http {", f"http {{ access_log off; {paths}"))
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    process = subprocess.Popen([*command, "-g", f"daemon off; master_process off; pid {folder}/pid;"])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"host": HOST}, timeout=60) as client:
            until(lambda: _answers(client))
            yield client
    finally:
        process.terminate()
        process.wait()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/ready").status_code == 200
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def two_servers(*options: str) -> Iterator[list[Server]]:
    with serving("--allow-host", HOST, *options) as one, serving("--allow-host", HOST, *options) as two:
        yield [one, two]


def running(server: Server) -> float:
    with server.client() as client:
        found = re.search(r"^editar_pictures_running (\S+)", client.get("/metrics").text, re.M)
    assert found
    return float(found[1])


def test_a_stream_comes_as_it_is_made_and_full_servers_are_passed_over(tmp_path: Path) -> None:
    full = ("--pictures", "32", "--queue", "0", "--preview-share", "1")
    with two_servers(*full) as servers, balancing(servers, tmp_path) as client, contextlib.ExitStack() as streams:

        def begin(_: Server) -> Iterator[str]:
            asked = client.stream("POST", "/v1/images/edits", **form(n="32", stream="true", partial_images="7"))
            lines = streams.enter_context(asked).iter_lines()
            assert next(lines) == "event: image_edit.partial_image"
            return lines

        with ThreadPoolExecutor(2) as pool:
            begun = list(pool.map(begin, servers))  # kept: an answer is closed with its lines
        # What has begun to arrive is still worked on, each half by one of the servers.
        assert [running(server) > 0 for server in servers] == [True, True]
        refused = client.post("/v1/images/edits", **form())
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/metrics").status_code == 404
        assert len(begun) == 2


@pytest.mark.parametrize("stop", [Server.terminate, lambda server: server.process.kill()], ids=["stopped", "killed"])
def test_while_a_server_ends_every_request_is_answered(tmp_path: Path, stop: Any) -> None:
    with two_servers() as servers, balancing(servers, tmp_path) as client:
        right = client.post("/v1/images/edits", **form()).json()["data"][0]["b64_json"]
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(client.post, "/v1/images/edits", **form()) for _ in range(12)]
            time.sleep(0.1)
            stop(servers[0])
            answers = [each.result() for each in asked]
        assert [answer.status_code for answer in answers] == [200] * 12
        assert {answer.json()["data"][0]["b64_json"] for answer in answers} == {right}
