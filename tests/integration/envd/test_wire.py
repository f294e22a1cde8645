"""The gateway on real sockets, before a guest in memory: what ASGI does not show."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from nodeagent.envd.connect import envelope
from nodeagent.gateway import GatewaySettings
from nodeagent.sandbox import LiveSandbox
from nodeagent.wire import NetworkConfig
from tests.integration.envd.rig import Rig, make_spec, running_rig
from tests.integration.envd.sockets import (
    DialingLink,
    Service,
    connect,
    keep_alive_answer,
    make_certificate,
    opened,
    read_answer,
    read_to_end,
    serve,
    wait_until,
)

HOST = "8000-abc.sandbox.test"


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with running_rig() as rig:
        yield rig


@pytest.fixture
def sandbox(rig: Rig) -> Iterator[LiveSandbox]:
    sandbox = rig.add(make_spec("abc"), link=DialingLink())
    yield sandbox
    rig.kill(sandbox)


def start_process(rig: Rig, sandbox: LiveSandbox) -> tuple[socket.socket, Any]:
    """A connection on which a process's stream has begun."""
    body = envelope(0, json.dumps({"process": {"cmd": "x"}}).encode())
    connection = connect(rig)
    connection.sendall(
        b"POST /process.Process/Start HTTP/1.1\r\nHost: 49983-abc.test\r\n"
        b"Content-Type: application/connect+json\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    data = b""
    while b'"start"' not in data:
        data += connection.recv(65536)
    return connection, list(sandbox.link.processes.values())[-1]


def test_kill_resets_the_stream_and_the_probe_says_not_found(rig: Rig) -> None:
    sandbox = rig.add(make_spec("abc"), link=DialingLink())
    idle = connect(rig)  # a kept connection is not a stream: the client probes on it
    idle.sendall(b"GET /health HTTP/1.1\r\nHost: 49983-abc.test\r\n\r\n")
    assert idle.recv(1000).startswith(b"HTTP/1.1 204")
    connection, channel = start_process(rig, sandbox)
    process = sandbox.envd.processes.find(pid=channel.pid)
    rig.kill(sandbox)
    with pytest.raises(ConnectionResetError):
        read_to_end(connection)
    idle.sendall(b"GET /health HTTP/1.1\r\nHost: 49983-abc.test\r\n\r\n")
    status, _, body = read_answer(idle)
    assert (status, json.loads(body)["message"]) == (502, "The sandbox was not found")
    wait_until(lambda: not process.subscribers)


def test_a_client_that_leaves_is_dropped_at_once(rig: Rig, sandbox: LiveSandbox) -> None:
    connection, channel = start_process(rig, sandbox)
    process = sandbox.envd.processes.find(pid=channel.pid)
    assert len(process.subscribers) == 1
    connection.close()
    wait_until(lambda: not process.subscribers)
    assert sandbox.aborts == set()


def test_a_client_that_stops_reading_costs_a_bounded_amount(rig: Rig, sandbox: LiveSandbox) -> None:
    connection, channel = start_process(rig, sandbox)
    for _ in range(2000):
        rig.loop.call_soon_threadsafe(channel.emit, "stdout", b"x" * 32768)
    last = -1
    while channel.taken != last:  # until nothing moves any more
        last = channel.taken
        time.sleep(0.1)
    assert last < 500
    assert (channel._queue.qsize() + last) == 2000
    received = 0
    while received < 1 << 20:
        received += len(connection.recv(1 << 16))
    wait_until(lambda: channel.taken > last)  # reading again lets the process go on
    connection.close()
    wait_until(lambda: channel.taken == 2000)


@pytest.mark.parametrize(
    "head",
    [
        b"Host: abc\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"Host: abc\r\nContent-Length: 3\r\nContent-Length: 4\r\n",
        b"Host: abc\r\nContent-Length: 3\r\nContent-Length: 3\r\n",
        b"Host: abc\r\nHost: def\r\n",
        b"Host: abc\r\nTransfer-Encoding: xchunked\r\n",
        b"Host: abc\r\nTransfer-Encoding: chunked, identity\r\n",
        b"Host: abc\r\nTransfer-Encoding : chunked\r\n",
        b"Host: abc\r\nContent-Length: +3\r\n",
        b"Host: abc\r\nContent-Length: 0x3\r\n",
        b"Host: abc\r\nX: a\x00b\r\n",
        b"Host: abc\r\n folded: x\r\n",
        b"Host: abc\r\nX: " + b"a" * 100_000 + b"\r\n",
    ],
)
def test_ambiguous_requests_are_refused_and_the_connection_ends(
    rig: Rig, sandbox: LiveSandbox, head: bytes
) -> None:
    service = serve(sandbox, keep_alive_answer)
    connection = connect(rig)
    with contextlib.suppress(OSError):
        connection.sendall(b"POST / HTTP/1.1\r\n" + head.replace(b"abc", HOST.encode(), 1))
        connection.sendall(b"\r\nabc")
    data = b""
    with contextlib.suppress(ConnectionResetError):
        data = read_to_end(connection)
    assert data.startswith(b"HTTP/1.1 400") or data == b""
    assert service.received == []


def test_pipelined_requests_are_answered_in_order(rig: Rig, sandbox: LiveSandbox) -> None:
    serve(sandbox, keep_alive_answer)
    connection = connect(rig)
    one = b"GET /1 HTTP/1.1\r\nHost: " + HOST.encode() + b"\r\n\r\n"
    two = b"GET /health HTTP/1.1\r\nHost: 49983-abc.test\r\n\r\n"
    connection.sendall(one + two + one)
    data = b""
    while data.count(b"HTTP/1.1 ") < 3 or not data.endswith(b"ok"):
        data += connection.recv(65536)
    statuses = [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 204, 200]


def test_idle_upstream_connections_are_used_again(rig: Rig, sandbox: LiveSandbox) -> None:
    service = serve(sandbox, keep_alive_answer)
    with httpx.Client(base_url=rig.url, headers={"host": HOST}) as client:
        for _ in range(5):
            assert client.get("/").text == "ok"
        assert client.post("/", content=b"").text == "ok"
    assert service.connections == 2  # a POST is never tried on an old connection


def test_a_stale_upstream_connection_is_replaced(rig: Rig, sandbox: LiveSandbox) -> None:
    def once(service: Service, connection: socket.socket) -> None:
        service.read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        service.read_head(connection)  # and closes without an answer

    service = serve(sandbox, once)
    with httpx.Client(base_url=rig.url, headers={"host": HOST}) as client:
        assert [client.get("/").text for _ in range(4)] == ["ok"] * 4
    assert service.connections > 1


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello"),
        (
            b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            404,
            b"abc",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, b"until the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nold", 200, b"old"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (
            b"HTTP/1.1 103 Early\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1",
            200,
            b"1",
        ),
    ],
)
def test_framings_of_a_service(rig: Rig, sandbox: LiveSandbox, answer, status, body) -> None:
    def reply(service: Service, connection: socket.socket) -> None:
        service.read_head(connection)
        connection.sendall(answer)

    serve(sandbox, reply)
    got = httpx.get(rig.url, headers={"host": HOST})
    assert (got.status_code, got.content) == (status, body)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
)
def test_a_service_that_does_not_speak_http(rig: Rig, sandbox: LiveSandbox, answer) -> None:
    def reply(service: Service, connection: socket.socket) -> None:
        service.read_head(connection)
        connection.sendall(answer)

    serve(sandbox, reply)
    got = httpx.get(rig.url, headers={"host": HOST})
    assert got.status_code == 502
    assert got.json()["message"].startswith("The sandbox is running but the service on the port")


