"""uvicorn's protocol with deadlines: clients that send or read too slowly are closed.

uvicorn itself waits for ever for the rest of a request, and for a reader. Here a whole request must arrive within
`receive_timeout` of its first byte (of the connection, for the first request), and what waits for a reader must be
taken within `send_timeout`.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from editar_rt.server.limits import CONNECTIONS, FILES_ELSEWHERE, Limits

FILES_OF_CONNECTION = 5  # its socket, a spooled upload, and sockets of others that are being accepted or closed


def connections() -> int:
    """How many connections may be open: CONNECTIONS, or as many as the process may have open files for.

    The process's own limit is raised to that end, as far as it may. Without room, asyncio would log each attempt to
    accept a connection, thousands in a second.
    """
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_OF_CONNECTION * CONNECTIONS + FILES_ELSEWHERE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return CONNECTIONS
    return max((soft - FILES_ELSEWHERE) // FILES_OF_CONNECTION, 1)


def protocol(limits: Limits, most: int = CONNECTIONS) -> type[asyncio.Protocol]:
    """The class of a server's connections, of which `most` are open at once."""
    receiving: dict[_Deadlines, None] = {}  # those whose request is not complete, the oldest first

    class Deadlines(_Deadlines):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(limits, most, receiving, *args, **kwargs)

    return Deadlines


class _Deadlines(H11Protocol):
    def __init__(self, limits: Limits, most: int, receiving: dict[_Deadlines, None], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits, self._most, self._receiving = limits, most, receiving
        self._receive_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    # Receiving.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio sets this only on sockets that were made with TCP's number; without it every answer waits 40 ms.
        own = transport.get_extra_info("socket")
        if own is not None and own.family in (socket.AF_INET, socket.AF_INET6):
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self._most:  # the slowest sender makes room
            slowest = next(iter(self._receiving), self)
            self._receiving.pop(slowest, None)  # it is lost a little later; the next one is to close another
            slowest.transport.abort()
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        self._stop_send_timer()  # who asks again has read
        if self._receive_timer is None and self.conn.their_state is h11.IDLE:
            self._expect_request()
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop_receive_timer()

    def _expect_request(self) -> None:
        self._receiving[self] = None
        self._receive_timer = self.loop.call_later(self._limits.receive_timeout, self.transport.abort)

    def _stop_receive_timer(self) -> None:
        self._receiving.pop(self, None)
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    # Sending.

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_send_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_send_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._start_send_timer()  # for what is too little to pause writing
        if self._receive_timer is None and self.conn.their_state is h11.SEND_BODY:
            self._expect_request()  # the next request was sent behind this one, and has begun

    def _start_send_timer(self) -> None:
        self._stop_send_timer()
        self._send_timer = self.loop.call_later(self._limits.send_timeout, self._abort_unread)

    def _abort_unread(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_receive_timer()
        self._stop_send_timer()
