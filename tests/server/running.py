"""`editar serve` as a process of its own, as users start it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx2 as httpx

from tests.runtime.demo import BUNDLE, PICTURE, WORDS

START_SECONDS = 180  # on a machine that runs other tests


@dataclass
class Server:
    """A server that takes requests."""

    process: subprocess.Popen[bytes]
    url: str
    log: IO[bytes]

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, **options)

    def logged(self) -> str:
        self.log.seek(0)
        return self.log.read().decode()

    def ended(self, seconds: float = 90) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def serving(
    *arguments: str,
    program: Sequence[str] = ("-m", "editar_rt"),
    bundle: Path = BUNDLE,
    env: dict[str, str] | None = None,
) -> Iterator[Server]:
    """A server of the demo bundle on a free port, until the block ends."""
    command = [sys.executable, *program, "serve", str(bundle), "--port", "0", "--threads", "1", *arguments]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env={**os.environ, **(env or {})}, bufsize=0
        )
        watchdog = threading.Timer(START_SECONDS, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline().decode()
            watchdog.cancel()
            found = re.search(r"http://\S+", line)
            server = Server(process, found[0] if found else "", log)
            assert found, f"the server did not start: {line!r} {server.logged()}"
            yield server
        finally:
            watchdog.cancel()
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def form(**fields: Any) -> dict[str, Any]:
    """The arguments of a post that edits the demo's sample; a field that is None is left out."""
    data = {"prompt": WORDS, "seed": "1", **fields}
    return {"data": {name: value for name, value in data.items() if value is not None}, "files": [picture()]}


def picture(name: str = "image", content: bytes | None = None) -> tuple[str, tuple[str, bytes]]:
    return name, ("a.png", PICTURE.read_bytes() if content is None else content)


def until(reached: Any, seconds: float = 90) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
