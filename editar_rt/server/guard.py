"""Stands before the routes: who may ask, how much may be sent, and what every answer says to browsers.

A web page elsewhere must not reach a server on this machine. `Host` must be a name of the server, so a foreign name
that resolves to this address (DNS rebinding) is refused; `Origin`, which browsers send with every post, must be the
server's own or an allowed one.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import json
import logging
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from editar_rt.errors import OptionError
from editar_rt.server.errors import ApiError, from_error
from editar_rt.server.limits import DRAINED_FACTOR
from editar_rt.server.metrics import Metrics

log = logging.getLogger("editar_rt.server")

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
OPEN = ("/health", "/ready")  # for balancers: any Host, no key; they say nothing about anybody
PUBLIC = ("/", "/openapi.json", "/favicon.ico")  # no key: a browser cannot send one for a page
EDITS = "/v1/images/edits"
ENDPOINTS = (*OPEN, *PUBLIC, EDITS, "/v1/images/generations", "/v1/models", "/metrics")
PREFIXES = ("/page/", "/v1/models/", "/v1/editar/cancel/")
CLIENT_LEFT = 499
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """Who may reach the server."""

    hosts: frozenset[str] = field(default_factory=lambda: frozenset(LOOPBACK))
    """Names in `Host`, lower case, without a port; `*` allows any."""
    origins: frozenset[str] = frozenset()
    """Web origins beside the server's own; they get CORS headers."""
    key: str | None = None
    """Required as a bearer token, unless None."""

    @classmethod
    def of(cls, hosts: Iterable[str], origins: Iterable[str], key: str | None) -> Access:
        """
        Raises:
            OptionError: a host, an origin or the key is one that no request could have.
        """
        if key is not None and not re.fullmatch(r"[!-~]{1,4096}", key):
            raise OptionError("the key must be 1 to 4096 printable ASCII characters without spaces, on one line")
        return cls(frozenset({*LOOPBACK, *map(_host, hosts)}), frozenset(map(_origin, origins)), key)


