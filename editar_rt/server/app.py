"""The ASGI application: the routes of OpenAI's images API over one engine.

It runs under any ASGI server: `run` starts it under uvicorn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from editar_rt.server import answers
from editar_rt.server.engine import Engine, Work
from editar_rt.server.errors import ApiError, bad, no_space
from editar_rt.server.forms import FILE_FIELDS, Asked, check_model, file_name, read_form
from editar_rt.server.guard import Access, Guard
from editar_rt.server.limits import COMMENT_SECONDS, FIELD_BYTES, FILES, FORM_FIELDS
from editar_rt.server.outbox import Finished, Outbox, Partial
from editar_rt.version import __version__

log = logging.getLogger("editar_rt.server")
T = TypeVar("T")

HERE = Path(__file__).parent
PAGE = HERE / "page"
COMPRESSED = [Middleware(GZipMiddleware)]
DESCRIPTION = HERE / "openapi.json"
NO_STORE = {"cache-control": "no-store"}
ASK_AGAIN = {"cache-control": "no-cache"}  # a browser would mix the modules of two versions
UTF_8 = (b"utf-8", b"utf8", b"us-ascii")
STREAM = {**NO_STORE, "x-accel-buffering": "no"}  # nginx would wait for the end of a stream


@dataclass(frozen=True)
class Options:
    """What the operator chooses beside limits."""

    access: Access = field(default_factory=Access)
    page: bool = True
    log_prompts: bool = False
    check: bool = True
    """Compare at the start what the decoder computes for a row alone and among others."""


class Peers(Protocol):
    """The servers behind one address, of which each request reaches one."""

    async def cancel(self, name: str) -> bool:
        """Cancel an edit wherever it runs. Returns whether it was found."""

    async def metrics(self) -> bytes:
        """The text of `/metrics` for all of them."""


def application(engine: Engine, options: Options | None = None, peers: Peers | None = None) -> Starlette:
    """The app of an engine. Its lifespan starts the engine, and closes it."""
    server = _Server(engine, options or Options(), peers)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.close)

    guard = Middleware(Guard, access=server.options.access, metrics=engine.metrics, max_body=engine.limits.max_body)
    handlers: Any = {ApiError: _api_error, HTTPException: _http_error}
    editor = engine.editor
    engine.metrics.describe(__version__, editor.bundle.fingerprint, editor.backend.name)
    return Starlette(routes=server.routes(), middleware=[guard], exception_handlers=handlers, lifespan=lifespan)


class _Server:
    """The routes."""

    def __init__(self, engine: Engine, options: Options, peers: Peers | None) -> None:
        self.engine, self.options, self.peers = engine, options, peers
        self._decoders = ThreadPoolExecutor(1, "editar decode")  # one at a time: a picture takes much memory
        self._encoders = ThreadPoolExecutor(2, "editar encode")
        self._restorers = ThreadPoolExecutor(2, "editar restore")  # whole pictures, which others do not wait for
        self._described = answers.model_of(engine.editor, engine.limits)

    def routes(self) -> list[BaseRoute]:
        routes: list[BaseRoute] = [
            Route("/v1/images/edits", self.edit, methods=["POST"]),
            Route("/v1/images/generations", self.generate, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{model}", self.model),
            Route("/v1/editar/cancel/{id}", self.cancel, methods=["POST"]),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.description),
        ]
        if self.options.page and PAGE.is_dir():
            routes += [
                Route("/", self.page, middleware=COMPRESSED),
                Mount("/page", _PageFiles(directory=PAGE), middleware=COMPRESSED),
            ]
        return routes

    # Edits.

    async def edit(self, request: Request) -> Response:
        asked = await self._asked(request)
        self._log_prompt(request, asked)
        outbox = Outbox()
        work = Work(
            request.state.id,
            replace(asked.picture, original=None),
            asked.request,
            asked.seeds,
            outbox,
            kept=asked.kept,
            partial_images=asked.partial_images,
        )
        self.engine.submit(work)
        if asked.stream:
            return _Stream(self, asked, work, outbox)
        try:
            results = await _unless_left(outbox.results(len(asked.seeds)), request.receive)
            if results is None:
                raise ClientDisconnect
            made = [(each.result, each.warned) for each in results]
            content = await self.encoded(asked, partial(answers.answer, asked, made, self.engine.editor))
        finally:
            self.engine.let_go(work)
        return Response(content, media_type="application/json", headers=NO_STORE)

    async def _asked(self, request: Request) -> Asked:
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        if kind != b"multipart/form-data":
            raise bad(
                "send the edit as multipart/form-data, with the picture in the field image, got "
                f"{kind.decode('latin-1')!r:.60}; JSON with an image_url is refused: this server fetches nothing",
                code="unsupported_body",
            )
        if options.get(b"charset", b"utf-8").lower() not in UTF_8:  # any codec of Python's would do the rest's work
            raise bad("the form must be in UTF-8; leave the charset out of its content-type", code="unsupported_body")
        async with _form(request) as form:
            self.engine.check_room(1)
            plain: list[tuple[str, str]] = []
            files: dict[str, list[BinaryIO]] = {}
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    files.setdefault(file_name(name), []).append(value.file)
                else:
                    plain.append((name, value))
            if lost := [name for name, _ in plain if file_name(name) in FILE_FIELDS]:
                raise bad(
                    f"{lost[0]} must be a file, with a filename in its part of the form; URLs and text are not read",
                    file_name(lost[0]),
                )
            engine = self.engine
            read = partial(read_form, plain, files, engine.editor, engine.limits)
            asked = await asyncio.get_running_loop().run_in_executor(self._decoders, read)
        engine.check(asked.request)
        unread = [*request.query_params][:FORM_FIELDS]
        asked.warnings += [f"the parameter {name!r:.60} of the URL is not read, and was ignored" for name in unread]
        return asked

    def _log_prompt(self, request: Request, asked: Asked) -> None:
        if self.options.log_prompts:
            log.info("id=%s prompt=%r", request.state.id, asked.request.instruction)

    async def encoded(self, asked: Asked, make: Callable[[], bytes]) -> bytes:
        """What is made of a request's results, in a thread."""
        threads = self._restorers if asked.restores else self._encoders
        return await asyncio.get_running_loop().run_in_executor(threads, make)

    async def generate(self, request: Request) -> Response:
        raise bad(
            "this model edits pictures: send one with an instruction to /v1/images/edits; with task=depth, canny or "
            "segmentation it makes a picture from a condition picture",
            code="unsupported_endpoint",
        )

    async def cancel(self, request: Request) -> Response:
        name = request.path_params["id"]
        found = self.engine.cancel(name)
        if not found and self.peers is not None:
            found = await self.peers.cancel(name)
        if not found:
            raise ApiError(404, f"no edit with the id {name!r:.80} waits or runs", "not_found")
        return JSONResponse({"id": name, "object": "editar.cancel", "cancelled": True})

    # What the server is.

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described]})

    async def model(self, request: Request) -> Response:
        check_model(request.path_params["model"], self.engine.editor)
        return JSONResponse(self._described)

    async def health(self, request: Request) -> Response:
        alive = self.engine.alive
        return JSONResponse({"status": "ok" if alive else "engine_failed"}, 200 if alive else 503, NO_STORE)

    async def ready(self, request: Request) -> Response:
        engine = self.engine
        if engine.ready:
            return JSONResponse({"status": "ready"}, headers=NO_STORE)
        status = "stopping" if engine.stopping else "starting" if engine.alive else "engine_failed"
        return JSONResponse({"status": status}, 503, NO_STORE)

    async def metrics(self, request: Request) -> Response:
        page = self.engine.metrics.page() if self.peers is None else await self.peers.metrics()
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def description(self, request: Request) -> Response:
        return FileResponse(DESCRIPTION, media_type="application/json")

    async def page(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers=ASK_AGAIN)


