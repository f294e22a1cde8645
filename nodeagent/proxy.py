"""Any port of a sandbox but envd's: a streaming HTTP/1.1 proxy, and a tunnel for WebSockets."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE

from nodeagent.errors import AgentError, GuestFault, Unavailable
from nodeagent.http import ClientGone, Headers, Request
from nodeagent.http_protocol import reset_transport
from nodeagent.sandbox import LiveSandbox

logger = logging.getLogger(__name__)

DIAL_PAUSES = (0.1, 0.2, 0.3, 0.4)  # before the 2nd to 5th attempt: a server that is just starting
BUFFER_BYTES = 256 * 1024
MAX_HEAD_BYTES = 256 * 1024
IDLE_SECONDS = 30.0
MAX_IDLE_PER_PORT = 4  # each is a process in the sandbox
SAFE_TO_REPEAT = {"GET", "HEAD", "OPTIONS"}

HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
NOT_FORWARDED = HOP_BY_HOP | {b"host", b"content-length", b"expect", b"forwarded"}


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


class Upstreams:
    """Idle connections into sandboxes, kept for a short while."""

    def __init__(self) -> None:
        self._idle: dict[tuple[LiveSandbox, int], list[tuple[Upstream, asyncio.TimerHandle]]] = {}

    def take(self, sandbox: LiveSandbox, port: int) -> Upstream | None:
        key = (sandbox, port)
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

    def give_back(self, sandbox: LiveSandbox, port: int, upstream: Upstream) -> None:
        idle = self._idle.setdefault((sandbox, port), [])
        if len(idle) >= MAX_IDLE_PER_PORT or not sandbox.is_routable:
            upstream.transport.close()
            return
        loop = asyncio.get_running_loop()
        timer = loop.call_later(IDLE_SECONDS, self._expire, (sandbox, port), upstream)
        idle.append((upstream, timer))

    def _expire(self, key: tuple[LiveSandbox, int], upstream: Upstream) -> None:
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


async def dial(sandbox: LiveSandbox, port: int) -> Upstream:
    """Connect to a port of the sandbox, waiting a little for a service that is just starting.

    Raises: Unavailable when nothing listens there.
    """
    for pause_seconds in (*DIAL_PAUSES, None):
        try:
            _, upstream = await sandbox.link.dial(port, protocol_factory=Upstream)
        except Unavailable:
            if pause_seconds is None:
                raise
            await asyncio.sleep(pause_seconds)
        else:
            assert isinstance(upstream, Upstream)
            return upstream
    raise AssertionError("unreachable")


class Proxy:
    """Forwards requests to the ports of sandboxes."""

    def __init__(self) -> None:
        self._upstreams = Upstreams()

    def close(self) -> None:
        self._upstreams.close()

    async def serve(self, sandbox: LiveSandbox, port: int, request: Request) -> None:
        """Raises: Unavailable when nothing listens; BadUpstream before an answer began."""
        if request.exchange.is_upgrade:
            await self._serve_upgrade(sandbox, port, request)
            return
        has_body = any(
            name in (b"content-length", b"transfer-encoding") and value != b"0"
            for name, value in request.headers
        )
        if not has_body and request.method in SAFE_TO_REPEAT:
            upstream = self._upstreams.take(sandbox, port)
            if upstream is not None:
                try:
                    await self._exchange(sandbox, port, request, upstream, has_body=False)
                    return
                except BadUpstream:  # it was closed while idle: ask again on a fresh one
                    if request.response_started:
                        raise
        upstream = await dial(sandbox, port)
        await self._exchange(sandbox, port, request, upstream, has_body=has_body)

    async def _exchange(
        self,
        sandbox: LiveSandbox,
        port: int,
        request: Request,
        upstream: Upstream,
        *,
        has_body: bool,
    ) -> None:
        sending: asyncio.Task[None] | None = None
        try:
            await upstream.write(request_head(sandbox, port, request))
            if has_body:
                sending = asyncio.get_running_loop().create_task(_send_body(request, upstream))
            await upstream.wait_head()
            await request.start(upstream.status, response_headers(upstream.headers))
            if request.method == "HEAD":
                await request.finish()
                return
            while (chunk := await upstream.next_chunk()) is not None:
                await request.write(chunk)
            await request.finish()
            if (sending is None or sending.done()) and upstream.can_be_reused():
                self._upstreams.give_back(sandbox, port, upstream)
                upstream = None  # type: ignore[assignment]
        finally:
            if sending is not None and not sending.done():
                sending.cancel()
            if upstream is not None:
                upstream.transport.abort()

    async def _serve_upgrade(self, sandbox: LiveSandbox, port: int, request: Request) -> None:
        upstream = await dial(sandbox, port)
        try:
            await upstream.write(request_head(sandbox, port, request, upgrade=True))
            await upstream.wait_head()
            if not upstream.is_upgraded:
                # Refused: an ordinary answer, and the end of this connection, as what the client
                # sends next must not reach a service it was not meant for.
                headers = response_headers(upstream.headers)
                await request.start(upstream.status, [*headers, (b"connection", b"close")])
                while (chunk := await upstream.next_chunk()) is not None:
                    await request.write(chunk)
                await request.finish()
                return
            await _tunnel(sandbox, request, upstream)
        finally:
            upstream.transport.abort()


async def _send_body(request: Request, upstream: Upstream) -> None:
    """Raises nothing: a service that does not want the body says so in its answer or closes."""
    is_chunked = any(name == b"transfer-encoding" for name, _ in request.headers)
    try:
        async for chunk in request.chunks():
            if is_chunked:
                chunk = b"%x\r\n%b\r\n" % (len(chunk), chunk)
            await upstream.write(chunk)
        if is_chunked:
            await upstream.write(b"0\r\n\r\n")
    except (AgentError, ClientGone):
        pass


def request_head(
    sandbox: LiveSandbox, port: int, request: Request, *, upgrade: bool = False
) -> bytes:
    """What the service sees. Hop-by-hop and X-Forwarded-* headers are dropped."""
    named = connection_options(request.headers)
    host = request.header(b"host") or ""
    lines = [b"%b %b HTTP/1.1\r\n" % (request.method.encode(), request.exchange.raw_target)]
    mask = sandbox.spec.network.mask_request_host
    if mask:
        lines.append(b"host: %b\r\n" % mask.replace("${PORT}", str(port)).encode())
        lines.append(b"x-forwarded-host: %b\r\n" % host.encode("latin-1"))
    else:
        lines.append(b"host: %b\r\n" % host.encode("latin-1"))
    for name, value in request.headers:
        if name == b"content-length":
            lines.append(b"content-length: %b\r\n" % value)
        elif name == b"transfer-encoding":
            lines.append(b"transfer-encoding: chunked\r\n")
        elif name not in NOT_FORWARDED and name not in named:
            if not name.startswith(b"x-forwarded-"):
                lines.append(b"%b: %b\r\n" % (name, value))
        elif name == b"te" and value.strip().lower() == b"trailers":
            lines.append(b"te: trailers\r\n")
    if upgrade:
        lines.append(b"connection: Upgrade\r\nupgrade: websocket\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


def response_headers(headers: Headers) -> Headers:
    named = connection_options(headers)
    return [
        (name, value)
        for name, value in headers
        if name not in HOP_BY_HOP
        and name not in named
        and not HEADER_RE.search(name)
        and not HEADER_VALUE_RE.search(value)
    ]


def connection_options(headers: Headers) -> set[bytes]:
    """Headers that the sender calls hop-by-hop; framing headers cannot be made so (smuggling)."""
    options = set()
    for name, value in headers:
        if name == b"connection":
            options |= {option.strip().lower() for option in value.split(b",")}
    return options - {b"content-length", b"host", b"transfer-encoding"}


class TunnelEnd(asyncio.Protocol):
    """One side of a tunnel: what it receives goes to the other, at the other's pace."""

    def __init__(self, closed: asyncio.Event) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: TunnelEnd | None = None
        self._closed = closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._there is not None:
            self._there.write(data)

    def eof_received(self) -> bool:
        return False  # the end of either side is the end of the tunnel, as in other proxies

    def connection_lost(self, exc: Exception | None) -> None:
        if self._there is not None:
            self._there.close()
        self._closed.set()

    def pause_writing(self) -> None:
        if self._there is not None:
            self._there.pause_reading()

    def resume_writing(self) -> None:
        if self._there is not None:
            self._there.resume_reading()

    @property
    def _there(self) -> asyncio.Transport | None:
        """The other side's transport, while it can be used."""
        if self.other is None or self.other.transport is None:
            return None
        return None if self.other.transport.is_closing() else self.other.transport


async def _tunnel(sandbox: LiveSandbox, request: Request, upstream: Upstream) -> None:
    closed = asyncio.Event()
    inner, outer = TunnelEnd(closed), TunnelEnd(closed)
    request.response_started = True
    client, sent_early = request.exchange.take_over(outer)
    inner.transport, inner.other, outer.other = upstream.transport, outer, inner
    upstream.transport.set_protocol(inner)
    head = [b"HTTP/1.1 101 %b\r\n" % (upstream.reason or b"Switching Protocols")]
    head += [b"%b: %b\r\n" % item for item in upstream.headers]
    client.write(b"".join([*head, b"\r\n", upstream.rest]))
    if sent_early:
        upstream.transport.write(sent_early)
    upstream.transport.resume_reading()
    try:
        await closed.wait()
    except asyncio.CancelledError:
        reset_transport(client)
        raise


__all__ = ["BadUpstream", "GuestFault", "Proxy"]