def test_an_answer_that_breaks_off_is_a_broken_answer(rig: Rig, sandbox: LiveSandbox) -> None:
    def reply(service: Service, connection: socket.socket) -> None:
        service.read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")

    serve(sandbox, reply)
    with pytest.raises(httpx.TransportError):
        httpx.get(rig.url, headers={"host": HOST})


def test_bodies_stream_both_ways(rig: Rig, sandbox: LiveSandbox) -> None:
    """The service answers each piece before the next one is sent."""

    def echo(service: Service, connection: socket.socket) -> None:
        piece = service.read_head(connection).partition(b"\r\n\r\n")[2]
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while piece := piece or connection.recv(65536):
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            if piece.endswith(b"0\r\n\r\n"):
                connection.sendall(b"0\r\n\r\n")
                return
            piece = b""

    serve(sandbox, echo)
    connection = connect(rig)
    connection.sendall(
        b"POST / HTTP/1.1\r\nHost: " + HOST.encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    data = b""
    for word in (b"one", b"two", b"three"):
        connection.sendall(b"%x\r\n%b\r\n" % (len(word), word))
        while word not in data:
            data += connection.recv(65536)
    connection.sendall(b"0\r\n\r\n")
    while not data.endswith(b"0\r\n\r\n"):
        data += connection.recv(65536)


def test_websocket_tunnel_and_its_reset(rig: Rig) -> None:
    def upgrade(service: Service, connection: socket.socket) -> None:
        service.read_head(connection)
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nfirst"
        )
        while piece := connection.recv(65536):
            connection.sendall(piece.upper())

    sandbox = rig.add(make_spec("abc"), link=DialingLink())
    service = serve(sandbox, upgrade)
    connection = connect(rig)
    connection.sendall(
        b"GET /ws?x=1 HTTP/1.1\r\nHost: "
        + HOST.encode()
        + b"\r\nConnection: keep-alive, Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13\r\n\r\nearly"
    )
    data = b""
    while not data.endswith(b"firstEARLY"):
        data += connection.recv(65536)
    assert data.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"sec-websocket-accept: x\r\n" in data.lower()
    assert service.received[0].startswith(b"GET /ws?x=1 HTTP/1.1\r\n")
    assert b"\r\nupgrade: websocket\r\n" in service.received[0].lower()
    big = b"z" * 3_000_000
    threading.Thread(target=connection.sendall, args=(big,), daemon=True).start()
    received = 0
    while received < len(big):
        received += len(connection.recv(1 << 20))
    assert len(sandbox.aborts) == 1
    rig.kill(sandbox)
    with pytest.raises(ConnectionResetError):
        connection.recv(10)


