"""Plain sockets on both sides of the gateway: clients, and services in the sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from nodeagent.errors import Unavailable
from nodeagent.sandbox import LiveSandbox
from tests.integration.envd.rig import Rig
from tests.unit.envd.fake_link import FakeLink

opened: list[Any] = []  # closed after each test


class DialingLink(FakeLink):
    """Ports of the sandbox are ports of this machine."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: dict[int, int] = {}

    async def dial(self, port: int, *, protocol_factory: Any = None, **_: Any) -> Any:
        self.dials.append(port)
        if port not in self.ports:
            raise Unavailable("connection refused")
        loop = asyncio.get_running_loop()
        return await loop.create_connection(protocol_factory, "127.0.0.1", self.ports[port])


class Service:
    """A server in the sandbox that answers each connection with `answer` and keeps what it got."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.received: list[bytes] = []
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        opened.append(self.listener)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self.answer(self, connection)

    def read_head(self, connection: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece:
                return b""
            data += piece
        self.received.append(data)
        return data


def keep_alive_answer(service: Service, connection: socket.socket) -> None:
    while service.read_head(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def serve(sandbox: LiveSandbox, answer: Any, port: int = 8000) -> Service:
    service = Service(answer)
    sandbox.link.ports[port] = service.port
    return service


def connect(rig: Rig) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", rig.port), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.append(connection)
    return connection


def read_answer(connection: socket.socket) -> tuple[int, bytes, bytes]:
    """Status, head and body of an answer with a length, or until the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        assert piece, data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = None
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while length is None or len(body) < length:
        piece = connection.recv(65536)
        if not piece:
            break
        body += piece
    return int(head.split(b" ")[1]), head, body


def read_to_end(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def wait_until(condition: Any) -> None:
    ends_at = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.005)


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed wildcard certificate."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=sandbox.test", "-keyout", str(key)),
            *("-out", str(certificate), "-addext", "subjectAltName=DNS:*.sandbox.test"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key
