"""A multipart/form-data body as a stream of parts, over python-multipart's parser.

Memory does not grow with the body.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.utils import decode_params, unquote

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from nodeagent.errors import AgentError

MAX_HEADER_BYTES = 16 * 1024  # of one part
MAX_PARTS = 100_000

_PARAMETER = re.compile(r';\s*([^=;\s"]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\])')


@dataclass(frozen=True)
class Part:
    """The head of a part. filename: complete, slashes kept; None when the part has none."""

    name: str
    filename: str | None


Event = Part | bytes | None  # a part begins, some of its content, it ends


class MultipartError(AgentError):
    """The body is not what its content type says."""


def boundary_of(content_type: str) -> bytes:
    """Raises: MultipartError."""
    boundary = parameters_of(content_type).get("boundary", "")
    if not 0 < len(boundary) <= 70:
        raise MultipartError(
            "error parsing multipart form: no multipart boundary param in Content-Type"
        )
    return boundary.encode("latin-1", "replace")


def parameters_of(header: str) -> dict[str, str]:
    """The parameters of a header, with RFC 2231 and quoted-string decoding; names in lower case."""
    raw = [("", "")]
    for name, value in _PARAMETER.findall(header):
        value = value.strip()
        if value.startswith('"'):
            # RFC 2231's continuations may be quoted too; email.utils wants the quotes there.
            value = value if "*" in name else _ESCAPED.sub(r"\1", value[1:-1])
        raw.append((name.lower(), value))
    plain = {name: value for name, value in reversed(raw[1:]) if "*" not in name}
    extended = [raw[0], *(pair for pair in raw[1:] if "*" in pair[0])]
    decoded: dict[str, str] = {}
    for name, found in decode_params(extended)[1:]:
        if isinstance(found, tuple):
            charset, _, text = found
            try:
                decoded[name] = (
                    unquote(text).encode("latin-1").decode(charset or "utf-8", "replace")
                )
            except (LookupError, UnicodeEncodeError):
                decoded[name] = unquote(text)
        else:
            decoded[name] = unquote(found)
    return {**plain, **decoded}  # the extended form wins, RFC 7578's and browsers' practice


class MultipartReader:
    """Feed it the body; `events` of each piece come in order."""

    def __init__(self, content_type: str) -> None:
        self._events: list[Event] = []
        self._field = bytearray()
        self._value = bytearray()
        self._disposition = ""
        self._header_bytes = 0
        self._parts = 0
        self._is_complete = False
        try:
            self._parser = MultipartParser(
                boundary_of(content_type),
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except (FormParserError, ValueError) as error:
            raise MultipartError(f"error parsing multipart form: {error}") from error

    def feed(self, data: bytes) -> list[Event]:
        """Raises: MultipartError."""
        try:
            self._parser.write(data)
        except (FormParserError, ValueError) as error:
            raise MultipartError(f"error reading form: {error}") from error
        events, self._events = self._events, []
        return events

    def finish(self) -> None:
        """Raises: MultipartError when the closing boundary is missing."""
        if not self._is_complete:
            raise MultipartError("error reading form: multipart: NextPart: unexpected EOF")

    def _on_part_begin(self) -> None:
        self._disposition, self._header_bytes = "", 0
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise MultipartError(f"error reading form: more than {MAX_PARTS} parts")

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise MultipartError("error reading form: part header is too large")

    def _on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            try:
                self._disposition = self._value.decode()
            except UnicodeDecodeError:
                self._disposition = self._value.decode("latin-1")
        self._field.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        parameters = parameters_of(self._disposition)
        self._events.append(Part(parameters.get("name", ""), parameters.get("filename")))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if end > start:
            self._events.append(data[start:end])

    def _on_part_end(self) -> None:
        self._events.append(None)

    def _on_end(self) -> None:
        self._is_complete = True


async def read_multipart(content_type: str, body: AsyncIterator[bytes]) -> AsyncIterator[Event]:
    """Raises: MultipartError."""
    reader = MultipartReader(content_type)
    async for chunk in body:
        for event in reader.feed(chunk):
            yield event
    reader.finish()