class _PageFiles(StaticFiles):
    """The page's files; browsers ask each time whether they have changed."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(ASK_AGAIN)
        return response


class _Stream(Response):
    """Server-sent events of one edit, as they come."""

    def __init__(self, server: _Server, asked: Asked, work: Work, outbox: Outbox) -> None:
        super().__init__(media_type="text/event-stream", headers=STREAM)
        del self.headers["content-length"]
        self._server, self._asked, self._work, self._outbox = server, asked, work, outbox

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await _unless_left(self._write(send), receive)
        finally:
            self._server.engine.let_go(self._work)

    async def _write(self, send: Send) -> bool:
        async for content in self._events():
            await send({"type": "http.response.body", "body": content, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return True

    async def _events(self) -> AsyncIterator[bytes]:
        asked, editor, encoded = self._asked, self._server.engine.editor, partial(self._server.encoded, self._asked)
        left = len(asked.seeds)
        while left:
            item = await self._outbox.take_within(COMMENT_SECONDS)
            if item is None:
                yield b": still here\n\n"
            elif isinstance(item, Partial):
                variant, picture, index, row = item
                yield await encoded(partial(answers.partial_event, asked, variant, picture, index, row, editor))
            elif isinstance(item, Finished):
                left -= 1
                variant, result, warned = item
                yield await encoded(partial(answers.completed_event, asked, variant, result, warned, editor))
            else:
                yield answers.error_event(item)
                return


@contextlib.asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """A request's form, within its limits.

    Raises:
        ApiError: its files cannot be spooled.
        HTTPException: it is none.
    """
    try:
        form = await request.form(max_files=FILES, max_fields=FORM_FIELDS, max_part_size=FIELD_BYTES)
    except OSError as error:
        log.error("an upload cannot be spooled: %s", error)
        raise no_space() from None
    try:
        yield form
    finally:
        await form.close()


async def _unless_left(work: Awaitable[T], receive: Receive) -> T | None:
    """The work's result; None if the client disconnects before."""
    watching, working = asyncio.ensure_future(_left(receive)), asyncio.ensure_future(work)
    try:
        await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (watching, working):
            task.cancel()
        await asyncio.gather(watching, working, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# Errors.


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own errors: no such route or method, a form that is not one."""
    assert isinstance(error, HTTPException)
    words = {404: "there is no such path; /openapi.json lists them", 405: "the path does not take this method"}
    shown = ApiError(error.status_code, words.get(error.status_code, str(error.detail)), "invalid_request")
    return JSONResponse(shown.body, error.status_code, error.headers)
