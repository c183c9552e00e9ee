"""Places in the engine for work that must leave some to chats: batches and comparisons share them."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import AsyncIterator, Callable


class Slots:
    """At most `limit()` are held at once; who waits gets in by priority (lowest first), then by turn.

    Each of them alone keeps within what a batch may fill; two at once would take the slots
    that are kept for chats. Belongs to one event loop; `limit` is asked anew each time.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._held = 0
        self._turns = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @contextlib.asynccontextmanager
    async def held(self, priority: int) -> AsyncIterator[None]:
        """Hold one place, waiting for it if need be. Cancelling gives it up."""
        if self._waiting or self._held >= self._limit():
            await self._wait(priority)
        else:
            self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self._admit()

    async def _wait(self, priority: int) -> None:
        place = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._turns), place))
        self._admit()
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it was given in the same moment
                self._held -= 1
                self._admit()
            raise

    def _admit(self) -> None:
        while self._waiting and self._held < self._limit():
            *_, place = heapq.heappop(self._waiting)
            if not place.done():
                self._held += 1
                place.set_result(None)
