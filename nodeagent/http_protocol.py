"""uvicorn's HTTP/1.1 protocol with what a gateway needs besides: resets, tunnels, cancellation.

A client that speaks HTTP/2 is handed to its protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import (
    HttpToolsProtocol,
    RequestResponseCycle,
)

from nodeagent.http2_protocol import PREFACE, Http2Protocol

MAX_HEAD_BYTES = 64 * 1024
HEAD_TIMEOUT_SECONDS = 30.0  # a client that does not finish its request head is let go
_ENDLESS = 2**62
_LINGER_ZERO = struct.pack("ii", 1, 0)


class Http1Exchange:
    """One request on a connection that serves one at a time."""

    def __init__(self, protocol: GatewayProtocol, raw_target: bytes) -> None:
        self._protocol = protocol
        self.raw_target = raw_target
        self.is_upgrade = False
        self.task: asyncio.Task[Any] | None = None

    @property
    def is_gone(self) -> bool:
        return self._protocol.is_lost

    def reset(self) -> None:
        reset_transport(self._protocol.transport)

    def stream_until_close(self) -> None:
        cycle = self._protocol.cycle
        cycle.chunked_encoding = False
        cycle.expected_content_length = _ENDLESS
        cycle.keep_alive = False

    def close_stream(self) -> None:
        self._protocol.cycle.response_complete = True
        self._protocol.transport.close()

    def take_over(self, protocol: asyncio.Protocol) -> tuple[asyncio.Transport, bytes]:
        return self._protocol.hand_over(protocol)


def reset_transport(transport: asyncio.Transport) -> None:
    """Close with SO_LINGER 0, so that the peer gets RST and not FIN."""
    if transport is None or transport.is_closing():
        # Closing, but perhaps with bytes still queued: abort drops them.
        if transport is not None:
            transport.abort()
        return
    handle = transport.get_extra_info("socket")
    if handle is not None:
        # uvloop's socket object refuses some calls; a duplicate descriptor shares the options.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(handle.fileno())) as twin:
            twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    transport.abort()


class GatewayProtocol(HttpToolsProtocol):
    """Serves one client connection.

    The task of a request is cancelled as soon as its client goes away: handlers clean up in
    `finally`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False  # whatever the logging configuration says: it is the hot path
        self.is_lost = False
        self._upgrade_rest = b""
        self._head_bytes = 0
        self._in_head = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._current: Http1Exchange | None = None

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        handle = transport.get_extra_info("socket")
        if handle is not None and handle.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() == "h2":
            self._become_http2()
        else:
            self._arm_head_timer()

    def _become_http2(self) -> Http2Protocol:
        self._disarm_head_timer()
        self.connections.discard(self)
        successor = Http2Protocol(
            self.app, self.server_state, keep_alive_seconds=self.timeout_keep_alive
        )
        self.transport.set_protocol(successor)
        successor.connection_made(self.transport)
        return successor

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._disarm_head_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self.pipeline.clear()
        if self._current is not None and self.cycle is not None:
            task = self._current.task
            if task is not None and not task.done():
                task.cancel()

    def data_received(self, data: bytes) -> None:
        if self.scope is None and not self._in_head and data.startswith(PREFACE):
            self._become_http2().data_received(data)  # a client that knows without asking
            return
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._on_upgrade(data[upgrade.args[0] :])
        except (httptools.HttpParserError, UnicodeDecodeError):
            self._disarm_head_timer()
            if self.cycle is not None and not self.cycle.response_complete:
                # Garbage behind a request that is being answered: a 400 would look like its answer.
                reset_transport(self.transport)
                return
            self.send_400_response("Invalid HTTP request received.")

    def _feed(self, data: bytes) -> None:
        if self.parser is None:
            return
        self.parser.feed_data(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                raise httptools.HttpParserError("request head too large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0
        if self._head_timer is None:
            self._arm_head_timer()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._disarm_head_timer()
        if not self._is_sound():
            raise httptools.HttpParserError("ambiguous request")
        if self.parser.should_upgrade() and not self._is_websocket():
            return  # replayed without its Upgrade header: see _on_upgrade
        self._use_absolute_form()
        self._make_exchange(self.scope)
        super().on_headers_complete()

    def _use_absolute_form(self) -> None:
        """`GET http://host/path`: the target's host counts, not the header (RFC 9112, 3.2.2)."""
        if self.url.startswith(b"/") or self.url == b"*":
            return
        target = httptools.parse_url(self.url)
        if not target.host:
            raise httptools.HttpParserError("bad request target")
        host = target.host + (b":%d" % target.port if target.port else b"")
        self.headers[:] = [item for item in self.headers if item[0] != b"host"]
        self.headers.append((b"host", host))
        self.url = (target.path or b"/") + (b"?" + target.query if target.query else b"")

    def on_body(self, body: bytes) -> None:
        if not self.parser.should_upgrade():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade() or self._is_websocket():
            super().on_message_complete()

    def _is_sound(self) -> bool:
        """Refuse what two parsers could read differently; llhttp itself refuses the rest."""
        hosts = lengths = 0
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                lengths += 1
            elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                return False
        return hosts <= 1 and lengths <= 1 and self.parser.get_method() != b"CONNECT"

    # Upgrades

    def _is_websocket(self) -> bool:
        return self._get_upgrade() == b"websocket"

    def _should_upgrade(self) -> bool:
        return False  # never uvicorn's own websocket protocol: we tunnel

    def _on_upgrade(self, rest: bytes) -> None:
        if self._is_websocket():
            self._upgrade_rest = rest
            self.flow.pause_reading()
            return
        # An upgrade that we do not speak (curl's h2c): RFC 9110 lets a server ignore it.
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            if name not in (b"upgrade", b"connection", b"http2-settings"):
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def hand_over(self, protocol: asyncio.Protocol) -> tuple[asyncio.Transport, bytes]:
        self._disarm_head_timer()
        self._unset_keepalive_if_required()
        self.connections.discard(self)
        rest, self._upgrade_rest = self._upgrade_rest, b""
        self.cycle.response_started = self.cycle.response_complete = True
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        self.flow.resume_reading()
        return self.transport, rest

    # Requests

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        scope: dict[str, Any] = dict(cycle.scope)
        exchange: Http1Exchange = scope["extensions"]["sandlot"]
        self._current = exchange
        self._disarm_head_timer()
        task = self.loop.create_task(cycle.run_asgi(app))
        exchange.task = task
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def on_response_complete(self) -> None:
        self._current = None
        super().on_response_complete()

    def _make_exchange(self, scope: Any) -> None:
        exchange = Http1Exchange(self, self.url)
        exchange.is_upgrade = bool(self.parser.should_upgrade())
        scope["extensions"] = {"sandlot": exchange}

    # Slow heads

    def _arm_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_SECONDS, self._on_slow_head)

    def _disarm_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_slow_head(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
