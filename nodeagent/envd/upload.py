"""POST /files: files into a sandbox, streamed to its disk.

Not atomic: a failed upload leaves what was written.
"""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator
from typing import Any

from isal import isal_zlib

from nodeagent.envd.connect import InflateError
from nodeagent.envd.multipart import Part, read_multipart
from nodeagent.errors import InvalidArgument, NoSpace
from nodeagent.guest.link import FileWriter
from nodeagent.http import Headers, Request
from nodeagent.sandbox import LiveSandbox

METADATA_PREFIX = b"x-metadata-"
XATTR_OVERHEAD = len("user.e2b.")
MAX_METADATA_KEY_BYTES = 246
MAX_METADATA_BYTES = 4096
INFLATE_BYTES = 256 * 1024


class Upload:
    """Stores the files of one request, in order."""

    def __init__(self, request: Request, sandbox: LiveSandbox, user: str) -> None:
        self.request = request
        self.sandbox = sandbox
        self.user = user
        self.path = request.query.get("path")
        self.content_type = request.header(b"content-type") or ""
        self.stored: list[dict[str, Any]] = []
        self._home: str | None = None

    async def store(self) -> list[dict[str, Any]]:
        """Raises: AgentError."""
        encoding = (self.request.header(b"content-encoding") or "identity").strip().lower()
        if encoding not in ("identity", "gzip"):
            raise InvalidArgument(
                f"error decompressing request body: unsupported Content-Encoding: {encoding},"
                " supported: [gzip]"
            )
        metadata = metadata_of(self.request.headers)
        body = self.request.chunks()
        if encoding == "gzip":
            body = inflate_stream(body)
        media_type = self.content_type.partition(";")[0].strip().lower()
        try:
            if media_type == "application/octet-stream":
                await self._store_raw(body, metadata)
            elif media_type.startswith("multipart/"):
                await self._store_multipart(body, metadata)
            else:
                raise InvalidArgument(
                    f"unsupported content type: {self.content_type},"
                    " expected multipart/form-data or application/octet-stream"
                )
        except NoSpace as error:
            length = self.request.header(b"content-length")
            if length is not None and error.message.startswith("not enough disk"):
                error.message = f"attempted to write {length} bytes: {error.message}"
            raise
        return self.stored

    async def _store_raw(self, body: AsyncIterator[bytes], metadata: dict[str, str]) -> None:
        if not self.path:
            raise InvalidArgument("path query parameter is required for raw body upload")
        writer = await self._open(self.path, metadata)
        try:
            async for chunk in body:
                await writer.write(chunk)
            self._add(await writer.finish())
        finally:
            writer.close()

    async def _store_multipart(self, body: AsyncIterator[bytes], metadata: dict[str, str]) -> None:
        writer: FileWriter | None = None
        try:
            async for event in read_multipart(self.content_type, body):
                if isinstance(event, Part):
                    if event.name == "file":
                        path = self._target(event)
                        await self._refuse_second(path)
                        writer = await self._open(path, metadata)
                elif writer is None:
                    continue  # of a part that is not ours
                elif event is None:
                    self._add(await writer.finish())
                    writer.close()
                    writer = None
                else:
                    await writer.write(event)
        finally:
            if writer is not None:
                writer.close()

    def _target(self, part: Part) -> str:
        if self.path:
            return self.path
        if not part.filename:
            raise InvalidArgument(
                "error getting multipart custom part file name: filename not found"
            )
        return part.filename

    async def _refuse_second(self, path: str) -> None:
        """Raises: InvalidArgument for a path this request has already written."""
        if not self.stored:
            return
        if self._home is None:
            found = await self.sandbox.link.call("resolve_user", user=self.user)
            self._home = found["home"]
        resolved = path if path.startswith("/") else posixpath.join(self._home, path)
        if path == "~" or path.startswith("~/"):
            resolved = posixpath.join(self._home, path[2:])
        resolved = posixpath.normpath(resolved)
        if any(posixpath.normpath(entry["path"]) == resolved for entry in self.stored):
            raise InvalidArgument(
                f"you cannot upload multiple files to the same path '{resolved}' in one"
                " upload request, only the first specified file was uploaded"
            )

    async def _open(self, path: str, metadata: dict[str, str]) -> FileWriter:
        return await self.sandbox.link.open_write(
            user=self.user,
            path=path,
            default_workdir=self.sandbox.spec.default_workdir,
            metadata=metadata,
        )

    def _add(self, entry: dict[str, Any]) -> None:
        answer = {"path": entry["path"], "name": entry["name"], "type": "file"}
        if entry.get("metadata"):
            answer["metadata"] = entry["metadata"]
        self.stored.append(answer)


def metadata_of(headers: Headers) -> dict[str, str]:
    """The file metadata a request carries. Raises: InvalidArgument."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name.startswith(METADATA_PREFIX):
            found.setdefault(name[len(METADATA_PREFIX) :].lower(), value)
    total = 0
    for key, value in found.items():
        if not key:
            raise InvalidArgument("invalid metadata: key must not be empty")
        if len(key) > MAX_METADATA_KEY_BYTES:
            raise InvalidArgument(
                f"invalid metadata: key is longer than {MAX_METADATA_KEY_BYTES} bytes"
            )
        if not _is_printable(key) or not _is_printable(value):
            raise InvalidArgument("invalid metadata: keys and values must be printable ASCII")
        total += XATTR_OVERHEAD + len(key) + len(value)
    if total > MAX_METADATA_BYTES:
        raise InvalidArgument(f"invalid metadata: larger than {MAX_METADATA_BYTES} bytes in total")
    return {key.decode(): value.decode() for key, value in found.items()}


def _is_printable(text: bytes) -> bool:
    return all(0x20 <= byte <= 0x7E for byte in text)


async def inflate_stream(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Gunzip a body piece by piece, each of bounded size. Raises: InvalidArgument."""
    decoder = isal_zlib.decompressobj(31)
    started = False
    try:
        async for chunk in body:
            started = True
            while chunk:
                if decoder.eof:  # several members one after the other are one stream
                    decoder = isal_zlib.decompressobj(31)
                plain = decoder.decompress(chunk, INFLATE_BYTES)
                if plain:
                    yield plain
                chunk = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
            while not decoder.eof and (plain := decoder.decompress(b"", INFLATE_BYTES)):
                yield plain
    except InflateError as error:
        raise InvalidArgument(f"error decompressing request body: {error}") from error
    if started and not decoder.eof:
        raise InvalidArgument("error decompressing request body: unexpected EOF")
