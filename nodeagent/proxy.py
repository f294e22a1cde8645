"""Forwarding requests: a streaming HTTP/1.1 proxy, and a tunnel for WebSockets."""

from __future__ import annotations

import asyncio
import logging
from typing import cast

from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE

from nodeagent.errors import AgentError, Unavailable
from nodeagent.http import ClientGone, Headers, Request
from nodeagent.http_protocol import reset_transport
from nodeagent.sandbox import LiveSandbox
from nodeagent.upstream import BadUpstream, Destination, IdleUpstreams, Upstream

logger = logging.getLogger(__name__)

DIAL_PAUSES = (0.1, 0.2, 0.3, 0.4)  # before the 2nd to 5th attempt: a server that is just starting
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
# Marks a request that came through another gateway: it is forwarded once, never in a circle.
FORWARDED_HEADER = b"sandlot-forwarded"
NOT_FORWARDED = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"forwarded",
    FORWARDED_HEADER,
}


class SandboxPort:
    """A service in a sandbox of this node."""

    def __init__(self, sandbox: LiveSandbox, port: int) -> None:
        self._sandbox, self._port = sandbox, port
        self.key = (sandbox, port)

    @property
    def is_there(self) -> bool:
        return self._sandbox.is_routable

    async def dial(self) -> Upstream:
        """Connect, waiting a little for a service that is just starting."""
        for pause_seconds in (*DIAL_PAUSES, None):
            try:
                _, upstream = await self._sandbox.link.dial(self._port, protocol_factory=Upstream)
            except Unavailable:
                if pause_seconds is None:
                    raise
                await asyncio.sleep(pause_seconds)
            else:
                assert isinstance(upstream, Upstream)
                return upstream
        raise AssertionError("unreachable")

    def head(self, request: Request, *, upgrade: bool = False) -> bytes:
        mask = self._sandbox.spec.network.mask_request_host
        host = (request.header(b"host") or "").encode("latin-1")
        if not mask:
            return request_head(request, [(b"host", host)], upgrade=upgrade)
        masked = mask.replace("${PORT}", str(self._port)).encode()
        names = [(b"host", masked), (b"x-forwarded-host", host)]
        return request_head(request, names, upgrade=upgrade)


class Proxy:
    """Forwards requests, over connections that are used again."""

    def __init__(self) -> None:
        self._upstreams = IdleUpstreams()

    def close(self) -> None:
        self._upstreams.close()

    async def serve(self, destination: Destination, request: Request) -> None:
        """Raises: Unavailable when nothing listens; BadUpstream before an answer began."""
        if request.exchange.is_upgrade:
            await self._serve_upgrade(destination, request)
            return
        has_body = any(
            name in (b"content-length", b"transfer-encoding") and value != b"0"
            for name, value in request.headers
        )
        if not has_body and request.method in SAFE_TO_REPEAT:
            upstream = self._upstreams.take(destination)
            if upstream is not None:
                try:
                    await self._exchange(destination, request, upstream, has_body=False)
                    return
                except BadUpstream:  # it was closed while idle: ask again on a fresh one
                    if request.response_started:
                        raise
        upstream = await destination.dial()
        await self._exchange(destination, request, upstream, has_body=has_body)

    async def _exchange(
        self,
        destination: Destination,
        request: Request,
        upstream: Upstream,
        *,
        has_body: bool,
    ) -> None:
        sending: asyncio.Task[bool] | None = None
        try:
            await upstream.write(destination.head(request))
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
            if _is_whole(sending) and upstream.can_be_reused():
                self._upstreams.give_back(destination, upstream)
                upstream = None  # type: ignore[assignment]
        finally:
            if sending is not None and not sending.done():
                sending.cancel()
            if upstream is not None:
                upstream.transport.abort()

    async def _serve_upgrade(self, destination: Destination, request: Request) -> None:
        upstream = await destination.dial()
        try:
            await upstream.write(destination.head(request, upgrade=True))
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
            await _tunnel(request, upstream)
        finally:
            upstream.transport.abort()


def _is_whole(sending: asyncio.Task[bool] | None) -> bool:
    """Whether all of the body was sent; else what comes next would be taken for its rest."""
    return sending is None or (sending.done() and sending.result())


async def _send_body(request: Request, upstream: Upstream) -> bool:
    """Returns whether all was sent. A service that does not want it says so, or closes."""
    is_chunked = any(name == b"transfer-encoding" for name, _ in request.headers)
    try:
        async for chunk in request.chunks():
            if is_chunked:
                chunk = b"%x\r\n%b\r\n" % (len(chunk), chunk)
            await upstream.write(chunk)
        if is_chunked:
            await upstream.write(b"0\r\n\r\n")
    except (AgentError, ClientGone):
        return False
    return True


def request_head(request: Request, added: Headers, *, upgrade: bool = False) -> bytes:
    """The head of a forwarded request; `added` comes first.

    Hop-by-hop and X-Forwarded-* headers of the client are dropped.
    """
    named = connection_options(request.headers)
    lines = [b"%b %b HTTP/1.1\r\n" % (request.method.encode(), request.exchange.raw_target)]
    lines += [b"%b: %b\r\n" % item for item in added]
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


async def _tunnel(request: Request, upstream: Upstream) -> None:
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
