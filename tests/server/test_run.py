"""The process: its start, its stop, the end of a dead engine, and clients that are slow."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.runtime.demo import BUNDLE
from tests.server.running import Server, form, picture, serving, until

EDITS = "/v1/images/edits"


def faulty(how: str, *arguments: str) -> contextlib.AbstractContextManager[Server]:
    return serving(*arguments, program=("-m", "tests.server.faulty", how))


def refused(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and message of a server that does not start."""
    command = [sys.executable, "-m", "editar_rt", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, env=env, timeout=180)
    assert b"Traceback" not in done.stderr and not done.stdout
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((str(BUNDLE), "--host", "0.0.0.0"), 2, "--key-file"),
        ((str(BUNDLE), "--host", "192.0.2.1", "--insecure"), 2, "cannot listen on"),
        ((str(BUNDLE), "--host", "no such host"), 2, "key"),
        ((str(BUNDLE.parent),), 1, "bundle.json"),
        ((str(BUNDLE), "--key-file", "/nonexistent/key"), 2, "/nonexistent/key"),
        ((str(BUNDLE), "--pictures", "0"), 2, "--pictures"),
        ((str(BUNDLE), "--max-pixels", "nan"), 2, "'--max-pixels': nan is not a finite number"),
        ((str(BUNDLE), "--receive-timeout", "inf"), 2, "'--receive-timeout': inf is not a finite number"),
        ((str(BUNDLE), "--allow-host", "https://studio.example"), 2, "a host to allow"),
        ((str(BUNDLE), "--allow-origin", "studio.example"), 2, "an origin to allow"),
    ],
)
def test_a_start_that_is_refused_says_why(arguments: tuple[str, ...], code: int, said: str) -> None:
    assert refused(*arguments)[0] == code
    assert said in refused(*arguments)[1]


def test_a_bundle_without_a_part_is_refused(tmp_path: Path) -> None:
    bundle = tmp_path / "lacking"
    shutil.copytree(BUNDLE, bundle)
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    del manifest["parts"]["text_encoder"]
    (bundle / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    code, said = refused(str(bundle), "--port", "0")
    assert code == 1 and "no text encoder" in said


def test_a_port_in_use_is_named(server: Server) -> None:
    code, said = refused(str(BUNDLE), "--port", server.url.rpartition(":")[2])
    assert code == 2 and "in use" in said


def test_help_needs_no_extra_and_a_start_names_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'starlette' else found(name, *a)\n",
        encoding="utf-8",
    )
    import os

    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code, said = refused(str(BUNDLE), env=env)
    assert code == 1 and 'pip install ".[cpu,serve]"' in said
    command = [sys.executable, "-m", "editar_rt", "serve", "--help"]
    assert b"--queue" in subprocess.run(command, capture_output=True, env=env, check=True).stdout


def test_a_key_from_a_file_or_the_environment_is_needed(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n", encoding="utf-8")
    options = ("--host", "0.0.0.0", "--key-file", str(tmp_path / "key"), "--log-prompts")
    with serving(*options, env={"EDITAR_API_KEY": "other"}) as server:
        url = f"http://127.0.0.1:{server.url.rpartition(':')[2]}"
        for key, status in (("from-file", 200), ("other", 401)):
            assert httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == status
        asked = form(prompt="make the xylophone green")
        assert httpx.post(f"{url}{EDITS}", **asked, headers={"authorization": "Bearer from-file"}).status_code == 200
        assert "from-file" not in server.logged()
        assert "xylophone" in server.logged()  # by --log-prompts
        server.terminate()
        assert server.ended() == 0


class Asking:
    """A request in a thread."""

    def __init__(self, server: Server, **fields: Any) -> None:
        self.answer: httpx.Response | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._ask, args=(server, fields))
        self._thread.start()

    def _ask(self, server: Server, fields: dict[str, Any]) -> None:
        try:
            with server.client() as client:
                self.answer = client.post(EDITS, **form(**fields))
        except httpx.HTTPError as error:
            self.error = error

    def end(self) -> Asking:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self


def running(server: Server, pictures: int = 1) -> None:
    """Wait until pictures run."""
    with server.client() as client:
        until(lambda: f"editar_pictures_running {float(pictures)}" in client.get("/metrics").text)


def last_event(answer: httpx.Response | None) -> dict[str, Any]:
    assert answer is not None
    return dict(json.loads(answer.text.strip().rpartition("data: ")[2]))


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_stop_lets_running_edits_end(number: str) -> None:
    import signal

    with faulty("slow") as server, server.client() as client:
        plain, stream = Asking(server), Asking(server, stream="true")
        running(server, 2)
        server.process.send_signal(getattr(signal, number))
        until(lambda: client.get("/ready").status_code == 503)
        assert client.get("/ready").json() == {"status": "stopping"}
        assert client.get("/health").status_code == 200
        late = client.post(EDITS, **form())
        assert late.status_code == 503 and late.json()["error"]["code"] == "shutting_down"
        answer = plain.end().answer
        assert answer is not None and answer.status_code == 200
        assert last_event(stream.end().answer)["type"] == "image_edit.completed"
        assert server.ended() == 0


