"""GET /files: one file of a sandbox, streamed, with bounded memory."""

from __future__ import annotations

import posixpath
import secrets
from collections.abc import AsyncIterator

from isal import isal_zlib

from nodeagent.envd import negotiation
from nodeagent.errors import InvalidArgument
from nodeagent.guest.link import FileReader
from nodeagent.http import ClientGone, Headers, Request
from nodeagent.sandbox import LiveSandbox

# isal's level 1 gives what zlib's gives at about six times the speed.
GZIP_LEVEL, GZIP_WINDOW = 1, 31
_NEEDS_IDENTITY = ("range", "if-range", "if-modified-since", "if-none-match")


class Download:
    """Answers one request for one file."""

    def __init__(self, request: Request, sandbox: LiveSandbox, user: str) -> None:
        self.request = request
        self.sandbox = sandbox
        self.user = user
        self.path = request.query.get("path", "")
        self.headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in reversed(request.headers)
        }

    async def serve(self) -> None:
        """Raises: AgentError as long as nothing was answered."""
        try:
            reader = await self._open()
        except InvalidArgument as error:
            if error.message.startswith("path '"):
                raise
            text = f"error expanding and resolving path '{self.path}': {error.message}"
            raise InvalidArgument(text) from error
        try:
            encoding = negotiation.choose_encoding(
                self.headers.get("accept-encoding"),
                needs_identity=any(name in self.headers for name in _NEEDS_IDENTITY),
            )
            name = posixpath.basename(reader.path)
            headers: Headers = [
                (b"vary", b"Accept-Encoding"),
                (b"content-disposition", negotiation.content_disposition(name).encode()),
            ]
            if encoding == "gzip":
                await self._send_gzip(reader, name, headers)
            else:
                await self._send_identity(reader, name, headers)
        finally:
            reader.close()

    async def _open(self, offset: int = 0, length: int | None = None) -> FileReader:
        return await self.sandbox.link.open_read(
            user=self.user,
            path=self.path,
            default_workdir=self.sandbox.spec.default_workdir,
            offset=offset,
            length=length,
        )

    async def _send_gzip(self, reader: FileReader, name: str, headers: Headers) -> None:
        kind = negotiation.type_by_name(name) or "application/octet-stream"
        chunks = aiter(reader)
        chunk = await anext(chunks, b"")  # a read that fails must still become an error
        await self.request.start(
            200, [*headers, (b"content-encoding", b"gzip"), (b"content-type", kind.encode())]
        )
        packer = isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, GZIP_WINDOW)
        while chunk:
            if packed := packer.compress(chunk):
                await self.request.write(packed)
            chunk = await anext(chunks, b"")
        await self.request.finish(packer.flush())

    async def _send_identity(self, reader: FileReader, name: str, headers: Headers) -> None:
        status = negotiation.precondition_status(self.headers, reader.modified_at)
        headers.append((b"last-modified", negotiation.http_date(reader.modified_at).encode()))
        if status is not None:
            await self.request.answer(status, headers)
            return
        ranges = None
        if reader.is_regular and reader.size_bytes:
            headers.append((b"accept-ranges", b"bytes"))
            ranges = negotiation.wanted_ranges(self.headers, reader.size_bytes, reader.modified_at)
        if ranges is not None:
            await self._send_ranges(reader, name, headers, ranges)
            return
        chunks = aiter(reader)
        first = await anext(chunks, b"")
        kind = negotiation.type_by_name(name) or negotiation.type_by_content(first)
        headers.append((b"content-type", kind.encode()))
        if reader.size_bytes or not first:
            headers.append((b"content-length", b"%d" % reader.size_bytes))
            await self.request.start(200, headers)
            await self._send_exactly(first, chunks, reader.size_bytes)
            await self.request.finish()
            return
        # /proc and the like: content without a size.
        await self.request.start(200, headers)
        await self.request.write(first)
        async for chunk in chunks:
            await self.request.write(chunk)
        await self.request.finish()

    async def _send_exactly(self, first: bytes, chunks: AsyncIterator[bytes], size: int) -> None:
        """Send `size` bytes; a file cut short ends the connection: its length was promised."""
        left, chunk = size, first
        while left > 0:
            if not chunk:
                self.request.exchange.reset()
                raise ClientGone
            await self.request.write(chunk[:left])
            left -= len(chunk)
            if left > 0:
                chunk = await anext(chunks, b"")

    async def _send_ranges(
        self, reader: FileReader, name: str, headers: Headers, ranges: list[tuple[int, int]]
    ) -> None:
        size = reader.size_bytes
        if not ranges:
            headers.append((b"content-range", b"bytes */%d" % size))
            await self.request.answer(416, headers)
            return
        kind = negotiation.type_by_name(name) or "application/octet-stream"
        if len(ranges) == 1:
            offset, length = ranges[0]
            headers += [
                (b"content-type", kind.encode()),
                (b"content-range", _content_range(offset, length, size)),
                (b"content-length", b"%d" % length),
            ]
            await self.request.start(206, headers)
            await self._send_part(offset, length)
            await self.request.finish()
            return
        boundary = secrets.token_hex(16).encode()
        heads = [
            b"\r\n--%b\r\nContent-Type: %b\r\nContent-Range: %b\r\n\r\n"
            % (boundary, kind.encode(), _content_range(offset, length, size))
            for offset, length in ranges
        ]
        end = b"\r\n--%b--\r\n" % boundary
        total = sum(map(len, heads)) + sum(length for _, length in ranges) + len(end)
        headers += [
            (b"content-type", b"multipart/byteranges; boundary=" + boundary),
            (b"content-length", b"%d" % total),
        ]
        await self.request.start(206, headers)
        for head, (offset, length) in zip(heads, ranges, strict=True):
            await self.request.write(head)
            await self._send_part(offset, length)
        await self.request.finish(end)

    async def _send_part(self, offset: int, length: int) -> None:
        reader = await self._open(offset, length)
        try:
            chunks = aiter(reader)
            await self._send_exactly(await anext(chunks, b""), chunks, length)
        finally:
            reader.close()


def _content_range(offset: int, length: int, size: int) -> bytes:
    return b"bytes %d-%d/%d" % (offset, offset + length - 1, size)
