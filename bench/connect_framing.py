"""Connect framing: our own against the connectrpc library, without sockets.

    .venv/bin/pip install connectrpc==0.13.0 && .venv/bin/python -m bench.connect_framing

Streams output in 32 KiB events and makes small unary calls through both ASGI applications, in one
process, and prints bytes of output and calls per second. docs/decisions/0002-connect-framing.md
keeps the figures we decided on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from nodeagent.envd import connect as own
from nodeagent.envd.process import encode_event
from nodeagent.envd.proto import process_pb2 as pb
from nodeagent.http import Request

EVENT = bytes(range(256)) * 128
EVENTS = 2000
CALLS = 1000
REPEATS = 5  # the best counts: the machine may be busy
START = {"process": {"cmd": "/bin/bash", "args": ["-l", "-c", "true"]}, "stdin": False}
SEND_INPUT = {"process": {"pid": 42}, "input": {"stdin": "aGVsbG8K"}}


async def _own_start(call: own.Call, message: Any, stream: own.Stream) -> None:
    for _ in range(EVENTS):
        await stream.send_raw(encode_event(stream.codec, ("stdout", EVENT)))


async def _own_send_input(call: own.Call, message: Any) -> dict[str, Any]:
    return {}


def own_application() -> Any:
    methods = {
        "/process.Process/Start": own.Method(
            own.Kind.SERVER_STREAM, pb.StartRequest, pb.StartResponse, _own_start
        ),
        "/process.Process/SendInput": own.Method(
            own.Kind.UNARY, pb.SendInputRequest, pb.SendInputResponse, _own_send_input
        ),
    }

    async def application(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive, send)
        nobody: Any = SimpleNamespace(sandbox_id="bench")
        await own.serve(nobody, nobody, request, methods[scope["path"]])

    return application


def library_application() -> Any:
    from connectrpc.compat import google_protobuf_codecs
    from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
    from connectrpc.server import ConnectASGIApplication, Endpoint

    class Service:
        async def start(self, request: Any, context: Any) -> AsyncIterator[Any]:
            for _ in range(EVENTS):
                yield pb.StartResponse(event={"data": {"stdout": EVENT}})

        async def send_input(self, request: Any, context: Any) -> Any:
            return pb.SendInputResponse()

    def method(name: str, takes: Any, gives: Any, kind: Any) -> Any:
        return MethodInfo(
            name=name,
            service_name="process.Process",
            input=takes,
            output=gives,
            stream_type=kind,
            idempotency_level=IdempotencyLevel.UNKNOWN,
        )

    class Application(ConnectASGIApplication):
        @property
        def path(self) -> str:
            return "/process.Process"

    return Application(
        service=Service(),
        endpoints=lambda service: {
            "/process.Process/Start": Endpoint.server_stream(
                method=method("Start", pb.StartRequest, pb.StartResponse, StreamType.SERVER_STREAM),
                function=service.start,
            ),
            "/process.Process/SendInput": Endpoint.unary(
                method=method(
                    "SendInput", pb.SendInputRequest, pb.SendInputResponse, StreamType.UNARY
                ),
                function=service.send_input,
            ),
        },
        codecs=google_protobuf_codecs(),
    )


async def ask(application: Any, path: str, content_type: str, body: bytes) -> tuple[int, int]:
    """One request -> status, bytes answered."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]
    status = size = 0

    async def receive() -> dict[str, Any]:
        if pending:
            return pending.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, size
        status = message.get("status", status)
        size += len(message.get("body", b""))

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "scheme": "http",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "headers": [(b"content-type", content_type.encode()), (b"connect-protocol-version", b"1")],
        "extensions": {"sandlot": SimpleNamespace(reset=lambda: None)},
    }
    await application(scope, receive, send)
    return status, size


async def measure(name: str, application: Any, codec: str) -> None:
    def encode(kind: Any, value: dict[str, Any]) -> bytes:
        return (
            own.Codec(codec).dump(kind, value) if codec == "proto" else json.dumps(value).encode()
        )

    start = own.envelope(0, encode(pb.StartRequest, START))
    call = encode(pb.SendInputRequest, SEND_INPUT)
    streams, calls = [], []
    for _ in range(REPEATS):
        began = time.perf_counter()
        status, size = await ask(
            application, "/process.Process/Start", f"application/connect+{codec}", start
        )
        streams.append(time.perf_counter() - began)
        if status != 200 or size < EVENTS * len(EVENT):
            raise SystemExit(f"{name}: {status}, {size} bytes")
        began = time.perf_counter()
        for _ in range(CALLS):
            await ask(application, "/process.Process/SendInput", f"application/{codec}", call)
        calls.append(time.perf_counter() - began)
    rate = EVENTS * len(EVENT) / min(streams) / 1e6
    per_call = min(calls) / CALLS * 1e6
    print(f"{name:12} {codec:6} stdout {rate:7.0f} MB/s   unary {per_call:6.0f} µs")


async def main() -> None:
    applications = [("own", own_application())]
    try:
        applications.append(("connectrpc", library_application()))
    except ImportError as error:
        print(f"connectrpc is not installed ({error}): measuring our own only")
    for name, application in applications:
        for codec in ("json", "proto"):
            await measure(name, application, codec)


if __name__ == "__main__":
    asyncio.run(main())
