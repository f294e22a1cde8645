"""Connections to what answers behind the gateway: a service in a sandbox, or another server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable
from typing import Any, Protocol, cast

import httptools

from nodeagent.errors import AgentError
from nodeagent.http import Headers, Request

BUFFER_BYTES = 256 * 1024
MAX_HEAD_BYTES = 256 * 1024
IDLE_SECONDS = 30.0
MAX_IDLE_PER_DESTINATION = 4  # in a sandbox, each is a process


class BadUpstream(AgentError):
    """The service on the port does not speak HTTP, or broke off before its answer."""

    http_status, error_code = 502, "bad_upstream"


class Upstream(asyncio.Protocol):
    """One connection to a service in a sandbox; one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.is_closed = False
        self.status = 0
        self.reason = b""
        self.headers: Headers = []
        self.has_head = False
        self.is_complete = False
        self.is_upgraded = False
        self.rest = b""  # what came behind a 101
        self._parser: Any = httptools.HttpResponseParser(self)
        self._failure: AgentError | None = None
        self._body: deque[bytes] = deque()
        self._buffered = 0
        self._head_bytes = 0
        self._keeps_alive = False
        self._is_reading = True
        self._waiter: asyncio.Future[None] | None = None
        self._can_write = asyncio.Event()
        self._can_write.set()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transports are no subclass of asyncio's.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._failure is not None:
            return
        if not self.has_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.is_upgraded = True
            self.rest = data[upgrade.args[0] :]
            self.transport.pause_reading()
        except httptools.HttpParserError as error:
            self._fail(BadUpstream(f"The service did not answer with valid HTTP: {error}"))
        else:
            if not self.has_head and self._head_bytes > MAX_HEAD_BYTES:
                self._fail(BadUpstream("The service's response head is too large"))
        if self._buffered > BUFFER_BYTES and self._is_reading and not self.is_upgraded:
            self._is_reading = False
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._can_write.set()
        if not self.is_complete and self._failure is None:
            if self.has_head and self._ends_with_connection() and exc is None:
                self.is_complete = True
            else:
                self._failure = BadUpstream("The service closed the connection")
        self._wake()

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    # httptools

    def on_message_begin(self) -> None:
        self.headers, self.reason = [], b""

    def on_status(self, status: bytes) -> None:
        self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 or status == 101:
            self.status, self.has_head = status, True
            self._keeps_alive = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        if self.has_head:
            self._body.append(body)
            self._buffered += len(body)

    def on_message_complete(self) -> None:
        if self.has_head:
            self.is_complete = True

    # For the proxy

    def reset(self) -> None:
        """Ready for the next request on this connection."""
        self.has_head = self.is_complete = False
        self._head_bytes = 0

    async def wait_head(self) -> None:
        """Raises: BadUpstream."""
        while not self.has_head:
            if self._failure is not None:
                raise self._failure
            await self._wait()

    async def next_chunk(self) -> bytes | None:
        """The next piece of the body; None at its end. Raises: BadUpstream."""
        while not self._body:
            if self.is_complete:
                return None
            if self._failure is not None:
                raise self._failure
            await self._wait()
        chunk = self._body.popleft() if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._buffered = 0
        if not self._is_reading and not self.is_closed:
            self._is_reading = True
            self.transport.resume_reading()
        return chunk

    async def write(self, data: bytes) -> None:
        """Raises: BadUpstream."""
        if self.is_closed:
            raise BadUpstream("The service closed the connection")
        self.transport.write(data)
        await self._can_write.wait()

    def can_be_reused(self) -> bool:
        return (
            self.is_complete
            and not self.is_closed
            and not self._body
            and self._failure is None
            and self._is_reading
            and self._keeps_alive
            and not self._ends_with_connection()
        )

    def _ends_with_connection(self) -> bool:
        """Neither a length nor chunks: the body goes on until the service closes."""
        if self.status in (204, 304):
            return False
        return not any(
            name in (b"content-length", b"transfer-encoding") for name, _ in self.headers
        )

    def _fail(self, error: AgentError) -> None:
        self._failure = error
        self.transport.abort()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Destination(Protocol):
    """Where a request goes."""

    @property
    def key(self) -> Hashable:
        """Requests with equal keys may share connections."""

    @property
    def is_there(self) -> bool:
        """Whether idle connections to it are worth keeping."""

    async def dial(self) -> Upstream:
        """Raises: Unavailable when nothing listens."""

    def head(self, request: Request, *, upgrade: bool = False) -> bytes:
        """The request's head as it is sent there."""


class IdleUpstreams:
    """Idle connections, kept for a short while."""

    def __init__(self) -> None:
        self._idle: dict[Hashable, list[tuple[Upstream, asyncio.TimerHandle]]] = {}

    def take(self, destination: Destination) -> Upstream | None:
        key = destination.key
        idle = self._idle.get(key, [])
        while idle:
            upstream, timer = idle.pop()
            timer.cancel()
            if not idle:
                self._idle.pop(key, None)
            if not upstream.is_closed:
                upstream.reset()
                return upstream
        return None

    def give_back(self, destination: Destination, upstream: Upstream) -> None:
        key = destination.key
        if len(self._idle.get(key, [])) >= MAX_IDLE_PER_DESTINATION or not destination.is_there:
            upstream.transport.close()
            return
        timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._expire, key, upstream)
        self._idle.setdefault(key, []).append((upstream, timer))

    def _expire(self, key: Hashable, upstream: Upstream) -> None:
        idle = [item for item in self._idle.pop(key, []) if item[0] is not upstream]
        if idle:
            self._idle[key] = idle
        upstream.transport.close()

    def close(self) -> None:
        for idle in self._idle.values():
            for upstream, timer in idle:
                timer.cancel()
                upstream.transport.abort()
        self._idle.clear()
