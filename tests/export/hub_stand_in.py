"""A small Hugging Face Hub on loopback: repository listings, and files with ranges, from a folder.

A file whose name is in `cut_short` is broken off in the middle, once.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c0ffee" + "0" * 34


class Hub:
    """What is served and what was asked. `files` by (kind, repository, path)."""

    def __init__(self, files: dict[tuple[str, str, str], Path]) -> None:
        self.files = files
        self.cut_short: set[str] = set()
        self.ranges: list[str] = []
        self.fetched: list[str] = []
        self.endpoint = ""


@contextmanager
def serve(files: dict[tuple[str, str, str], Path]) -> Iterator[Hub]:
    hub = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            if match := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
                self.listing(match[1], match[2])
            elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                self.file("dataset" if match[1] else "model", match[2], match[3], body)
            else:
                self.refuse("EntryNotFound")

        def refuse(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def listing(self, kind: str, repository: str) -> None:
            held = {p: f for (k, r, p), f in hub.files.items() if (k, r) == (kind, repository)}
            if not held:
                return self.refuse("RepoNotFound")
            siblings = [{"rfilename": p, "size": f.stat().st_size} for p, f in held.items()]
            document = {"id": repository, "sha": COMMIT, "siblings": siblings, "cardData": {"license": "apache-2.0"}}
            content = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return None

        def file(self, kind: str, repository: str, name: str, body: bool) -> None:
            source = hub.files.get((kind, repository, name))
            if source is None:
                return self.refuse("EntryNotFound")
            content, first = source.read_bytes(), 0
            asked = self.headers.get("Range") if body else None
            if asked:
                hub.ranges.append(asked)
                first = int(re.findall(r"\d+", asked)[0])
            part = content[first:]
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if not body:
                return None
            hub.fetched.append(name)
            if name in hub.cut_short:
                hub.cut_short.remove(name)
                self.wfile.write(part[: len(part) // 2])
                self.close_connection = True
                self.connection.close()
                return None
            self.wfile.write(part)
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
