"""Requests and answers of the gateway: a thin, typed layer over ASGI."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from nodeagent.errors import AgentError
from nodeagent.exchange import Exchange

IDLE_BODY_SECONDS = 600.0

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client closed its connection; nobody is left to answer."""


class BodyTooLarge(AgentError):
    connect_code, http_status, error_code = "resource_exhausted", 413, "body_too_large"


def _has_length(headers: Headers) -> bool:
    return any(name == b"content-length" for name, _ in headers)


class Request:
    """One request. Header names are lower-case; a repeated header's first value counts."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: Headers = scope["headers"]
        self.exchange: Exchange = scope["extensions"]["sandlot"]
        self.response_started = False
        self.extra_headers: Headers = []  # added to whatever is answered (CORS)
        self._ends_with_connection = False
        self._receive = receive
        self._send = send
        self._query: dict[str, str] | None = None

    def header(self, name: bytes) -> str | None:
        for key, value in self.headers:
            if key == name:
                return value.decode("latin-1")
        return None

    @property
    def query(self) -> dict[str, str]:
        """The first value of each parameter; what is not UTF-8 keeps replacement characters."""
        if self._query is None:
            raw = self.scope["query_string"].decode("latin-1")
            pairs = parse_qsl(raw, keep_blank_values=True, max_num_fields=64, errors="replace")
            self._query = {}
            for name, value in pairs:
                self._query.setdefault(name, value)
        return self._query

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, never empty pieces. Raises: ClientGone, also when it stalls."""
        while True:
            try:
                async with asyncio.timeout(IDLE_BODY_SECONDS):
                    message = await self._receive()
            except TimeoutError:
                self.exchange.reset()
                raise ClientGone from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            if message["body"]:
                yield message["body"]
            if not message["more_body"]:
                return

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises: BodyTooLarge, ClientGone."""
        parts, size = [], 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > limit:
                raise BodyTooLarge(f"request body is larger than {limit} bytes")
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def start(self, status: int, headers: Headers) -> None:
        self.response_started = True
        if self.scope.get("http_version") == "1.0" and not _has_length(headers):
            self._ends_with_connection = True
            self.exchange.stream_until_close()
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, *self.extra_headers],
            }
        )

    async def write(self, data: bytes) -> None:
        """Send a piece of the body; waits while the client reads slower than we write."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        if self._ends_with_connection:
            await self.write(data)
            self.exchange.close_stream()
            return
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def answer(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """A whole answer of known length."""
        if status != 204:
            headers = [*headers, (b"content-length", b"%d" % len(body))]
        await self.start(status, headers)
        await self.finish(body)

    async def answer_json(self, status: int, value: Any, headers: Headers | None = None) -> None:
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        await self.answer(status, [*JSON_HEADERS, *(headers or [])], body)

    async def answer_text(self, status: int, text: str) -> None:
        await self.answer(status, TEXT_HEADERS, text.encode())

    async def answer_error(self, status: int, message: str) -> None:
        """The plain HTTP error of envd."""
        await self.answer_json(status, {"code": status, "message": message}, NOSNIFF)


JSON_HEADERS: Headers = [(b"content-type", b"application/json; charset=utf-8")]
TEXT_HEADERS: Headers = [(b"content-type", b"text/plain; charset=utf-8")]
NOSNIFF: Headers = [(b"x-content-type-options", b"nosniff")]
NO_STORE: Headers = [(b"cache-control", b"no-store")]
