"""Who may reach the server: the host, the origin and the key of a request, each by tables."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2 as httpx
import pytest
from starlette.responses import PlainTextResponse

from editar_rt.errors import OptionError
from editar_rt.server import key_of_environment
from editar_rt.server.guard import Access, Guard, _headers
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


@pytest.mark.parametrize(
    ("allowed", "host"),
    [("Box.Example", "box.example:1"), ("2001:db8::1", "[2001:db8::1]:8765"), ("[2001:DB8::1]", "[2001:db8::1]")],
)
def test_a_host_is_allowed_as_requests_name_it(allowed: str, host: str) -> None:
    assert ask(access(allowed), host=host).status_code == 200


@pytest.mark.parametrize("host", ["https://box.example", "box.example:8765", "box.example/", "bóx.example", "", "a b"])
def test_a_host_that_no_request_could_name_is_refused(host: str) -> None:
    with pytest.raises(OptionError, match="a host to allow"):
        access(host)


@pytest.mark.parametrize("origin", ["studio.example", "https://", "*", "null", "https://*.example", "https://a.b/c"])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(OptionError, match="an origin to allow"):
        access(origins=(origin,))


@pytest.mark.parametrize("key", ["", " ", "two words", "two\nlines", "schlüssel", "a" * 4097])
def test_a_key_that_no_client_could_send_is_refused(key: str) -> None:
    with pytest.raises(OptionError, match="printable ASCII"):
        access(key=key)


@pytest.mark.parametrize(("given", "key"), [("k\n", "k"), ("", None), (" \n", None), (None, None)])
def test_an_empty_variable_is_no_key(monkeypatch: pytest.MonkeyPatch, given: str | None, key: str | None) -> None:
    monkeypatch.delenv("EDITAR_API_KEY", raising=False)
    if given is not None:
        monkeypatch.setenv("EDITAR_API_KEY", given)
    assert key_of_environment() == key


def test_no_origin_hides_behind_another() -> None:
    scope: Any = {"headers": [(b"origin", b"https://evil.example"), (b"Origin", OWN.encode())]}
    assert _headers(scope) == {"origin": f"https://evil.example, {OWN}"}


def test_a_request_whose_length_is_ambiguous_is_refused() -> None:
    answer = ask(access(), "/health", "POST", **{"content-length": "0", "transfer-encoding": "chunked"})
    assert answer.status_code == 400 and answer.headers["connection"] == "close"


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
        ("https://studio.example", True),  # by --allow-origin, which had a capital and a slash
        ("https://evil.example", False),
        ("http://127.0.0.1:3000", False),  # another server on this machine
        ("http://127.0.0.1:8765.evil.example", False),
        ("app://127.0.0.1:8765", False),
        ("null", False),  # a file, or a frame in a sandbox
        ("", False),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_origin_must_be_the_servers_own_or_allowed(origin: str | None, allowed: bool, method: str) -> None:
    headers = {} if origin is None else {"origin": origin}
    answer = ask(access(origins=("https://Studio.example/",)), method=method, **headers)
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
