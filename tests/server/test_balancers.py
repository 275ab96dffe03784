"""The examples of docs/serving: two servers behind nginx, and behind HAProxy; one of them stops."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import openai
import pytest

from tests.runtime.demo import PICTURE, WORDS
from tests.server.running import Server, form, serving, until
from tests.tools import require_program

EXAMPLES = Path(__file__).parents[2] / "docs" / "serving"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def configured(name: str, folder: Path, servers: list[Server]) -> tuple[Path, str]:
    """An example with the servers' ports in place of its own. Returns its path and the balancer's address."""
    own = free_port()
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    ports = [server.url.rpartition(":")[2] for server in servers]
    for given, used in (("8765", ports[0]), ("8766", ports[1]), ("8080", str(own))):
        text = re.sub(rf":{given}\b", f":{used}", text)
    if name == "nginx.conf":  # what a test needs to run as anybody
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = f"pid {folder}/pid; daemon off; error_log stderr;\n" + text.replace(
            "http {", f"http {{ access_log off; {temporary}", 1
        )
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path, f"http://127.0.0.1:{own}"


@contextlib.contextmanager
def balancing(name: str, folder: Path, servers: list[Server]) -> Iterator[str]:
    program = require_program(
        {"nginx.conf": "nginx", "haproxy.cfg": "haproxy"}[name], "apt-get install nginx-light haproxy"
    )
    path, url = configured(name, folder, servers)
    command = [program, "-c", str(path)] if name == "nginx.conf" else [program, "-db", "-f", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        until(lambda: reached(url))
        yield url
    finally:
        process.terminate()
        _, said = process.communicate(timeout=60)
        assert b"[emerg]" not in said and b"[ALERT]" not in said, said.decode()


def reached(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("name", ["nginx.conf", "haproxy.cfg"])
def test_every_request_is_answered_while_one_of_two_servers_stops(name: str, tmp_path: Path) -> None:
    with serving() as one, serving() as two, balancing(name, tmp_path, [one, two]) as url:
        answers: list[str | None] = []

        def ask() -> None:
            with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
                for _ in range(4):
                    answer = client.images.edit(image=PICTURE.read_bytes(), prompt=WORDS, extra_body={"seed": 1})
                    assert answer.data is not None
                    answers.append(answer.data[0].b64_json)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: len(answers) >= 4)
        one.terminate()
        for thread in threads:
            thread.join(120)
        assert one.ended() == 0
        assert len(answers) == 16 and len(set(answers)) == 1


@pytest.mark.parametrize("name", ["nginx.conf", "haproxy.cfg"])
def test_partial_pictures_come_through_before_the_result(name: str, server: Server, tmp_path: Path) -> None:
    with balancing(name, tmp_path, [server, server]) as url, httpx.Client(base_url=url, timeout=120) as client:
        asked = form(stream="true", partial_images="7")
        with client.stream("POST", "/v1/images/edits", **asked) as answer:
            pieces = list(answer.iter_raw())
        assert b"partial_image" in pieces[0] and b"completed" not in pieces[0]
        assert b"image_edit.completed" in b"".join(pieces)
