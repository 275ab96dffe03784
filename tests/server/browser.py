"""The page in Chromium over a real server: how a mouse, fingers and keys do things, and a server that can be held."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import uvicorn
from PIL import Image

import editar_rt
from editar_rt.batch import Batch
from editar_rt.server.app import Options, application
from editar_rt.server.engine import Engine, Work
from editar_rt.server.guard import Access
from editar_rt.server.limits import Limits
from tests.runtime.demo import BUNDLE, GRID

EVERY_ROW = 1000.0  # a preview share that no row is left out for
MARGIN = 24  # CSS pixels around a fitted picture, as stage.js has it
SECONDS = 30.0


class Server:
    """The app over the demo bundle in threads of this process. `hold` stops its edits at a row."""

    def __init__(self, key: str | None = None) -> None:
        self.editor = editar_rt.load(BUNDLE, device="cpu")
        self.engine = Engine(self.editor, Limits(preview_share=EVERY_ROW))
        self.works: list[Work] = []
        """What was asked for."""
        self._row: int | None = None
        self._open = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/"
        app = application(self.engine, Options(access=Access.of([], [], key)))
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listening]}, daemon=True)

    def __enter__(self) -> Server:
        self._step = Batch.step
        held = self

        def step(batch: Batch) -> Any:
            if held._row is not None and any(member.job.done >= held._row * GRID for member in batch.members):
                held._open.wait(SECONDS)
            return held._step(batch)

        def submit(work: Work) -> None:
            self.works.append(work)
            take(work)

        take, self.engine.submit = self.engine.submit, submit  # type: ignore[method-assign]
        Batch.step = step  # type: ignore[method-assign]
        self._thread.start()
        assert self.engine.warm.wait(SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        Batch.step = self._step  # type: ignore[method-assign]
        self.release()
        self._server.should_exit = True
        self._thread.join(SECONDS)

    def hold(self, row: int) -> None:
        """Let no edit go on after a row."""
        self._open.clear()
        self._row = row

    def release(self) -> None:
        self._row = None
        self._open.set()

    def wait_until_idle(self) -> None:
        until = time.monotonic() + SECONDS
        while self.engine.busy:
            assert time.monotonic() < until, "an edit still runs"
            time.sleep(0.01)


def place(page: Any, x: float, y: float, ratio: float = 1) -> tuple[float, float]:
    """CSS pixels of a point of the fitted picture, which is given in shares of its width and height.

    Args:
        ratio: of the picture's width to its height.
    """
    box = page.locator("#canvas").bounding_box()
    width = min(box["width"] - 2 * MARGIN, (box["height"] - 2 * MARGIN) * ratio)
    left, top = box["x"] + (box["width"] - width) / 2, box["y"] + (box["height"] - width / ratio) / 2
    return left + x * width, top + y * width / ratio


def middle(locator: Any) -> tuple[float, float]:
    """CSS pixels of the middle of a thing, which is scrolled into sight."""
    locator.scroll_into_view_if_needed()
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


class Mouse:
    """Clicks, drags, and the wheel."""

    context: ClassVar[dict[str, Any]] = {"viewport": {"width": 1200, "height": 800}}

    def __init__(self, page: Any) -> None:
        self.page = page

    def press(self, name: str) -> None:
        self.page.locator(name).click()

    def paint(self, start: tuple[float, float], end: tuple[float, float], ratio: float = 1) -> None:
        self._drag(place(self.page, *start, ratio), place(self.page, *end, ratio))

    def _drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*end, steps=6)
        self.page.mouse.up()
        self.page.mouse.move(2, 2)  # away: the brush's outline would stay in sight

    def move_line(self, row: int, fit: str = "crop", ratio: float = 1) -> None:
        """Drag the row line above a row, of a picture of a ratio."""
        x, _ = middle(self.page.locator("#row"))
        share = row / GRID if fit == "crop" else (row / GRID - 0.5) * ratio + 0.5
        self._drag(middle(self.page.locator("#row")), (x, place(self.page, 0, share, ratio)[1]))

    def choose_whole_picture(self) -> None:
        self.press("[name=fit][value=pad]")

    def move_frame(self, ratio: float) -> None:
        """Drag the square that the model sees to the left end of a wide picture."""
        self._drag(place(self.page, 0.98, 0.5, ratio), place(self.page, 0.48, 0.5, ratio))

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        self.page.mouse.move(*middle(self.page.locator(name)))
        self.page.mouse.down()
        yield
        self.page.mouse.up()

    def zoom_in(self) -> None:
        self.page.mouse.move(*place(self.page, 0.5, 0.5))
        self.page.mouse.wheel(0, -240)

    def pan(self) -> None:
        self.page.mouse.move(*place(self.page, 0.5, 0.5))
        self.page.mouse.wheel(30, 20)  # a touchpad's two fingers


class Touch(Mouse):
    """Fingers on a narrow phone."""

    context: ClassVar[dict[str, Any]] = {
        "viewport": {"width": 390, "height": 844},
        "has_touch": True,
        "is_mobile": True,
    }

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self._devtools = page.context.new_cdp_session(page)

    def _touch(self, kind: str, *points: tuple[float, float]) -> None:
        fingers = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        self._devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})

    def _fingers(self, starts: list[tuple[float, float]], ends: list[tuple[float, float]]) -> None:
        for count in range(len(starts)):
            self._touch("touchStart", *starts[: count + 1])
        for share in (0.25, 0.5, 0.75, 1.0):
            moved = [(a + share * (c - a), b + share * (d - b)) for (a, b), (c, d) in zip(starts, ends)]
            self._touch("touchMove", *moved)
        self._touch("touchEnd")
        self.page.wait_for_timeout(
            50
        )  # the browser holds touches back until it knows that they are no gesture of its own

    def press(self, name: str) -> None:
        """Tap until it is a click: Chromium drops a tap that follows its driver's scrolling."""
        target = self.page.locator(name)
        target.evaluate(
            "(e) => { window.tapped = 0; e.addEventListener('click', () => window.tapped++, { once: true }) }"
        )
        for _ in range(5):
            target.tap()
            for _ in range(10):
                if self.page.evaluate("window.tapped"):
                    return
                self.page.wait_for_timeout(30)
        raise AssertionError(f"{name} is not tapped")

    def _drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self._fingers([start], [end])

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        self._touch("touchStart", middle(self.page.locator(name)))
        yield
        self._touch("touchEnd")

    def zoom_in(self) -> None:
        at = [place(self.page, 0.4, 0.5), place(self.page, 0.6, 0.5)]
        self._fingers(at, [place(self.page, 0.2, 0.5), place(self.page, 0.8, 0.5)])

    def pan(self) -> None:
        at = [place(self.page, 0.4, 0.5), place(self.page, 0.6, 0.5)]
        self._fingers(at, [place(self.page, 0.5, 0.6), place(self.page, 0.7, 0.6)])


