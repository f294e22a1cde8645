"""HTTP/2 for the gateway: `h2` speaks it, each stream is a request of the ASGI application.

Flow control reaches through: what an application does not read is not acknowledged, and what a
client does not read is not taken from the application.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from hyperframe.frame import GoAwayFrame
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

logger = logging.getLogger(__name__)

PREFACE = b"PRI * HTTP/2.0\r\n"
MAX_STREAMS = 256
STREAM_WINDOW_BYTES = 1024 * 1024  # what a client may send before the application reads it
CONNECTION_WINDOW_BYTES = 8 * 1024 * 1024
MAX_INBOUND_FRAME_BYTES = 256 * 1024
MAX_HEAD_BYTES = 64 * 1024
WRITE_BUFFER_BYTES = 256 * 1024
# Answers to pings and settings pile up here when a client sends without reading.
MAX_UNREAD_BYTES = 1024 * 1024
FIRST_REQUEST_SECONDS = 30.0
# A client may break off this many requests more than it lets finish.
MAX_BROKEN_OFF = 1000

_METHOD = re.compile(rb"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")
_TARGET = re.compile(rb"^(/[\x21-\x7e]*|\*)$")
_NAME = re.compile(rb"^[a-z0-9!#$%&'*+.^_`|~-]+$")
_LENGTH = re.compile(rb"^[0-9]{1,18}$")
_VALUE = re.compile(rb"^[^\x00\r\n]*$")
_CONNECTION_HEADERS = {
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"transfer-encoding",
    b"upgrade",
}
_NO_BODY = {204, 304}

Headers = list[tuple[bytes, bytes]]


class Malformed(Exception):
    """A request that HTTP/2 forbids."""


class RequestHead:
    """The head of a request, checked. Raises: Malformed."""

    def __init__(self, headers: Headers, *, has_body: bool) -> None:
        pseudo: dict[bytes, bytes] = {}
        self.headers: Headers = []
        cookies: list[bytes] = []
        self.length: int | None = None  # what the body's length shall be
        for name, value in headers:
            if name[:1] == b":":
                if name in pseudo or self.headers or cookies:
                    raise Malformed
                pseudo[name] = value
                continue
            if not _NAME.match(name) or not _VALUE.match(value) or name in _CONNECTION_HEADERS:
                raise Malformed
            if name == b"te" and value != b"trailers":
                raise Malformed
            if name == b"content-length":
                if self.length is not None or not _LENGTH.match(value):
                    raise Malformed
                self.length = int(value)
            if name == b"cookie":
                cookies.append(value)
            elif name != b"host" or b":authority" not in pseudo:
                self.headers.append((name, value))
        if cookies:
            self.headers.append((b"cookie", b"; ".join(cookies)))
        if not pseudo.keys() >= {b":method", b":scheme", b":path"} or len(pseudo) > 4:
            raise Malformed
        self.method, self.target = pseudo[b":method"], pseudo[b":path"]
        if not _METHOD.match(self.method) or not _TARGET.match(self.target):
            raise Malformed
        if self.method == b"CONNECT" or pseudo[b":scheme"] not in (b"http", b"https"):
            raise Malformed
        authority = pseudo.get(b":authority")
        if authority is not None:
            if not _VALUE.match(authority):
                raise Malformed
            self.headers.insert(0, (b"host", authority))
        elif len(pseudo) == 4 or sum(name == b"host" for name, _ in self.headers) > 1:
            raise Malformed
        if not has_body and self.length:
            raise Malformed
        if has_body and self.length is None:
            # For those who look whether a body comes, and forward it over HTTP/1.1.
            self.headers.append((b"transfer-encoding", b"chunked"))


class Stream:
    """One request: ASGI's `receive` and `send`, and the exchange below them."""

    is_upgrade = False

    def __init__(self, connection: Http2Protocol, stream_id: int, head: RequestHead) -> None:
        self.id = stream_id
        self.raw_target = head.target
        self.task: asyncio.Task[None] | None = None
        self.is_gone = False
        self.is_answered = False
        self.is_whole = False  # the request's body has arrived
        self._connection = connection
        self._is_head = head.method == b"HEAD"
        self._expects_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in head.headers
        )
        self._is_told = False  # the application knows that the body is whole
        self._left: int | None = None  # of an answer with a length
        self._body: deque[bytes] = deque()
        self._expected = head.length  # bytes of the body that are still to come
        self._unread = 0  # bytes of flow control that the application has not taken
        self._arrived = asyncio.Event()

    # Exchange

    def reset(self) -> None:
        if not self.is_gone and not self.is_answered:
            self._connection.break_off(self, h2.errors.ErrorCodes.INTERNAL_ERROR)
            self.lose()

    def stream_until_close(self) -> None:
        raise NotImplementedError("HTTP/2 frames every answer")

    def close_stream(self) -> None:
        raise NotImplementedError("HTTP/2 frames every answer")

    def take_over(self, protocol: asyncio.Protocol) -> tuple[asyncio.Transport, bytes]:
        raise NotImplementedError("HTTP/2 upgrades nothing")

    # From the connection

    def feed(self, data: bytes, flow_bytes: int) -> None:
        self._unread += flow_bytes
        if self._expected is not None:
            self._expected -= len(data)
        if data:
            self._body.append(data)
            self._arrived.set()

    def end_body(self) -> None:
        if self._expected:
            # Trailers can end a body early. Forwarded, a later request would fill what is missing.
            self._connection.break_off(self, h2.errors.ErrorCodes.PROTOCOL_ERROR)
            self.lose()
            return
        self.is_whole = True
        self._arrived.set()

    def lose(self) -> None:
        """Nobody is left to answer: the application's task ends."""
        self.is_gone = True
        self._arrived.set()
        task = self.task
        if task is not None and not task.done():
            # Not at once: the task itself may be the caller, and has something to do after it.
            task.get_loop().call_soon(task.cancel)

    def take_unread(self) -> int:
        unread, self._unread = self._unread, 0
        return unread

    # ASGI

    async def receive(self) -> dict[str, Any]:
        if self._expects_continue:
            self._expects_continue = False
            if not self._body and not self.is_whole:
                self._connection.send_headers(self, [(b":status", b"100")])
        while not (self.is_gone or self.is_answered):
            if self._body or (self.is_whole and not self._is_told):
                break
            self._arrived.clear()
            await self._arrived.wait()
        if self.is_gone or self.is_answered:
            return {"type": "http.disconnect"}
        body = self._body.popleft() if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._is_told = self.is_whole
        self._connection.acknowledge(self)
        return {"type": "http.request", "body": body, "more_body": not self.is_whole}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._expects_continue = False
            await self._start(message["status"], message["headers"])
        elif not self.is_answered:
            body, is_last = message["body"], not message["more_body"]
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0 or (is_last and self._left > 0):
                    raise RuntimeError("The answer's body is not as long as it said")
                is_last = self._left == 0  # no empty frame for the end
            if body or is_last:
                await self._connection.send_data(self, body, is_last=is_last)

    async def _start(self, status: int, headers: Headers) -> None:
        sent = [(b":status", b"%d" % status)]
        for name, value in headers:
            name = name.lower()
            if name == b"content-length":
                self._left = int(value)
            if name not in _CONNECTION_HEADERS:
                sent.append((name, value))
        is_last = self._is_head or status in _NO_BODY or self._left == 0
        await self._connection.can_write.wait()
        self._connection.send_headers(self, sent, is_last=is_last)