def _host(name: str) -> str:
    """A host as `Host` names it: lower case, IPv6 in brackets."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(name.strip("[]"))
        return f"[{address}]" if address.version == 6 else str(address)
    if name == "*" or re.fullmatch(r"[a-z0-9_.-]{1,253}", name.lower()):
        return name.lower()
    raise OptionError(
        f"a host to allow is a name or an address such as studio.example, without a port, got {name!r:.80}"
    )


def _origin(origin: str) -> str:
    """An origin as browsers send it."""
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s*]+/?", origin.lower()):
        raise OptionError(
            f"an origin to allow is a scheme and a host such as https://studio.example, got {origin!r:.80}"
        )
    return origin.lower().rstrip("/")


class Guard:
    """ASGI middleware; the outermost."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics, max_body: int) -> None:
        self.app, self.access, self.metrics, self.max_body = app, access, metrics, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = _headers(scope)
        given = headers.get("x-request-id", "")
        scope["state"] = {**scope.get("state", {}), "id": given if ID.fullmatch(given) else secrets.token_hex(12)}
        body = _Body(receive, self.max_body, headers)
        answer = _Answer(send, self._added(scope, headers), body)
        started = time.monotonic()
        try:
            self._check(scope, headers)
            if scope["method"] == "OPTIONS" and "origin" in headers:
                await answer.send_plain(204)
            else:
                await self.app(scope, body.receive, answer.send)
        except ClientDisconnect:
            pass
        except ApiError as error:
            await answer.send_error(error)
        except Exception as error:
            if answer.status is not None:  # the connection is closed in the middle of the answer
                raise
            log.exception("id=%s", scope["state"]["id"])
            await answer.send_error(from_error(error))
        finally:
            self._note(scope, answer.status or CLIENT_LEFT, time.monotonic() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        endpoint = _endpoint(scope["path"])
        self.metrics.answered(endpoint, status)
        if endpoint == EDITS:
            self.metrics.request_seconds.observe(seconds)
        if endpoint not in (*OPEN, "/metrics"):
            log.info("%s %s %s %.3f s id=%s", status, scope["method"], endpoint, seconds, scope["state"]["id"])

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        """
        Raises:
            ApiError: the request may not pass.
        """
        path, access = scope["path"], self.access
        if "content-length" in headers and "transfer-encoding" in headers:
            raise ApiError(
                400,
                "a request has a content-length or a transfer-encoding, not both: a proxy may have read another one",
                "ambiguous_length",
                headers={"connection": "close"},
            )
        if path in OPEN:
            return
        host = re.sub(r":\d{1,5}$", "", headers.get("host", "").lower())
        if host not in access.hosts and "*" not in access.hosts:
            self.metrics.rejected("host")
            raise ApiError(
                421,
                f"this server does not answer to the host {host!r:.80}; to allow it, start it with --allow-host",
                "host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, headers) and origin not in access.origins:
            self.metrics.rejected("origin")
            raise ApiError(
                403,
                f"requests of web pages from {origin!r:.80} are refused; to allow them, start the server with "
                "--allow-origin",
                "origin_not_allowed",
            )
        open_to_all = path in PUBLIC or path.startswith("/page/") or scope["method"] == "OPTIONS"
        if access.key is not None and not open_to_all:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            known = hmac.compare_digest(key.strip().encode("utf-8", "replace"), access.key.encode())
            if scheme.lower() != "bearer" or not known:
                self.metrics.rejected("key")
                raise ApiError(
                    401,
                    "a key is needed: send it as Authorization: Bearer KEY",
                    "invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )
        length = headers.get("content-length", "")
        if _is_more(length, self.max_body):
            self.metrics.rejected("body")
            raise too_large(self.max_body)

    @staticmethod
    def _is_own(origin: str, headers: dict[str, str]) -> bool:
        scheme, _, host = origin.lower().partition("://")
        return scheme in ("http", "https") and host == headers.get("host", "").lower() != ""

    def _added(self, scope: Scope, headers: dict[str, str]) -> dict[str, str]:
        added = {**HEADERS, "x-request-id": scope["state"]["id"]}
        origin = headers.get("origin")
        if self.access.origins:
            added["vary"] = "Origin"
        if origin in self.access.origins:
            wanted = headers.get("access-control-request-headers", "")
            added |= {
                "access-control-allow-origin": origin,
                "access-control-allow-methods": "GET, POST",
                "access-control-allow-headers": wanted if re.fullmatch(r"[\w ,-]{1,1000}", wanted) else "authorization",
                "access-control-expose-headers": "x-request-id, retry-after",
                "access-control-max-age": "600",
                "cross-origin-resource-policy": "cross-origin",
            }
        return added


class _Body:
    """A request's body, counted."""

    def __init__(self, receive: Receive, most: int, headers: dict[str, str]) -> None:
        self._receive, self._most = receive, most
        self._bytes = 0
        # Not read are no body, one that waits for a "continue", and one that would be cut off all the same.
        length = headers.get("content-length", "0")
        self._ended = length == "0" and "transfer-encoding" not in headers
        self._ended |= "expect" in headers or _is_more(length, DRAINED_FACTOR * most)

    async def receive(self) -> Message:
        """
        Raises:
            ApiError: there was more than allowed.
        """
        message = await self._next()
        if self._bytes > self._most:
            raise too_large(self._most)
        return message

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._ended = not message.get("more_body", False)
        else:
            self._ended = True
        return message

    async def drain(self) -> None:
        """Read what is left of a refused body: a client that still sends would not see its answer otherwise."""
        while not self._ended and self._bytes <= DRAINED_FACTOR * self._most:
            await self._next()


class _Answer:
    """An answer with added headers, whose status is noted."""

    def __init__(self, send: Send, added: dict[str, str], body: _Body) -> None:
        self._send, self._added, self._body = send, added, body
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                await self._body.drain()
            self.status = message["status"]
            own = [(name.lower(), value) for name, value in message.get("headers", [])]
            names = {name for name, _ in own}
            more = [(name.encode(), value.encode()) for name, value in self._added.items()]
            message = {**message, "headers": own + [pair for pair in more if pair[0] not in names]}
        await self._send(message)

    async def send_plain(self, status: int, content: bytes = b"", headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        length = [] if status == 204 else [(b"content-length", str(len(content)).encode())]
        await self.send({"type": "http.response.start", "status": status, "headers": [*headers, *length]})
        await self.send({"type": "http.response.body", "body": content})

    async def send_error(self, error: ApiError) -> None:
        if self.status is None:
            own = [(name.encode(), value.encode()) for name, value in error.headers.items()]
            content = json.dumps(error.body, ensure_ascii=False).encode()
            await self.send_plain(error.status, content, [(b"content-type", b"application/json"), *own])


def _is_more(length: str, most: int) -> bool:
    return length.isdecimal() and (len(length) > 18 or int(length) > most)


def too_large(most: int) -> ApiError:
    return ApiError(413, f"the request is too large: at most {most} bytes are read", "body_too_large")


def _headers(scope: Scope) -> dict[str, str]:
    """By name; values of the same name are joined, as HTTP has it, so that none hides behind another."""
    found: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
        found[name] = f"{found[name]}, {text}" if name in found else text
    return found


def _endpoint(path: str) -> str:
    """The path for metrics and logs: one of a few, never the client's."""
    if path in ENDPOINTS:
        return path
    return next((prefix for prefix in PREFIXES if path.startswith(prefix)), "other")
