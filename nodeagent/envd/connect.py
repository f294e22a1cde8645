"""The Connect protocol over HTTP/1.1, as E2B's clients use it: framing, codecs, codes, deadlines.

Handlers take protobuf messages (which also check JSON input strictly) and give dictionaries in
protobuf's JSON mapping; output events are built by hand, since they are the hot path. Why:
docs/decisions/0002-connect-framing.md.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from isal import isal_zlib

from nodeagent.errors import (
    AgentError,
    DeadlineExceeded,
    InvalidArgument,
    QuotaExceeded,
    Unimplemented,
)
from nodeagent.http import BodyTooLarge, ClientGone, Headers, Request
from nodeagent.sandbox import LiveSandbox, Node

logger = logging.getLogger(__name__)

InflateError: type[Exception] = isal_zlib.error  # type: ignore[assignment]
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
HEADER_BYTES = 5
COMPRESSED, END_STREAM = 0x01, 0x02
DEFAULT_KEEPALIVE_SECONDS = 90.0
LAST_WORD_SECONDS = 5.0  # a client that does not read gets this long to take the end of its stream

_OBJECT = re.compile(rb"\s*\{")
_TIMEOUT = re.compile(r"^[0-9]{1,10}$")

# Connect's own table; the agent API uses other statuses for some of these codes.
HTTP_STATUS = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}


class Kind(Enum):
    UNARY = "unary"
    SERVER_STREAM = "server stream"
    CLIENT_STREAM = "client stream"


class Codec(Enum):
    """How messages are written. `dump` takes a dictionary in protobuf's JSON mapping."""

    JSON = "json"
    PROTO = "proto"

    def load(self, kind: type[Message], data: bytes) -> Message:
        """Raises: InvalidArgument."""
        try:
            if self is Codec.PROTO:
                return kind.FromString(data)
            data = data or b"{}"
            if not _OBJECT.match(data):  # the library would take an empty list for a message
                raise InvalidArgument("unmarshal message: expected a JSON object")
            return json_format.Parse(data, kind(), ignore_unknown_fields=True)
        except (DecodeError, json_format.ParseError, ValueError, RecursionError) as error:
            raise InvalidArgument(f"unmarshal message: {error}") from error

    def dump(self, kind: type[Message], value: dict[str, Any]) -> bytes:
        if self is Codec.PROTO:
            data: bytes = json_format.ParseDict(value, kind()).SerializeToString()
            return data
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")


