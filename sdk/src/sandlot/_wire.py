"""Builds requests and reads replies, without any I/O. The sync and the async client share it.

Sources: E2B's REST API (sandboxes) and its envd protocol (Connect with JSON; plain HTTP for file
content).
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from sandlot._errors import (
    InvalidArgument,
    SandlotError,
    Unauthenticated,
    Unavailable,
    error_for_connect_code,
    error_for_status,
)
from sandlot._models import (
    FileEntry,
    FileType,
    ProcessInfo,
    SandboxHandle,
    SandboxInfo,
    SandboxState,
)

ENVD_PORT = 49983
KEEPALIVE_SECONDS = 50
# A keepalive comes every 50 s on a quiet stream, so longer silence means a dead peer.
STREAM_SILENCE_SECONDS = 75.0
MAX_RETRIES = 3
MAX_RETRY_DELAY_SECONDS = 10.0
MAX_ENVELOPE_BYTES = 64 * 1024 * 1024

_RETRIED = frozenset({429, 502, 503, 504})
_FLAG_COMPRESSED = 0x01
_FLAG_END = 0x02


@dataclass(frozen=True)
class Config:
    """Where to go and as whom, resolved once per client."""

    api_key: str = field(repr=False)
    api_url: str
    sandbox_url: str | None
    domain: str | None
    request_timeout_seconds: float = 60.0

    @classmethod
    def resolve(
        cls,
        *,
        api_key: str | None = None,
        api_url: str | None = None,
        sandbox_url: str | None = None,
        domain: str | None = None,
        request_timeout_seconds: float | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Config:
        """Arguments win over `SANDLOT_*`, which win over `E2B_*`.

        Raises: Unauthenticated without a key; InvalidArgument for a timeout that is not positive.
        """
        env = os.environ if environ is None else environ

        def pick(given: str | None, name: str) -> str | None:
            return given or env.get(f"SANDLOT_{name}") or env.get(f"E2B_{name}") or None

        key = pick(api_key, "API_KEY")
        if key is None:
            raise Unauthenticated("no API key: set SANDLOT_API_KEY or pass api_key")
        timeout = 60.0 if request_timeout_seconds is None else request_timeout_seconds
        if timeout <= 0:
            raise InvalidArgument("request_timeout_seconds must be greater than 0")
        domain = pick(domain, "DOMAIN")
        api_url = pick(api_url, "API_URL")
        sandbox_url = pick(sandbox_url, "SANDBOX_URL")
        if api_url is None:
            api_url = f"https://api.{domain}" if domain else "http://localhost:8000"
        if sandbox_url is None and domain is None:
            sandbox_url = "http://localhost:8001"
        return cls(
            api_key=key,
            api_url=api_url.rstrip("/"),
            sandbox_url=sandbox_url.rstrip("/") if sandbox_url else None,
            domain=domain,
            request_timeout_seconds=timeout,
        )

    def envd_url(self, handle: SandboxHandle) -> str:
        return self.sandbox_url or f"https://{self.host(handle, ENVD_PORT)}"

    def host(self, handle: SandboxHandle, port: int) -> str:
        return f"{port}-{handle.sandbox_id}.{handle.domain or self.domain or 'localhost'}"


@dataclass(frozen=True)
class Request:
    """One HTTP request. `is_replayable`: doing it twice does no harm, so a 503 may be retried."""

    method: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    is_replayable: bool = True


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


# --- control plane


def create_sandbox(
    config: Config,
    *,
    template: str,
    timeout_seconds: int | None,
    metadata: Mapping[str, str] | None,
    envs: Mapping[str, str] | None,
    allow_internet_access: bool | None,
    idempotency_key: str,
) -> Request:
    body: dict[str, Any] = {"templateID": template}
    if timeout_seconds is not None:
        if timeout_seconds <= 0:
            raise InvalidArgument("timeout_seconds must be greater than 0")
        body["timeout"] = timeout_seconds
    if metadata:
        body["metadata"] = dict(metadata)
    if envs:
        body["envVars"] = dict(envs)
    if allow_internet_access is not None:
        body["allow_internet_access"] = allow_internet_access
    request = _api(config, "POST", "/v2/sandboxes", body)
    request.headers["Idempotency-Key"] = idempotency_key
    return request


def connect_sandbox(config: Config, sandbox_id: str, *, timeout_seconds: int | None) -> Request:
    body = {} if timeout_seconds is None else {"timeout": timeout_seconds}
    return _api(config, "POST", f"/v2/sandboxes/{_segment(sandbox_id)}/connect", body)


def get_sandbox(config: Config, sandbox_id: str) -> Request:
    return _api(config, "GET", f"/sandboxes/{_segment(sandbox_id)}")


def kill_sandbox(config: Config, sandbox_id: str) -> Request:
    return _api(config, "DELETE", f"/sandboxes/{_segment(sandbox_id)}")


def set_timeout(config: Config, sandbox_id: str, timeout_seconds: int) -> Request:
    if timeout_seconds < 0:
        raise InvalidArgument("timeout_seconds must not be negative")
    path = f"/sandboxes/{_segment(sandbox_id)}/timeout"
    return _api(config, "POST", path, {"timeout": timeout_seconds})


def parse_handle(reply: Reply) -> SandboxHandle:
    raw = _json_object(reply)
    try:
        return SandboxHandle(
            sandbox_id=str(raw["sandboxID"]),
            template_id=str(raw["templateID"]),
            envd_version=str(raw["envdVersion"]),
            access_token=raw.get("envdAccessToken"),
            traffic_token=raw.get("trafficAccessToken"),
            domain=raw.get("domain"),
        )
    except KeyError as missing:
        raise SandlotError(f"the server's reply lacks {missing}", status=reply.status) from missing


def parse_info(reply: Reply) -> SandboxInfo:
    raw = _json_object(reply)
    try:
        return SandboxInfo(
            sandbox_id=raw["sandboxID"],
            template_id=raw["templateID"],
            state=SandboxState(raw["state"]),
            started_at=_instant(raw["startedAt"]),
            end_at=_instant(raw["endAt"]),
            cpu_count=raw["cpuCount"],
            memory_mb=raw["memoryMB"],
            disk_size_mb=raw.get("diskSizeMB", 0),
            alias=raw.get("alias"),
            metadata=raw.get("metadata") or {},
        )
    except KeyError as missing:
        raise SandlotError(f"the server's reply lacks {missing}", status=reply.status) from missing


# --- data plane: plain HTTP


def health(config: Config, handle: SandboxHandle) -> Request:
    return Request("GET", f"{config.envd_url(handle)}/health", _envd_headers(handle, None))


def read_file(config: Config, handle: SandboxHandle, path: str, *, user: str | None) -> Request:
    return Request(
        "GET",
        f"{config.envd_url(handle)}/files",
        _envd_headers(handle, None),
        _file_params(path, user),
    )


def write_file(
    config: Config, handle: SandboxHandle, path: str, data: bytes, *, user: str | None
) -> Request:
    headers = {**_envd_headers(handle, None), "Content-Type": "application/octet-stream"}
    url = f"{config.envd_url(handle)}/files"
    return Request("POST", url, headers, _file_params(path, user), content=data)


def parse_written(reply: Reply) -> FileEntry:
    raw = _json(reply)
    if not isinstance(raw, list) or not raw:
        raise SandlotError("the server did not say what it wrote", status=reply.status)
    return FileEntry(name=raw[0]["name"], path=raw[0]["path"], type=FileType.FILE)


# --- data plane: Connect


def list_dir(
    config: Config, handle: SandboxHandle, path: str, *, depth: int, user: str | None
) -> Request:
    if depth < 1:
        raise InvalidArgument("depth must be at least 1")
    body = {"path": path, "depth": depth}
    return _rpc(config, handle, "filesystem.Filesystem/ListDir", body, user)


def stat_file(config: Config, handle: SandboxHandle, path: str, *, user: str | None) -> Request:
    return _rpc(config, handle, "filesystem.Filesystem/Stat", {"path": path}, user)


def make_dir(config: Config, handle: SandboxHandle, path: str, *, user: str | None) -> Request:
    return _rpc(config, handle, "filesystem.Filesystem/MakeDir", {"path": path}, user)


def move_file(
    config: Config, handle: SandboxHandle, source: str, destination: str, *, user: str | None
) -> Request:
    body = {"source": source, "destination": destination}
    # Not replayable: the second time the source is missing.
    return _rpc(config, handle, "filesystem.Filesystem/Move", body, user, is_replayable=False)


def remove_file(config: Config, handle: SandboxHandle, path: str, *, user: str | None) -> Request:
    return _rpc(config, handle, "filesystem.Filesystem/Remove", {"path": path}, user)


def list_processes(config: Config, handle: SandboxHandle) -> Request:
    return _rpc(config, handle, "process.Process/List", {}, None)


def send_stdin(config: Config, handle: SandboxHandle, pid: int, data: bytes) -> Request:
    text = base64.b64encode(data).decode("ascii")
    body = {"process": {"pid": pid}, "input": {"stdin": text}}
    return _rpc(config, handle, "process.Process/SendInput", body, None, is_replayable=False)


def close_stdin(config: Config, handle: SandboxHandle, pid: int) -> Request:
    return _rpc(config, handle, "process.Process/CloseStdin", {"process": {"pid": pid}}, None)


def kill_process(config: Config, handle: SandboxHandle, pid: int) -> Request:
    body = {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"}
    return _rpc(config, handle, "process.Process/SendSignal", body, None, is_replayable=False)


def start_command(
    config: Config,
    handle: SandboxHandle,
    command: str,
    *,
    envs: Mapping[str, str] | None,
    cwd: str | None,
    user: str | None,
    stdin: bool,
    timeout_seconds: float | None,
) -> Request:
    process: dict[str, Any] = {"cmd": "/bin/bash", "args": ["-l", "-c", command]}
    if envs:
        process["envs"] = dict(envs)
    if cwd is not None:
        process["cwd"] = cwd
    body = {"process": process, "stdin": stdin}
    return _stream(config, handle, "process.Process/Start", body, user, timeout_seconds)


def connect_command(
    config: Config, handle: SandboxHandle, pid: int, *, timeout_seconds: float | None
) -> Request:
    body = {"process": {"pid": pid}}
    return _stream(config, handle, "process.Process/Connect", body, None, timeout_seconds)


def parse_entries(reply: Reply) -> list[FileEntry]:
    entries = _json_object(reply).get("entries") or []
    return [_entry(raw) for raw in entries]


def parse_entry(reply: Reply) -> FileEntry:
    return _entry(_json_object(reply).get("entry") or {})


def parse_processes(reply: Reply) -> list[ProcessInfo]:
    found = []
    for raw in _json_object(reply).get("processes") or []:
        config = raw.get("config") or {}
        found.append(
            ProcessInfo(
                pid=raw.get("pid", 0),
                cmd=config.get("cmd", ""),
                args=list(config.get("args") or []),
                cwd=config.get("cwd"),
                tag=raw.get("tag"),
            )
        )
    return found


@dataclass(frozen=True)
class Started:
    pid: int


@dataclass(frozen=True)
class Output:
    stream: str  # "stdout" or "stderr"
    data: bytes


@dataclass(frozen=True)
class Ended:
    exit_code: int
    status: str


ProcessEvent = Started | Output | Ended


class EventReader:
    """Turns the bytes of a process stream into events; feed it chunks as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.is_complete = False

    def feed(self, chunk: bytes) -> Iterator[ProcessEvent]:
        """Raises: the error the server ended the stream with; SandlotError off the protocol."""
        self._buffer += chunk
        while len(self._buffer) >= 5:
            flags, length = struct.unpack(">BI", self._buffer[:5])
            if length > MAX_ENVELOPE_BYTES:
                raise SandlotError(f"the server sent a message of {length} bytes")
            if len(self._buffer) < 5 + length:
                return
            payload = bytes(self._buffer[5 : 5 + length])
            del self._buffer[: 5 + length]
            if flags & _FLAG_COMPRESSED:
                raise SandlotError("the server sent a compressed message, which was not asked for")
            message = _loads(payload)
            if flags & _FLAG_END:
                self.is_complete = True
                if error := message.get("error"):
                    raise error_for_connect_code(
                        str(error.get("code", "unknown")), str(error.get("message", ""))
                    )
                return
            event = _process_event(message.get("event") or {})
            if event is not None:
                yield event


