"""Runs the app under uvicorn: its socket, signals, a stop that lets edits end, and the end of a dead engine."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import uvicorn

from editar_rt.editor import Editor
from editar_rt.errors import EditarError, EditarWarning, OptionError
from editar_rt.server.app import Options, application
from editar_rt.server.deadline import connections, protocol
from editar_rt.server.engine import Engine
from editar_rt.server.limits import CONNECTIONS, HEADER_BYTES, KEEP_ALIVE_SECONDS, Limits
from editar_rt.server.warned import show_or_collect

FLUSH_SECONDS = 1  # for last answers, once nothing runs
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Address:
    """Where to listen."""

    host: str = "127.0.0.1"
    port: int = 8765
    """0 takes a free one."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(address: Address) -> socket.socket:
    """
    Raises:
        OptionError: there is no such address here, or it is in use.
    """
    host, port = address.host, address.port
    try:
        family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(found[:2], family=family, backlog=CONNECTIONS)
    except (OSError, UnicodeError) as error:  # the latter for names that no domain may have
        why = error.strerror if isinstance(error, OSError) else "no valid name"
        raise OptionError(
            f"cannot listen on {host!r:.80}, port {port}: {why}; choose another with --host and --port"
        ) from None


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextlib.contextmanager
def listening_to_warnings() -> Iterator[None]:
    """While the block runs, an edit's warnings go into its answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", EditarWarning)
        warnings.showwarning = show_or_collect(warnings.showwarning)
        yield


@dataclass
class _Ends:
    """What ends the server."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    death: asyncio.Event = field(default_factory=asyncio.Event)

    def any(self) -> bool:
        return self.stop.is_set() or self.death.is_set()

    async def wait(self, serving: asyncio.Task[None]) -> None:
        """Wait for one of them, or for the server's own end."""
        events = [asyncio.create_task(event.wait()) for event in (self.stop, self.death)]
        await asyncio.wait([*events, serving], return_when=asyncio.FIRST_COMPLETED)
        for event in events:
            event.cancel()


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers, which would close the socket before edits have ended."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    editor: Editor,
    listening: socket.socket,
    limits: Limits,
    options: Options,
    on_ready: Callable[[str], None] = lambda url: None,
) -> int:
    """Serve until a signal, or until the engine dies.

    Args:
        on_ready: called with the server's address once it takes requests.

    Returns:
        the exit code: 0 after a signal, 1 if the engine died.

    Raises:
        EditarError: the bundle does not run here.
    """
    engine = Engine(editor, limits, check=options.check)
    with listening_to_warnings():
        code = asyncio.run(_serve(engine, listening, limits, options, on_ready))
    if engine.error is not None and not engine.warm.is_set() and isinstance(engine.error, EditarError):
        raise engine.error
    if not engine.close(0):  # its thread hangs in the engine, and would hold up the interpreter's end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 1)
    return code


async def _serve(
    engine: Engine, listening: socket.socket, limits: Limits, options: Options, on_ready: Callable[[str], None]
) -> int:
    loop, ends = asyncio.get_running_loop(), _Ends()

    def on_death(error: BaseException) -> None:
        loop.call_soon_threadsafe(ends.death.set)

    engine.on_death = on_death
    most = connections()
    config = uvicorn.Config(
        application(engine, options),
        http=protocol(limits, most),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=most,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=FLUSH_SECONDS,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    server = _Uvicorn(config)
    with _signals(loop, ends.stop.set):
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            while not (engine.warm.is_set() or ends.any() or serving.done()):
                await asyncio.sleep(POLL_SECONDS)
            if engine.warm.is_set() and not ends.any():
                on_ready(url_of(listening))
            await ends.wait(serving)
            if not ends.death.is_set():
                await _drain(engine, ends, limits.grace)
        finally:
            server.should_exit = True
            await serving
    return 1 if ends.death.is_set() else 0


async def _drain(engine: Engine, ends: _Ends, grace: float) -> None:
    """Take no new edits, and let the others end within the grace; then stop them."""
    engine.stop()
    until = time.monotonic() + grace
    while engine.busy and time.monotonic() < until and not ends.death.is_set():
        await asyncio.sleep(POLL_SECONDS)
    engine.abort()


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    """The first signal stops the server, a second one ends it at once."""
    handled = [getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name)]

    def receive(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        loop.call_soon_threadsafe(stop)

    before = {number: signal.signal(number, receive) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
