"""Who may reach the server: the host, the origin and the key of a request, each by tables."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2 as httpx
import pytest
from starlette.responses import PlainTextResponse

from editar_rt.server.guard import Access, Guard
from editar_rt.server.metrics import Metrics

OWN = "http://127.0.0.1:8765"


def ask(access: Access, path: str = "/v1/models", method: str = "GET", **headers: str) -> httpx.Response:
    """What a server answers to a request with these headers; 200 if the guard lets it pass."""
    guard = Guard(PlainTextResponse("passed"), access, Metrics(), max_body=1000)

    async def sent() -> httpx.Response:
        transport: Any = httpx.ASGITransport(app=guard)
        async with httpx.AsyncClient(transport=transport, base_url=OWN) as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(sent())


def access(*hosts: str, origins: tuple[str, ...] = (), key: str | None = None) -> Access:
    return Access.of(hosts, origins, key)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8765", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("[::1]:8765", True),
        ("box.example:8765", True),  # by --allow-host
        ("evil.example", False),  # DNS rebinding
        ("evil.example:8765", False),
        ("127.0.0.1.evil.example", False),
        ("localhost@evil.example", False),
        ("192.168.0.7:8765", False),
        ("", False),
    ],
)
def test_a_host_must_be_a_name_of_the_server(host: str, allowed: bool) -> None:
    assert ask(access("box.example"), host=host).status_code == (200 if allowed else 421)


def test_any_host_may_be_allowed_and_balancers_need_none() -> None:
    assert ask(access("*"), host="evil.example").status_code == 200
    for path in ("/health", "/ready"):
        assert ask(access(key="k"), path, host="10.0.0.7").status_code == 200


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),  # not a browser
        (OWN, True),
        ("https://127.0.0.1:8765", True),  # behind a proxy with TLS
        ("https://studio.example", True),  # by --allow-origin
        ("https://evil.example", False),
        ("http://127.0.0.1:3000", False),  # another server on this machine
        ("http://127.0.0.1:8765.evil.example", False),
        ("null", False),  # a file, or a frame in a sandbox
        ("", False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_origin_must_be_the_servers_own_or_allowed(origin: str | None, allowed: bool, method: str) -> None:
    headers = {} if origin is None else {"origin": origin}
    answer = ask(access(origins=("https://studio.example",)), method=method, **headers)
    assert answer.status_code == (200 if allowed else 403)


@pytest.mark.parametrize(
    ("authorization", "known"),
    [
        ("Bearer secret", True),
        ("bearer secret", True),
        ("Bearer  secret ", True),
        (None, False),
        ("Bearer ", False),
        ("Bearer secre", False),
        ("Bearer secrets", False),
        ("Bearer SECRET", False),
        ("Basic secret", False),
        ("secret", False),
    ],
)
def test_a_key_must_be_the_servers(authorization: str | None, known: bool) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    answer = ask(access(key="secret"), **headers)
    assert answer.status_code == (200 if known else 401)
    if not known:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["type"] == "authentication_error"
        assert "secret" not in answer.text


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/openapi.json", "/health", "/ready"])
def test_what_is_said_to_everybody_needs_no_key(path: str) -> None:
    assert ask(access(key="secret"), path).status_code == 200


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/models", "/metrics", "/v1/editar/cancel/a", "/pages"])
def test_everything_else_needs_the_key(path: str) -> None:
    assert ask(access(key="secret"), path).status_code == 401


def test_an_allowed_origin_gets_cors_headers_without_credentials() -> None:
    studio = "https://studio.example"
    allowed = access(origins=(studio,), key="secret")
    preflight = ask(
        allowed,
        "/v1/images/edits",
        "OPTIONS",
        origin=studio,
        **{"access-control-request-method": "POST", "access-control-request-headers": "authorization, x-stainless-os"},
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == studio
    assert preflight.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    assert "access-control-allow-credentials" not in preflight.headers
    assert ask(allowed, origin=studio).headers["access-control-allow-origin"] == studio  # a 401 can be read
    assert ask(allowed, "/v1/models", "OPTIONS", origin="https://evil.example").status_code == 403


def test_nobody_else_gets_cors_headers() -> None:
    for answer in (ask(access(), origin=OWN), ask(access(), origin="https://evil.example"), ask(access())):
        assert not [name for name in answer.headers if name.startswith("access-control")]