def _process_event(event: dict[str, Any]) -> ProcessEvent | None:
    if start := event.get("start"):
        return Started(pid=int(start.get("pid", 0)))
    if data := event.get("data"):
        for stream in ("stdout", "stderr", "pty"):
            if stream in data:
                name = "stdout" if stream == "pty" else stream
                return Output(name, base64.b64decode(data[stream]))
    if (end := event.get("end")) is not None:
        return Ended(int(end.get("exitCode", 0)), str(end.get("status", "")))
    return None  # a keepalive, or a kind of event newer than this client


# --- replies and retries


def check(reply: Reply) -> Reply:
    """The reply itself when it is a success. Raises: the error it names."""
    if reply.status < 300:
        return reply
    message, error_code, connect_code = f"HTTP status {reply.status}", None, None
    try:
        raw = json.loads(reply.body)
    except ValueError:
        if text := reply.body.decode("utf-8", "replace").strip():
            message = text[:500]
    else:
        if isinstance(raw, dict):
            message = str(raw.get("message") or message)
            error_code = raw.get("error_code")
            if isinstance(raw.get("code"), str):
                connect_code = raw["code"]
    request_id = reply.headers.get("x-request-id")
    if connect_code and not connect_code.isdigit():
        raise error_for_connect_code(
            connect_code, message, status=reply.status, request_id=request_id
        )
    raise error_for_status(reply.status, message, error_code=error_code, request_id=request_id)


