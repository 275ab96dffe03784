"""A web page elsewhere, in Chromium: it reaches nothing of a server on this machine, also by DNS rebinding."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.tools import require_module, require_program

for module, package in (("starlette", ".[serve]"), ("playwright", "playwright")):
    require_module(module, f"pip install {package}")
CHROMIUM = require_program("chromium", "apt-get install chromium")

from playwright.sync_api import Page, sync_playwright  # noqa: E402

from tests.runtime.demo import PICTURE  # noqa: E402
from tests.server.running import Server  # noqa: E402

EVIL = "evil.example"  # which the browser resolves to this machine
RULES = f"--host-resolver-rules=MAP {EVIL} 127.0.0.1"
EDIT = """
async ([url, picture, mode]) => {
    const form = new FormData()
    form.append('prompt', 'x')
    form.append('image', await (await fetch(`data:image/png;base64,${picture}`)).blob(), 'a.png')
    try { return (await fetch(url, {method: 'POST', body: form, mode})).status } catch (error) { return error.name }
}
"""
READ = "async (url) => { try { return (await fetch(url)).status } catch (error) { return error.name } }"


class Blank(BaseHTTPRequestHandler):
    """The site of the page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page of another site."""
    site = ThreadingHTTPServer(("127.0.0.1", 0), Blank)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", RULES])
        page = browser.new_page()
        page.goto(f"http://{EVIL}:{site.server_port}/")
        yield page
        browser.close()
    site.shutdown()
    site.server_close()


def counted(server: Server) -> tuple[float, float, float]:
    """Edits that were made; requests that were refused for their origin, and for their host."""
    with server.client() as client:
        lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    names = (
        'editar_requests_total{code="200",endpoint="/v1/images/edits"}',
        'editar_rejected_total{why="origin"}',
        'editar_rejected_total{why="host"}',
    )
    made, origin, host = (float(lines.get(name, 0)) for name in names)
    return made, origin, host


def edit(page: Page, url: str, mode: str) -> Any:
    return page.evaluate(EDIT, [f"{url}/v1/images/edits", base64.b64encode(PICTURE.read_bytes()).decode(), mode])


@pytest.mark.parametrize("mode", ["no-cors", "cors"])
def test_it_cannot_post_an_edit(page: Page, server: Server, mode: str) -> None:
    made, origin, _ = counted(server)
    assert edit(page, server.url, mode) in (0, "TypeError")  # it may not even read that it was refused
    assert counted(server)[:2] == (made, origin + 1)


def test_it_cannot_read_what_the_server_says(page: Page, server: Server) -> None:
    for path in ("/v1/models", "/metrics", "/health", "/openapi.json"):
        assert page.evaluate(READ, server.url + path) == "TypeError"


def test_it_cannot_frame_the_servers_page(page: Page, server: Server) -> None:
    frame = page.evaluate_handle("document.body.appendChild(document.createElement('iframe'))").as_element()
    assert frame is not None
    with page.expect_event("framenavigated"):
        frame.evaluate("(frame, url) => { frame.src = url }", server.url)
    content = frame.content_frame()
    assert content is not None and content.locator("#prompt").count() == 0
    frame.evaluate("(frame) => frame.remove()")


def test_a_name_that_is_rebound_to_this_machine_is_refused(page: Page, server: Server) -> None:
    """The browser takes the server for a part of the page's own site: no origin is foreign any more."""
    browser = page.context.browser
    assert browser is not None
    rebound = browser.new_page(bypass_csp=True)  # the policy of an attacker's page would be the attacker's
    url = server.url.replace("127.0.0.1", EVIL)
    answer = rebound.goto(f"{url}/health")  # open to all; from here on the page is of the rebound site
    assert answer is not None and answer.status == 200
    made, _, host = counted(server)
    assert rebound.evaluate(READ, f"{url}/v1/models") == 421
    assert edit(rebound, url, "cors") == 421
    now_made, _, now_refused = counted(server)
    assert now_made == made and now_refused >= host + 2  # it asks a second time for what was answered by 421
    rebound.close()
