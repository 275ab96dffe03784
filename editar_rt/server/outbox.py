"""What the engine has for one client: results are kept, of partial pictures only the newest of each variant.

So memory is bounded however slowly a client reads: by one partial picture and one result for each variant.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import NamedTuple

from PIL import Image

from editar_rt.results import Result
from editar_rt.server.errors import ApiError


class Partial(NamedTuple):
    """A partial picture."""

    variant: int
    picture: Image.Image
    number: int
    row: int


class Finished(NamedTuple):
    """A result."""

    variant: int
    result: Result
    warned: list[str]


Item = Partial | Finished | ApiError


class Outbox:
    """A `Listener` whose items are taken by the event loop that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: dict[object, Item] = {}  # in order of arrival
        self._some = asyncio.Event()

    # In the engine's thread.

    def preview(self, variant: int, picture: Image.Image, index: int, row: int) -> None:
        self._pass(("partial", variant), Partial(variant, picture, index, row))

    def result(self, variant: int, result: Result, warned: list[str]) -> None:
        self._pass(("result", variant), Finished(variant, result, list(warned)))

    def failed(self, error: ApiError) -> None:
        self._pass("error", error)

    def _pass(self, key: object, item: Item) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._put, key, item)

    # In the event loop.

    def _put(self, key: object, item: Item) -> None:
        self._items[key] = item
        self._some.set()

    async def take(self) -> Item:
        """The next item."""
        while not self._items:
            self._some.clear()
            await self._some.wait()
        return self._items.pop(next(iter(self._items)))

    async def take_within(self, seconds: float) -> Item | None:
        """The next item; None if none came in time."""
        try:
            return await asyncio.wait_for(self.take(), seconds)
        except asyncio.TimeoutError:
            return None

    async def results(self, count: int) -> list[Finished]:
        """All results of a request, by variant.

        Raises:
            ApiError: the request failed.
        """
        found: dict[int, Finished] = {}
        while len(found) < count:
            item = await self.take()
            if isinstance(item, ApiError):
                raise item
            if isinstance(item, Finished):
                found[item.variant] = item
        return [found[variant] for variant in sorted(found)]