def test_what_outlasts_the_grace_ends_with_an_error() -> None:
    with faulty("slow", "--grace", "0.3", "--pictures", "2") as server:
        asked = [Asking(server), Asking(server, stream="true"), Asking(server, stream="true")]
        running(server, 2)
        server.terminate()
        plain, *streams = [each.end().answer for each in asked]
        assert plain is None or plain.status_code == 503
        assert all(last_event(each)["error"]["code"] == "shutting_down" for each in streams)
        assert server.ended() == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with faulty("slow") as server:
        asked = Asking(server)
        running(server)
        server.terminate()
        time.sleep(0.2)
        server.terminate()
        assert server.ended() != 0
        assert asked.end().error is not None


def test_a_process_with_a_dead_engine_ends() -> None:
    with faulty("raises", "--pictures", "2") as server:
        asked = [Asking(server), Asking(server, stream="true"), Asking(server)]
        assert server.ended() == 1
        plain, stream, waiting = [each.end().answer for each in asked]
        for answer in (plain, waiting):
            assert answer is not None and answer.json()["error"]["code"] == "engine_failed"
        assert last_event(stream)["error"]["code"] == "engine_failed"
        assert "the device is lost" in server.logged()


def test_a_process_with_a_stuck_engine_stops_all_the_same() -> None:
    with faulty("hangs", "--grace", "0.2") as server:
        asked = Asking(server, stream="true")
        running(server)
        with server.client() as client:
            assert client.get("/health").status_code == 200  # its heartbeat is not 30 s old yet
        server.terminate()
        assert server.ended() == 1
        asked.end()


def test_a_killed_process_breaks_a_stream_and_leaves_no_file() -> None:
    with faulty("slow") as server:
        asked = Asking(server, stream="true")
        running(server)
        server.process.kill()
        assert asked.end().error is not None


def test_an_upload_that_does_not_fit_on_the_disk_is_refused_and_others_go_on() -> None:
    with faulty("full") as server, server.client() as client:
        answer = client.post(EDITS, data={"prompt": "x"}, files=[picture("image", bytes(2 << 20))])
        assert answer.status_code == 507 and answer.json()["error"]["code"] == "no_space"
        assert client.post(EDITS, **form()).status_code == 200
        assert "cannot be spooled" in server.logged() and "Traceback" not in server.logged()


# Slow clients.


@pytest.fixture(scope="module")
def impatient() -> Iterator[Server]:
    """A server that waits one second for a request."""
    with serving("--receive-timeout", "1", "--pictures", "2") as server:
        yield server


HEAD = b"POST /v1/images/edits HTTP/1.1\r\nhost: localhost\r\n"
SLOW = {
    "silent": b"",
    "half a head": HEAD,
    "a head without its body": HEAD + b"content-type: multipart/form-data; boundary=x\r\ncontent-length: 1000\r\n\r\n",
    "half a body": HEAD + b"content-type: multipart/form-data; boundary=x\r\ncontent-length: 1000\r\n\r\n--x\r\n",
    "a second request behind a first": b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    + HEAD
    + b"content-type: multipart/form-data; boundary=x\r\ncontent-length: 1000\r\n\r\n--x\r\n",
    "a body of chunks": HEAD + b"transfer-encoding: chunked\r\ncontent-type: multipart/form-data; boundary=x\r\n\r\n",
}


def connected(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60)


def closed(raw: socket.socket) -> bool:
    """Whether the server closes a connection."""
    try:
        while raw.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_sender_is_closed(impatient: Server, name: str) -> None:
    with connected(impatient) as raw:
        raw.sendall(SLOW[name])
        assert closed(raw)


def test_a_sender_that_trickles_is_closed(impatient: Server) -> None:
    with connected(impatient) as raw:
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in HEAD * 100:
                raw.sendall(bytes([byte]))
                time.sleep(0.05)
                assert time.monotonic() - started < 60
        assert closed(raw)


def ask_health(raw: socket.socket) -> None:
    raw.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    received = b""
    while not received.endswith(b"}"):
        received += raw.recv(65536)
    assert received.startswith(b"HTTP/1.1 200")


def test_a_client_that_asks_in_time_is_kept_and_closed_when_it_does_not(impatient: Server) -> None:
    with connected(impatient) as raw:
        for _ in range(5):
            ask_health(raw)
            time.sleep(0.4)
        raw.sendall(HEAD)  # half of another request
        assert closed(raw)


def test_many_slow_clients_do_not_keep_others_out(impatient: Server) -> None:
    with contextlib.ExitStack() as stack, impatient.client() as client:
        slow = [stack.enter_context(connected(impatient)) for _ in range(200)]
        for place, raw in enumerate(slow):
            raw.sendall(list(SLOW.values())[place % len(SLOW)])
        assert client.post(EDITS, **form()).status_code == 200
        assert all(closed(raw) for raw in slow)


FEW_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150))
from editar_rt.__main__ import main
main()
"""


def test_more_connections_than_the_system_has_files_for_keep_nobody_out() -> None:
    with contextlib.ExitStack() as stack, serving(program=("-c", FEW_FILES)) as server, server.client() as client:
        slow = [stack.enter_context(connected(server)) for _ in range(160)]
        for raw in slow:
            with contextlib.suppress(ConnectionError):
                raw.sendall(HEAD)
        assert client.post(EDITS, **form()).status_code == 200
        assert "Too many open files" not in server.logged()


def test_the_server_stops_in_spite_of_slow_clients() -> None:
    with serving() as server, connected(server) as silent, connected(server) as half:
        half.sendall(SLOW["half a body"])
        silent.sendall(b"")
        with server.client() as client:
            client.get("/health")
        server.terminate()
        assert server.ended() == 0
