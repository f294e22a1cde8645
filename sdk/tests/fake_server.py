"""A control plane and an envd in one small server, with faults on order."""

from __future__ import annotations

import base64
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

NOT_FOUND = {"sandboxId": "i1", "message": "The sandbox was not found", "code": 502}


@dataclass
class Answer:
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Seen:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass
class FakeServer:
    """`faults`: answered first, one per request. `stream`: envelopes of the next process stream."""

    url: str = ""
    faults: list[Answer] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    stream: list[dict[str, Any] | bytes] = field(default_factory=list)
    cuts_stream: bool = False
    is_alive: bool = True
    sandboxes: dict[str, str] = field(default_factory=dict)  # id -> idempotency key
    files: dict[str, bytes] = field(default_factory=dict)

    def answer(self, seen: Seen) -> Answer:
        self.seen.append(seen)
        if self.faults:
            return self.faults.pop(0)
        if seen.path == "/v2/sandboxes":
            key = seen.headers["idempotency-key"]
            known = [name for name, used in self.sandboxes.items() if used == key]
            sandbox_id = known[0] if known else f"i{len(self.sandboxes) + 1}"
            self.sandboxes[sandbox_id] = key
            return Answer(201, self.handle(sandbox_id))
        if seen.path.startswith(("/sandboxes/", "/v2/sandboxes/")):
            return self.answer_sandbox(seen)
        if not self.is_alive:
            return Answer(502, NOT_FOUND)
        if seen.path == "/health":
            return Answer(204)
        if seen.path == "/files":
            return self.answer_file(seen)
        if seen.path == "/process.Process/SendSignal":
            return Answer(404, {"code": "not_found", "message": "process with pid 9 not found"})
        if seen.path == "/filesystem.Filesystem/ListDir":
            entry = {
                "name": "a",
                "type": "FILE_TYPE_FILE",
                "path": "/home/user/a",
                "size": "3",
                "mode": 420,
                "modifiedTime": "2026-01-02T03:04:05.123456789Z",
            }
            return Answer(200, {"entries": [entry]})
        return Answer(404, {"code": 404, "message": "no such route"})

    def handle(self, sandbox_id: str) -> dict[str, Any]:
        return {
            "sandboxID": sandbox_id,
            "templateID": "t1",
            "clientID": "c",
            "envdVersion": "0.6.13",
            "envdAccessToken": "secret-token",
            "newField": {"ignored": True},
        }

    def answer_sandbox(self, seen: Seen) -> Answer:
        parts = seen.path.strip("/").split("/")
        sandbox_id = parts[2] if parts[0] == "v2" else parts[1]
        if sandbox_id not in self.sandboxes:
            return Answer(404, {"code": 404, "message": f'Sandbox "{sandbox_id}" does not exist'})
        if seen.method == "DELETE":
            del self.sandboxes[sandbox_id]
            return Answer(204)
        if parts[-1] == "connect":
            return Answer(200, self.handle(sandbox_id))
        if parts[-1] == "timeout":
            return Answer(204)
        info = {
            "sandboxID": sandbox_id,
            "templateID": "t1",
            "state": "running",
            "startedAt": "2026-01-02T03:04:05.678901Z",
            "endAt": "2026-01-02T03:09:05.678901Z",
            "cpuCount": 2,
            "memoryMB": 512,
            "diskSizeMB": 1024,
            "metadata": {"k": "v"},
        }
        return Answer(200, info)

    def answer_file(self, seen: Seen) -> Answer:
        path = seen.query["path"][0]
        if seen.method == "POST":
            self.files[path] = seen.body
            return Answer(200, [{"name": path.rsplit("/", 1)[-1], "path": path, "type": "file"}])
        if path not in self.files:
            return Answer(404, {"code": 404, "message": f"path '{path}' does not exist"})
        return Answer(200, self.files[path])


def envelope(message: dict[str, Any], *, flags: int = 0) -> bytes:
    payload = json.dumps(message).encode()
    return struct.pack(">BI", flags, len(payload)) + payload


def command_stream(*, stdout: bytes = b"", stderr: bytes = b"", code: int = 0) -> list[Any]:
    data = [
        {"event": {"data": {name: base64.b64encode(text).decode()}}}
        for name, text in (("stdout", stdout), ("stderr", stderr))
        if text
    ]
    end: dict[str, Any] = {"exited": True, "status": f"exit status {code}"}
    if code:
        end["exitCode"] = code
    return [
        {"event": {"start": {"pid": 9}}},
        {"event": {"keepalive": {}}},
        *data,
        {"event": {"end": end}},
        envelope({}, flags=2),
    ]


@contextmanager
def serve() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen = Seen(self.command, url.path, parse_qs(url.query), headers, body)
            answer = fake.answer(seen)
            is_stream = url.path in ("/process.Process/Start", "/process.Process/Connect")
            if is_stream and answer.status == 404 and fake.stream:
                self.send_stream()
                return
            content = answer.body
            if not isinstance(content, bytes):
                content = b"" if content is None else json.dumps(content).encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_DELETE = do_PUT = do_GET

        def send_stream(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/connect+json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            data = b"".join(
                item if isinstance(item, bytes) else envelope(item) for item in fake.stream
            )
            for start in range(0, len(data), 7):  # cut anywhere, as networks do
                piece = data[start : start + 7]
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            if fake.cuts_stream:
                self.close_connection = True
                return
            self.wfile.write(b"0\r\n\r\n")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
