"""A small blocking client of envd over HTTP/1.1, for tests with real containers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from nodeagent.envd.connect import envelope
from tests.integration.envd.rig import Rig
from tests.unit.envd.asgi import basic


class RpcError(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


@dataclass
class Result:
    stdout: bytes = b""
    stderr: bytes = b""
    pty: bytes = b""
    end: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        code: int = self.end.get("exitCode", 0)
        return code


class Stream:
    def __init__(self, response: httpx.Response) -> None:
        self._pieces = response.iter_raw()
        self._buffer = bytearray()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Messages, to the end of the stream. Raises: RpcError."""
        while True:
            while len(self._buffer) < 5 or len(self._buffer) < 5 + self._size():
                self._buffer += next(self._pieces)
            flags, size = self._buffer[0], self._size()
            message = json.loads(self._buffer[5 : 5 + size])
            del self._buffer[: 5 + size]
            if flags & 2:
                if "error" in message:
                    raise RpcError(message["error"]["code"], message["error"]["message"])
                return
            yield message

    def _size(self) -> int:
        return int.from_bytes(self._buffer[1:5], "big")

    def collect(self) -> Result:
        output: dict[str, list[bytes]] = {"stdout": [], "stderr": [], "pty": []}
        end: dict[str, Any] = {}
        for message in self:
            event = message["event"]
            for name, data in event.get("data", {}).items():
                output[name].append(base64.b64decode(data))
            end = event.get("end", end)
        return Result(**{name: b"".join(pieces) for name, pieces in output.items()}, end=end)


class Envd:
    def __init__(self, rig: Rig, sandbox_id: str, *, timeout_seconds: float = 30) -> None:
        self.http = httpx.Client(
            base_url=rig.url,
            timeout=timeout_seconds,
            headers={"host": f"49983-{sandbox_id}.sandbox.test"},
            limits=httpx.Limits(max_connections=None),
        )

    def close(self) -> None:
        self.http.close()

    def rpc(self, method: str, message: dict[str, Any], *, user: str | None = None) -> Any:
        """Raises: RpcError."""
        headers = basic(user) if user else {}
        answer = self.http.post(f"/{method}", json=message, headers=headers)
        body = answer.json()
        if answer.status_code != 200:
            raise RpcError(body["code"], body["message"])
        return body

    @contextmanager
    def stream(
        self, method: str, message: dict[str, Any], *, user: str | None = None, **headers: str
    ) -> Iterator[Stream]:
        sent = {"content-type": "application/connect+json", **(basic(user) if user else {})}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        body = envelope(0, json.dumps(message).encode())
        with self.http.stream("POST", f"/{method}", content=body, headers=sent) as response:
            assert response.status_code == 200
            yield Stream(response)

    @contextmanager
    def start(
        self, command: str, *, user: str | None = None, headers: Any = None, **fields: Any
    ) -> Iterator[tuple[int, Stream]]:
        process = {"cmd": "/bin/bash", "args": ["-l", "-c", command], **fields.pop("process", {})}
        message = {"process": process, "stdin": False, **fields}
        with self.stream("process.Process/Start", message, user=user, **(headers or {})) as stream:
            first = next(iter(stream))
            yield first["event"]["start"]["pid"], stream

    def run(self, command: str, **arguments: Any) -> Result:
        with self.start(command, **arguments) as (_, stream):
            return stream.collect()