def test_a_tunnel_ends_when_either_side_ends(rig: Rig, sandbox: LiveSandbox) -> None:
    def upgrade(service: Service, connection: socket.socket) -> None:
        service.read_head(connection)
        connection.sendall(b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        connection.recv(65536)

    serve(sandbox, upgrade)
    head = (
        b"GET / HTTP/1.1\r\nHost: " + HOST.encode() + b"\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\n\r\n"
    )
    connection = connect(rig)
    connection.sendall(head)
    connection.recv(65536)
    connection.sendall(b"bye")
    assert connection.recv(65536) == b""
    other = connect(rig)
    other.sendall(head)
    other.recv(65536)
    other.close()
    wait_until(lambda: not sandbox.aborts)


def test_a_refused_upgrade_ends_the_connection(rig: Rig, sandbox: LiveSandbox) -> None:
    """What follows must not slip through a tunnel to a service it was not meant for."""
    service = serve(sandbox, keep_alive_answer)
    connection = connect(rig)
    connection.sendall(
        b"GET / HTTP/1.1\r\nHost: " + HOST.encode() + b"\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: other\r\n\r\n"
    )
    data = b""
    with contextlib.suppress(ConnectionResetError):
        data = read_to_end(connection)
    assert data.startswith(b"HTTP/1.1 200 ")
    assert not any(b"smuggled" in head for head in service.received)


def test_an_unknown_upgrade_is_ignored(rig: Rig, sandbox: LiveSandbox) -> None:
    connection = connect(rig)
    connection.sendall(
        b"POST /files?path=h2c HTTP/1.1\r\nHost: 49983-abc.test\r\n"
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"
        b"Content-Type: application/octet-stream\r\nContent-Length: 4\r\n\r\nbody"
        b"GET /health HTTP/1.1\r\nHost: 49983-abc.test\r\n\r\n"
    )
    status, _, _ = read_answer(connection)
    assert status == 200
    assert sandbox.link.files["/home/user/h2c"] == b"body"


def test_absolute_form_decides_the_host(rig: Rig, sandbox: LiveSandbox) -> None:
    connection = connect(rig)
    connection.sendall(
        b"GET http://49983-abc.test/envs?x HTTP/1.1\r\nHost: 49983-other.test\r\n\r\n"
    )
    status, _, body = read_answer(connection)
    assert (status, json.loads(body)["E2B_SANDBOX_ID"]) == (200, "abc")


def test_http_1_0_gets_no_chunks(rig: Rig, sandbox: LiveSandbox) -> None:
    connection = connect(rig)
    connection.sendall(b"GET /files?path=/proc/version HTTP/1.0\r\nHost: 49983-abc.test\r\n\r\n")
    status, head, body = read_answer(connection)
    assert (status, body) == (200, b"Linux\n")
    assert b"transfer-encoding" not in head.lower()


def test_expect_100_continue(rig: Rig, sandbox: LiveSandbox) -> None:
    connection = connect(rig)
    connection.sendall(
        b"POST /files?path=a HTTP/1.1\r\nHost: 49983-abc.test\r\nExpect: 100-continue\r\n"
        b"Content-Type: application/octet-stream\r\nContent-Length: 2\r\n\r\n"
    )
    assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(b"ok")
    assert read_answer(connection)[0] == 200


def test_a_refused_upload_leaves_the_connection_usable(rig: Rig, sandbox: LiveSandbox) -> None:
    connection = connect(rig)
    body = b"x" * 3_000_000
    head = b"POST /files HTTP/1.1\r\nHost: 49983-abc.test\r\nContent-Type: text/x\r\n"
    connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
    assert read_answer(connection)[0] == 400
    connection.sendall(body + b"GET /health HTTP/1.1\r\nHost: 49983-abc.test\r\n\r\n")
    assert connection.recv(1000).startswith(b"HTTP/1.1 204")


def test_an_interrupted_upload_keeps_what_was_written(rig: Rig, sandbox: LiveSandbox) -> None:
    connection = connect(rig)
    head = b"POST /files?path=part HTTP/1.1\r\nHost: 49983-abc.test\r\n"
    head += b"Content-Type: application/octet-stream\r\nContent-Length: 1000000\r\n\r\n"
    connection.sendall(head + b"begun")
    files = sandbox.link.files
    wait_until(lambda: files.get("/home/user/part") == b"begun")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    wait_until(lambda: not sandbox.aborts)
    assert files["/home/user/part"] == b"begun"
    assert httpx.get(f"{rig.url}/health", headers={"host": "49983-abc.test"}).status_code == 204


def test_masked_host_reaches_the_service(rig: Rig) -> None:
    network = NetworkConfig(mask_request_host="localhost:${PORT}")
    sandbox = rig.add(make_spec("abc", network=network), link=DialingLink())
    service = serve(sandbox, keep_alive_answer)
    httpx.get(rig.url, headers={"host": HOST})
    head = service.received[0].lower()
    assert b"\r\nhost: localhost:8000\r\n" in head
    assert f"\r\nx-forwarded-host: {HOST}\r\n".encode() in head
    rig.kill(sandbox)


def test_many_idle_connections_do_not_slow_others(rig: Rig, sandbox: LiveSandbox) -> None:
    idle = [connect(rig) for _ in range(400)]
    started = time.monotonic()
    answer = httpx.get(f"{rig.url}/health", headers={"host": "49983-abc.test"})
    assert answer.status_code == 204
    assert time.monotonic() - started < 2
    for connection in idle:
        connection.close()


def test_tls(tmp_path) -> None:
    certificate, key = make_certificate(tmp_path)
    settings = GatewaySettings(
        host="127.0.0.1", port=0, tls_port=0, tls_cert=certificate, tls_key=key
    )
    with running_rig(settings) as rig:
        sandbox = rig.add(make_spec("abc"), link=DialingLink())
        trusted = ssl.create_default_context(cafile=str(certificate))
        with socket.create_connection(("127.0.0.1", rig.tls_port), timeout=10) as plain:
            connection = trusted.wrap_socket(plain, server_hostname="49983-abc.sandbox.test")
            opened.append(connection)
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: 49983-abc.sandbox.test\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 204")
            body = envelope(0, json.dumps({"process": {"cmd": "x"}}).encode())
            connection.sendall(
                b"POST /process.Process/Start HTTP/1.1\r\nHost: 49983-abc.sandbox.test\r\n"
                b"Content-Type: application/connect+json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            data = b""
            while b'"start"' not in data:
                data += connection.recv(65536)
            raw = socket.socket(fileno=os.dup(connection.fileno()))
            opened.append(raw)
            rig.kill(sandbox)
            with pytest.raises(ConnectionResetError):  # OpenSSL would call it a violation
                read_to_end(raw)