class Http2Protocol(asyncio.Protocol):
    """Serves one client connection. A request's task is cancelled as soon as its client leaves."""

    def __init__(
        self, app: Callable[..., Any], server_state: ServerState, *, keep_alive_seconds: float
    ) -> None:
        self._app = app
        self._loop = asyncio.get_running_loop()
        self._server_state = server_state
        self._keep_alive_seconds = keep_alive_seconds
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._streams: dict[int, Stream] = {}
        self._windows: dict[int, asyncio.Future[None]] = {}  # of streams that wait for room
        self._idle_timer: asyncio.TimerHandle | None = None
        self._is_ending = False  # no new streams
        self._is_reading = True
        self._last_stream_id = 0
        self._broken_off = 0
        self.can_write = asyncio.Event()
        self.can_write.set()
        # Heads are checked by RequestHead, and answers come from us: h2's own checks go through
        # every header's characters in Python.
        config = h2.config.H2Configuration(
            client_side=False,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._h2 = h2.connection.H2Connection(config)
        codes = h2.settings.SettingCodes
        self._h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                codes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                codes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
                codes.MAX_FRAME_SIZE: MAX_INBOUND_FRAME_BYTES,
                codes.MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
            },
        )
        self._h2.max_inbound_frame_size = MAX_INBOUND_FRAME_BYTES

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._server_state.connections.add(self)  # type: ignore[arg-type]
        self._client, self._server = get_remote_addr(transport), get_local_addr(transport)  # type: ignore[arg-type]
        self._scheme = "https" if is_ssl(transport) else "http"  # type: ignore[arg-type]
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES - 65535)
        self._flush()
        self._idle_timer = self._loop.call_later(FIRST_REQUEST_SECONDS, self._end)

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._h2.receive_data(data):
                self._on_event(event)
        except (h2.exceptions.ProtocolError, ValueError, IndexError) as error:
            logger.debug("A client broke HTTP/2: %r", error)
            self._fail()  # h2 has prepared the GOAWAY
            return
        self._flush()
        if self._is_reading and self._transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._is_reading = False
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._server_state.connections.discard(self)
        self._stop_idle_timer()
        self.can_write.set()
        self._lose_all()

    def pause_writing(self) -> None:
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()
        if not self._is_reading:
            self._is_reading = True
            self._transport.resume_reading()

    # uvicorn

    def shutdown(self) -> None:
        """Take no new requests; go when those under way are answered."""
        self._end()

    # Streams

    def send_headers(self, stream: Stream, headers: Headers, *, is_last: bool = False) -> None:
        if self._is_open(stream):
            self._h2.send_headers(stream.id, headers, end_stream=is_last)
            stream.is_answered = is_last
            self._flush()

    async def send_data(self, stream: Stream, data: bytes, *, is_last: bool) -> None:
        rest = memoryview(data)
        while self._is_open(stream):
            if not self.can_write.is_set():
                await self.can_write.wait()
                continue
            room = self._h2.local_flow_control_window(stream.id)
            if rest and room <= 0:
                await self._wait_for_room(stream)
                continue
            piece = rest[: min(room, self._h2.max_outbound_frame_size)]
            rest = rest[len(piece) :]
            is_end = is_last and not rest
            self._h2.send_data(stream.id, cast(bytes, piece), end_stream=is_end)
            stream.is_answered = is_end
            self._flush()
            if not rest:
                return

    def acknowledge(self, stream: Stream) -> None:
        unread = stream.take_unread()
        if unread and not self._transport.is_closing():
            self._h2.acknowledge_received_data(unread, stream.id)
            self._flush()

    def break_off(self, stream: Stream, code: h2.errors.ErrorCodes) -> None:
        if self._transport.is_closing():
            return
        try:
            self._h2.reset_stream(stream.id, code)
        except h2.exceptions.ProtocolError:
            return  # it is closed already
        self._flush()

    def _is_open(self, stream: Stream) -> bool:
        return not stream.is_gone and not self._transport.is_closing()

    async def _wait_for_room(self, stream: Stream) -> None:
        waiting = self._windows[stream.id] = self._loop.create_future()
        try:
            await waiting
        finally:
            self._windows.pop(stream.id, None)

    def _wake_all(self) -> None:
        for waiting in self._windows.values():
            if not waiting.done():
                waiting.set_result(None)

    # Events

    def _on_event(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.DataReceived):
            self._on_data(event)
        elif isinstance(event, h2.events.WindowUpdated):
            waiting = self._windows.get(event.stream_id)
            if event.stream_id == 0:
                self._wake_all()
            elif waiting is not None and not waiting.done():
                waiting.set_result(None)
        elif isinstance(event, h2.events.RequestReceived):
            self._on_request(event)
        elif isinstance(event, h2.events.StreamEnded):
            if event.stream_id in self._streams:
                self._streams[event.stream_id].end_body()
        elif isinstance(event, h2.events.StreamReset):
            self._on_reset(event)
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            self._wake_all()  # a larger window counts for streams that are open
        elif isinstance(event, h2.events.ConnectionTerminated):
            self._end()

    def _on_request(self, event: h2.events.RequestReceived) -> None:
        stream_id = event.stream_id
        self._last_stream_id = stream_id
        if self._is_ending:
            self._h2.reset_stream(stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        try:
            head = RequestHead(event.headers, has_body=event.stream_ended is None)
        except Malformed:
            self._h2.reset_stream(stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR)
            return
        self._stop_idle_timer()
        stream = Stream(self, stream_id, head)
        self._streams[stream_id] = stream
        task = self._loop.create_task(self._serve(stream, self._scope(stream, head)))
        stream.task = task
        self._server_state.tasks.add(task)
        task.add_done_callback(self._server_state.tasks.discard)

    def _on_data(self, event: h2.events.DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.feed(event.data or b"", event.flow_controlled_length or 0)
        elif event.flow_controlled_length:
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def _on_reset(self, event: h2.events.StreamReset) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.lose()
        self._broken_off += 1
        if self._broken_off > MAX_BROKEN_OFF:
            logger.info("A client broke off too many requests; its connection ends.")
            self._h2.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
            self._fail()

    def _scope(self, stream: Stream, head: RequestHead) -> dict[str, Any]:
        path, _, query = head.target.partition(b"?")
        text = path.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "2",
            "server": self._server,
            "client": self._client,
            "scheme": self._scheme,
            "method": head.method.decode("ascii"),
            "root_path": "",
            "path": unquote(text) if "%" in text else text,
            "raw_path": path,
            "query_string": query,
            "headers": head.headers,
            "extensions": {"sandlot": stream},
        }

    async def _serve(self, stream: Stream, scope: dict[str, Any]) -> None:
        try:
            await self._app(scope, stream.receive, stream.send)
        except asyncio.CancelledError:
            if not stream.is_gone:
                raise
        except Exception:
            logger.exception("A request over HTTP/2 failed")
        finally:
            self._settle(stream)

    def _settle(self, stream: Stream) -> None:
        """The application is done with the stream, and so are we."""
        self._streams.pop(stream.id, None)
        if not stream.is_gone:
            if not stream.is_answered:
                self.break_off(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
            elif not stream.is_whole:
                # Answered without reading all: the client may stop sending.
                self.break_off(stream, h2.errors.ErrorCodes.NO_ERROR)
            else:
                self._broken_off = max(0, self._broken_off - 1)
        self.acknowledge(stream)
        if self._streams or self._transport.is_closing():
            return
        if self._is_ending:
            self._transport.close()
        else:
            self._idle_timer = self._loop.call_later(self._keep_alive_seconds, self._end)

    # Connection

    def _end(self) -> None:
        """Say that no new stream is served; close when the last one is done."""
        if self._is_ending or self._transport.is_closing():
            return
        self._is_ending = True
        # By hand: h2 would consider the connection closed and send nothing more.
        goaway = GoAwayFrame(0)
        goaway.last_stream_id = self._last_stream_id
        self._transport.write(goaway.serialize())
        if not self._streams:
            self._transport.close()

    def _fail(self) -> None:
        """Send the last words, close, and let nobody work for the client any longer."""
        self._is_ending = True
        self._flush()
        self._transport.close()
        self._lose_all()

    def _lose_all(self) -> None:
        for stream in list(self._streams.values()):
            stream.lose()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
