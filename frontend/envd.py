"""A small client of envd, the data-plane protocol of a sandbox, for the pages that work inside one.

The pages reach a sandbox as any SDK does: through its node's gateway, with the sandbox's own access
token. Connect protocol with JSON messages; terminals asynchronously, files synchronously.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

ENVD_PORT = 49983
CONNECT_TIMEOUT_SECONDS = 5.0
UNARY_TIMEOUT_SECONDS = 20.0
KEEPALIVE_SECONDS = 30
# A stream beats every KEEPALIVE_SECONDS; twice that without a byte means the node is gone.
STREAM_SILENCE_SECONDS = 70.0
MAX_ENVELOPE_BYTES = 4 * 1024 * 1024
END_STREAM = 0x02


class EnvdError(Exception):
    """envd, or the gateway before it, refused or did not answer. `code`: the Connect code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where and how one sandbox is reached."""

    gateway_url: str
    sandbox_id: str
    access_token: str | None = None

    def headers(self, user: str | None = None) -> dict[str, str]:
        headers = {"E2b-Sandbox-Id": self.sandbox_id, "E2b-Sandbox-Port": str(ENVD_PORT)}
        if self.access_token:
            headers["X-Access-Token"] = self.access_token
        if user:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:".encode()).decode()
        return headers


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    name: str
    path: str
    is_directory: bool
    is_symlink: bool
    size_bytes: int
    permissions: str
    owner: str
    modified_at: datetime | None

    @classmethod
    def of(cls, raw: dict[str, Any]) -> FileEntry:
        modified = raw.get("modifiedTime")
        return cls(
            name=raw.get("name", ""),
            path=raw.get("path", ""),
            is_directory=raw.get("type") == "FILE_TYPE_DIRECTORY",
            is_symlink="symlinkTarget" in raw,
            size_bytes=int(raw.get("size", 0)),
            permissions=raw.get("permissions", ""),
            owner=raw.get("owner", ""),
            modified_at=datetime.fromisoformat(modified) if modified else None,
        )


class Files:
    """File calls of one sandbox. Use as a context manager. Every method raises EnvdError."""

    def __init__(self, door: Door, transport: httpx.BaseTransport | None = None) -> None:
        self._http = httpx.Client(
            base_url=door.gateway_url,
            headers=door.headers(),
            timeout=httpx.Timeout(UNARY_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
            transport=transport,
            trust_env=False,
        )

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def list(self, path: str) -> list[FileEntry]:
        reply = self._call("ListDir", {"path": path, "depth": 1})
        return [FileEntry.of(entry) for entry in reply.get("entries", [])]

    def stat(self, path: str) -> FileEntry:
        return FileEntry.of(self._call("Stat", {"path": path})["entry"])

    def make_directory(self, path: str) -> None:
        self._call("MakeDir", {"path": path})

    def move(self, source: str, destination: str) -> None:
        self._call("Move", {"source": source, "destination": destination})

    def remove(self, path: str) -> None:
        self._call("Remove", {"path": path})

    def read(self, path: str, max_bytes: int) -> bytes:
        """At most `max_bytes` of the file."""
        found = b""
        for chunk in self.stream(path):
            found += chunk
            if len(found) >= max_bytes:
                break
        return found[:max_bytes]

    def stream(self, path: str) -> Iterator[bytes]:
        try:
            with self._http.stream(
                "GET", "/files", params={"path": path}, headers={"Accept-Encoding": "identity"}
            ) as reply:
                if reply.status_code >= 400:
                    reply.read()
                    raise _error_of(reply)
                yield from reply.iter_bytes(64 * 1024)
        except httpx.HTTPError as error:
            raise _unreachable(error) from error

    def write(self, path: str, body: Iterator[bytes] | bytes) -> None:
        try:
            reply = self._http.post(
                "/files",
                params={"path": path},
                content=body,
                headers={"Content-Type": "application/octet-stream"},
            )
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        if reply.status_code >= 400:
            raise _error_of(reply)

    def _call(self, method: str, message: dict[str, Any]) -> dict[str, Any]:
        try:
            reply = self._http.post(f"/filesystem.Filesystem/{method}", json=message)
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        if reply.status_code >= 400:
            raise _error_of(reply)
        return dict(reply.json())


class Processes:
    """Process calls of one sandbox, asynchronous. Every method raises EnvdError."""

    def __init__(self, door: Door, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._http = httpx.AsyncClient(
            base_url=door.gateway_url,
            headers=door.headers(),
            timeout=httpx.Timeout(UNARY_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
            transport=transport,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def list(self) -> list[dict[str, Any]]:
        reply = await self._call("List", {})
        return list(reply.get("processes", []))

    async def send_pty(self, pid: int, data: bytes) -> None:
        encoded = base64.b64encode(data).decode()
        await self._call("SendInput", {"process": {"pid": pid}, "input": {"pty": encoded}})

    async def resize(self, pid: int, cols: int, rows: int) -> None:
        size = {"size": {"cols": cols, "rows": rows}}
        await self._call("Update", {"process": {"pid": pid}, "pty": size})

    async def kill(self, pid: int) -> None:
        await self._call("SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})

    def start_shell(
        self, *, cols: int, rows: int, tag: str
    ) -> Any:  # an async context manager of events
        """A login shell on a new PTY, as the official SDK's `pty.create` starts it."""
        environment = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
        return self._stream(
            "Start",
            {
                "process": {"cmd": "/bin/bash", "args": ["-i", "-l"], "envs": environment},
                "pty": {"size": {"cols": cols, "rows": rows}},
                "tag": tag,
            },
        )

    def connect(self, pid: int) -> Any:  # an async context manager of events
        return self._stream("Connect", {"process": {"pid": pid}})

    @asynccontextmanager
    async def _stream(
        self, method: str, message: dict[str, Any]
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        payload = json.dumps(message).encode()
        request = self._http.build_request(
            "POST",
            f"/process.Process/{method}",
            content=struct.pack(">BI", 0, len(payload)) + payload,
            headers={
                "Content-Type": "application/connect+json",
                "Connect-Protocol-Version": "1",
                "Keepalive-Ping-Interval": str(KEEPALIVE_SECONDS),
            },
            timeout=httpx.Timeout(STREAM_SILENCE_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
        )
        try:
            reply = await self._http.send(request, stream=True)
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        try:
            if reply.status_code != 200:
                await reply.aread()
                raise _error_of(reply)
            yield _events(reply)
        finally:
            await reply.aclose()

    async def _call(self, method: str, message: dict[str, Any]) -> dict[str, Any]:
        try:
            reply = await self._http.post(f"/process.Process/{method}", json=message)
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        if reply.status_code >= 400:
            raise _error_of(reply)
        return dict(reply.json())


async def _events(reply: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    buffer = bytearray()
    try:
        async for chunk in reply.aiter_raw():
            buffer += chunk
            while len(buffer) >= 5:
                flags, length = struct.unpack_from(">BI", buffer)
                if length > MAX_ENVELOPE_BYTES:
                    raise EnvdError("internal", "the sandbox sent a message that is too large")
                if len(buffer) < 5 + length:
                    break
                payload = json.loads(bytes(buffer[5 : 5 + length]) or b"{}")
                del buffer[: 5 + length]
                if flags & END_STREAM:
                    error = payload.get("error")
                    if error:
                        raise EnvdError(error.get("code", "unknown"), error.get("message", ""))
                    return
                yield payload.get("event", {})
    except httpx.HTTPError as error:
        raise _unreachable(error) from error


def _unreachable(error: httpx.HTTPError) -> EnvdError:
    return EnvdError("unavailable", f"the sandbox's node does not answer ({type(error).__name__})")


def _error_of(reply: httpx.Response) -> EnvdError:
    try:
        body = reply.json()
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    code = body.get("code")
    if not isinstance(code, str):
        code = {400: "invalid_argument", 401: "unauthenticated", 404: "not_found"}.get(
            reply.status_code, "unavailable" if reply.status_code in (502, 503) else "unknown"
        )
    return EnvdError(code, str(body.get("message") or f"HTTP {reply.status_code}"))