def retry_delay_seconds(request: Request, reply: Reply | None, attempt: int) -> float | None:
    """How long to wait before trying again, or None to give up.

    reply: None when no connection could be made, so nothing was sent. attempt: 0 for the first.
    """
    if attempt >= MAX_RETRIES:
        return None
    backoff: float = min(MAX_RETRY_DELAY_SECONDS, 0.1 * 2**attempt)
    backoff *= 0.5 + random.random() / 2  # noqa: S311
    if reply is None:
        return backoff
    if not request.is_replayable:
        return None
    advice = reply.headers.get("should-retry", "").lower()
    wait = reply.headers.get("retry-after", "")
    asked = min(float(wait), MAX_RETRY_DELAY_SECONDS) if re.fullmatch(r"[0-9]{1,6}", wait) else None
    if advice == "false":
        return None
    if advice != "true":
        if reply.status not in _RETRIED or (reply.status == 429 and asked is None):
            return None
        # The gateway's 502 says that a sandbox is gone, not that it is busy.
        if reply.status == 502 and b'"sandboxId"' in reply.body:
            return None
    return backoff if asked is None else asked


def lost(error: Exception) -> Unavailable:
    return Unavailable(f"the connection failed: {str(error) or type(error).__name__}")


# --- building blocks


def _api(config: Config, method: str, path: str, body: Any = None) -> Request:
    headers = {"X-API-Key": config.api_key, "Accept": "application/json"}
    content = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        content = json.dumps(body).encode()
    return Request(method, config.api_url + path, headers, content=content)