@dataclass(frozen=True)
class Call:
    """What a handler knows of its call besides the message."""

    node: Node
    sandbox: LiveSandbox
    request: Request

    @property
    def asked_user(self) -> str | None:
        """The name in Basic authentication; the password is ignored."""
        header = self.request.header(b"authorization") or ""
        scheme, _, credentials = header.partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            decoded = base64.b64decode(credentials.strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
        name, colon, _ = decoded.partition(":")
        return name if colon else None

    def timeout_seconds(self) -> float | None:
        """Raises: InvalidArgument."""
        header = self.request.header(b"connect-timeout-ms")
        if header is None:
            return None
        if not _TIMEOUT.match(header):
            raise InvalidArgument(f"protocol error: invalid timeout {header[:64]!r}")
        return int(header) / 1000 or None

    def keepalive_seconds(self) -> float:
        header = self.request.header(b"keepalive-ping-interval") or ""
        seconds = int(header) if _TIMEOUT.match(header) else 0
        return float(seconds) if seconds else DEFAULT_KEEPALIVE_SECONDS


class Stream:
    """The answer of a server stream."""

    def __init__(self, request: Request, codec: Codec, kind: type[Message]) -> None:
        self.codec = codec
        self._request = request
        self._kind = kind

    async def send(self, value: dict[str, Any]) -> None:
        await self._request.write(envelope(0, self.codec.dump(self._kind, value)))

    async def send_raw(self, envelopes: bytes) -> None:
        """Whole envelopes, already encoded with this stream's codec."""
        await self._request.write(envelopes)


UnaryHandler = Callable[[Call, Any], Awaitable[dict[str, Any]]]
ServerHandler = Callable[[Call, Any, Stream], Awaitable[None]]
ClientHandler = Callable[[Call, AsyncIterator[Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Method:
    kind: Kind
    takes: type[Message]
    gives: type[Message]
    handler: Any  # UnaryHandler, ServerHandler or ClientHandler, by kind


def envelope(flags: int, payload: bytes) -> bytes:
    return b"%c%b%b" % (flags, len(payload).to_bytes(4, "big"), payload)


def error_body(error: AgentError) -> bytes:
    value = {"code": error.connect_code, "message": error.message}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def end_of_stream(error: AgentError | None) -> bytes:
    return envelope(END_STREAM, b'{"error":%b}' % error_body(error) if error else b"{}")


def inflate(data: bytes) -> bytes:
    """A gzip payload of bounded size. Raises: InvalidArgument, QuotaExceeded."""
    decoder = isal_zlib.decompressobj(31)
    try:
        plain = decoder.decompress(data, MAX_MESSAGE_BYTES + 1)
    except InflateError as error:
        raise InvalidArgument(f"decompress message: {error}") from error
    if len(plain) > MAX_MESSAGE_BYTES:
        raise QuotaExceeded(f"message is larger than {MAX_MESSAGE_BYTES} bytes")
    if not decoder.eof:
        raise InvalidArgument("decompress message: unexpected EOF")
    return plain


class EnvelopeReader:
    """Cuts a request body into messages, wherever its chunks were cut. Holds a bounded one."""

    def __init__(self, encoding: str | None) -> None:
        self._encoding = encoding
        self._buffer = bytearray()
        self._size: int | None = None  # of the payload being received
        self._flags = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by `data`. Raises: InvalidArgument, QuotaExceeded, Unimplemented."""
        self._buffer += data
        complete: list[bytes] = []
        while True:
            if self._size is None:
                if len(self._buffer) < HEADER_BYTES:
                    return complete
                self._flags = self._buffer[0]
                self._size = int.from_bytes(self._buffer[1:HEADER_BYTES], "big")
                del self._buffer[:HEADER_BYTES]
                self._check_header()
            if len(self._buffer) < self._size:
                return complete
            payload = bytes(self._buffer[: self._size])
            del self._buffer[: self._size]
            self._size = None
            complete.append(inflate(payload) if self._flags & COMPRESSED else payload)

    def finish(self) -> None:
        """Raises: InvalidArgument when the body ended inside an envelope."""
        if self._size is not None or self._buffer:
            raise InvalidArgument("protocol error: incomplete envelope: unexpected EOF")

    def _check_header(self) -> None:
        assert self._size is not None
        if self._flags & ~COMPRESSED:
            raise InvalidArgument(f"protocol error: invalid envelope flags {self._flags:#04x}")
        if self._size > MAX_MESSAGE_BYTES:
            raise QuotaExceeded(
                f"message size {self._size} is larger than configured max {MAX_MESSAGE_BYTES}"
            )
        if self._flags & COMPRESSED:
            if self._encoding in (None, "", "identity"):
                raise InvalidArgument("protocol error: sent compressed message without compression")
            check_encoding(self._encoding)


def check_encoding(encoding: str | None) -> None:
    if encoding not in (None, "", "identity", "gzip"):
        raise Unimplemented(f'unknown compression "{encoding}": supported encodings are gzip')


async def serve(node: Node, sandbox: LiveSandbox, request: Request, method: Method) -> None:
    """Answer one call of a service. Raises: ClientGone."""
    if request.method != "POST":
        await request.answer(405, [(b"allow", b"POST")])
        return
    content_type = request.header(b"content-type") or ""
    media_type = content_type.partition(";")[0].strip().lower()
    prefix = "application/" if method.kind is Kind.UNARY else "application/connect+"
    codec = {f"{prefix}json": Codec.JSON, f"{prefix}proto": Codec.PROTO}.get(media_type)
    if codec is None:
        accepted = f"{prefix}json, {prefix}proto".encode()
        await request.answer(415, [(b"accept-post", accepted)])
        return
    call = Call(node, sandbox, request)
    headers: Headers = [(b"content-type", media_type.encode())]
    if method.kind is Kind.UNARY:
        await _serve_unary(call, method, codec, headers)
    else:
        await _serve_stream(call, method, codec, headers)


async def _serve_unary(call: Call, method: Method, codec: Codec, headers: Headers) -> None:
    request = call.request
    try:
        encoding = request.header(b"content-encoding")
        check_encoding(encoding)
        try:
            data = await request.body(MAX_MESSAGE_BYTES)
        except BodyTooLarge as error:
            raise QuotaExceeded(error.message) from error
        message = codec.load(method.takes, inflate(data) if encoding == "gzip" else data)
        async with deadline(call.timeout_seconds()):
            answer = await method.handler(call, message)
        body = codec.dump(method.gives, answer)
    except AgentError as error:
        status = HTTP_STATUS[error.connect_code]
        await request.answer(status, [(b"content-type", b"application/json")], error_body(error))
    except ClientGone:
        raise
    except Exception:
        logger.exception("A call failed", extra={"sandbox_id": call.sandbox.sandbox_id})
        internal = AgentError("internal error")
        await request.answer(500, [(b"content-type", b"application/json")], error_body(internal))
    else:
        await request.answer(200, headers, body)


async def _serve_stream(call: Call, method: Method, codec: Codec, headers: Headers) -> None:
    request = call.request
    failure: AgentError | None = None
    answer = b""
    messages = _messages(request, method, codec)
    try:
        if method.kind is Kind.SERVER_STREAM:
            message = await _only_one(messages)
            await request.start(200, headers)
            await method.handler(call, message, Stream(request, codec, method.gives))
        else:
            async with deadline(call.timeout_seconds()):
                value = await method.handler(call, messages)
            answer = envelope(0, codec.dump(method.gives, value))
    except AgentError as error:
        failure = error
    except ClientGone:
        raise
    except Exception:
        logger.exception("A stream failed", extra={"sandbox_id": call.sandbox.sandbox_id})
        failure = AgentError("internal error")
    try:
        async with asyncio.timeout(LAST_WORD_SECONDS):
            if not request.response_started:
                await request.start(200, headers)
            await request.finish(answer + end_of_stream(failure))
    except TimeoutError:
        request.exchange.reset()


async def _messages(request: Request, method: Method, codec: Codec) -> AsyncIterator[Message]:
    reader = EnvelopeReader(request.header(b"connect-content-encoding"))
    async for chunk in request.chunks():
        for payload in reader.feed(chunk):
            yield codec.load(method.takes, payload)
    reader.finish()


async def _only_one(messages: AsyncIterator[Message]) -> Message:
    found: Message | None = None
    async for message in messages:
        if found is not None:
            raise Unimplemented("protocol error: unary request has more than one message")
        found = message
    if found is None:
        raise Unimplemented("protocol error: unary request has no message")
    return found


class deadline:
    """`asyncio.timeout`, but its end is Connect's. None: no deadline."""

    def __init__(self, seconds: float | None) -> None:
        self._scope = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()

    async def __aexit__(self, *exc_info: Any) -> None:
        try:
            await self._scope.__aexit__(*exc_info)
        except TimeoutError as error:
            raise DeadlineExceeded("context deadline exceeded") from error