class Keys(Mouse):
    """The keyboard alone."""

    STEP = 56 / 512 / 2  # of an arrow key: half the brush

    def press(self, name: str) -> None:
        self.page.locator(name).focus()
        self.page.keyboard.press("Enter")

    def _go(self, start: tuple[float, float], end: tuple[float, float], modifier: str = "") -> None:
        for before, after, back, on in zip(start, end, ("ArrowLeft", "ArrowUp"), ("ArrowRight", "ArrowDown")):
            for _ in range(round(abs(after - before) / self.STEP)):
                self.page.keyboard.press(modifier + (on if after > before else back))

    def paint(self, start: tuple[float, float], end: tuple[float, float], ratio: float = 1) -> None:
        self.page.locator("#canvas").focus()
        self._go((0.5, 0.5), start)
        self.page.keyboard.press("Enter")
        self._go(start, end, "Shift+")
        self.page.locator("#status").evaluate("document.activeElement.blur()")

    def move_line(self, row: int, fit: str = "crop", ratio: float = 1) -> None:
        handle = self.page.locator("#row")
        handle.focus()
        while int(handle.get_attribute("aria-valuenow")) > row:
            self.page.keyboard.press("ArrowUp")
            self.page.wait_for_timeout(20)

    def choose_whole_picture(self) -> None:
        self.page.locator("[name=fit][value=crop]").focus()
        self.page.keyboard.press("ArrowRight")

    def move_frame(self, ratio: float) -> None:
        self.page.locator("#at").focus()
        self.page.keyboard.press("Home")

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        self.page.locator(name).focus()
        self.page.keyboard.down("Enter")
        yield
        self.page.keyboard.up("Enter")

    def zoom_in(self) -> None:
        self.page.locator("#canvas").focus()
        self.page.keyboard.press("+")

    def pan(self) -> None:
        self.page.locator("#canvas").focus()
        self.page.keyboard.press("h")
        self.page.keyboard.press("ArrowRight")
        self.page.keyboard.press("b")


HANDS = {"mouse": Mouse, "touch": Touch, "keys": Keys}


def pixels(file: Path | bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(file) if isinstance(file, bytes) else file).convert("RGB"))