def _rpc(
    config: Config,
    handle: SandboxHandle,
    method: str,
    body: Any,
    user: str | None,
    *,
    is_replayable: bool = True,
) -> Request:
    headers = {
        **_envd_headers(handle, user),
        "Content-Type": "application/json",
        "Connect-Protocol-Version": "1",
    }
    url = f"{config.envd_url(handle)}/{method}"
    content = json.dumps(body).encode()
    return Request("POST", url, headers, content=content, is_replayable=is_replayable)


def _stream(
    config: Config,
    handle: SandboxHandle,
    method: str,
    body: Any,
    user: str | None,
    timeout_seconds: float | None,
) -> Request:
    if timeout_seconds is not None and timeout_seconds <= 0:
        raise InvalidArgument("timeout_seconds must be greater than 0; None means no limit")
    headers = {
        **_envd_headers(handle, user),
        "Content-Type": "application/connect+json",
        "Connect-Protocol-Version": "1",
        "Keepalive-Ping-Interval": str(KEEPALIVE_SECONDS),
        "Accept-Encoding": "identity",
    }
    if timeout_seconds is not None:
        headers["Connect-Timeout-Ms"] = str(max(1, int(timeout_seconds * 1000)))
    payload = json.dumps(body).encode()
    content = struct.pack(">BI", 0, len(payload)) + payload
    url = f"{config.envd_url(handle)}/{method}"
    return Request("POST", url, headers, content=content, is_replayable=False)


def _envd_headers(handle: SandboxHandle, user: str | None) -> dict[str, str]:
    headers = {"E2b-Sandbox-Id": handle.sandbox_id, "E2b-Sandbox-Port": str(ENVD_PORT)}
    if handle.access_token:
        headers["X-Access-Token"] = handle.access_token
    if user is not None:
        token = base64.b64encode(f"{user}:".encode()).decode("ascii")
        headers["Authorization"] = f"Basic {token}"
    return headers


def _file_params(path: str, user: str | None) -> dict[str, str]:
    return {"path": path} if user is None else {"path": path, "username": user}


def _entry(raw: dict[str, Any]) -> FileEntry:
    kinds = {"FILE_TYPE_FILE": FileType.FILE, "FILE_TYPE_DIRECTORY": FileType.DIRECTORY}
    modified = raw.get("modifiedTime")
    return FileEntry(
        name=raw.get("name", ""),
        path=raw.get("path", ""),
        type=kinds.get(raw.get("type", ""), FileType.OTHER),
        size_bytes=int(raw.get("size", 0)),  # int64 travels as a string
        mode=raw.get("mode", 0),
        owner=raw.get("owner", ""),
        group=raw.get("group", ""),
        modified_at=_instant(modified) if modified else None,
        symlink_target=raw.get("symlinkTarget"),
    )


def _instant(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise SandlotError(f"the server sent a malformed time: {text!r}") from error


def _json(reply: Reply) -> Any:
    try:
        return json.loads(reply.body)
    except ValueError as error:
        raise SandlotError("the server's reply is not JSON", status=reply.status) from error


def _json_object(reply: Reply) -> dict[str, Any]:
    raw = _json(reply)
    if not isinstance(raw, dict):
        raise SandlotError("the server's reply is not a JSON object", status=reply.status)
    return raw


def _loads(payload: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(payload or b"{}")
    except ValueError as error:
        raise SandlotError("the server sent a message that is not JSON") from error
    if not isinstance(raw, dict):
        raise SandlotError("the server sent a message that is not a JSON object")
    return raw


def _segment(value: str) -> str:
    if not value:
        raise InvalidArgument("sandbox_id must not be empty")
    return quote(value, safe="")
