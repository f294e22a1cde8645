"""A bounded queue between one producer of events and one client's stream."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

SUBSCRIBER_EVENTS = 64


class EventQueue(Generic[T]):
    """A full queue holds its producer back; a closed one lets it go on and drops all it gives.

    `get` returns None when nothing came for `idle_seconds`: time for a keepalive.
    """

    def __init__(self, limit: int = SUBSCRIBER_EVENTS) -> None:
        self._limit = limit
        self._items: deque[T] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._writers: deque[asyncio.Future[None]] = deque()
        self.is_closed = False

    def __len__(self) -> int:
        return len(self._items)

    async def put(self, item: T) -> None:
        while len(self._items) >= self._limit and not self.is_closed:
            writer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._writers.append(writer)
            await writer
        if not self.is_closed:
            self._items.append(item)
            _wake(self._reader)

    async def get(self, idle_seconds: float) -> T | None:
        if not self._items:
            loop = asyncio.get_running_loop()
            reader = self._reader = loop.create_future()
            timer = loop.call_later(idle_seconds, _wake, reader)
            try:
                await reader
            finally:
                timer.cancel()
                self._reader = None
            if not self._items:
                return None
        return self.get_nowait()

    def get_nowait(self) -> T | None:
        """The next item, or None when there is none yet."""
        if not self._items:
            return None
        item = self._items.popleft()
        while self._writers:
            writer = self._writers.popleft()
            if not writer.done():
                writer.set_result(None)
                break
        return item

    def close(self) -> None:
        """The reader has gone: release the producer at once."""
        self.is_closed = True
        self._items.clear()
        while self._writers:
            _wake(self._writers.popleft())


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
