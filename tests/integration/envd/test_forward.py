"""What the gateway forwards to other servers: the control plane, and gateways of other nodes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from nodeagent.gateway import GatewaySettings
from nodeagent.remote import HttpPeers
from nodeagent.sandbox import LiveSandbox
from tests.integration.envd.rig import Rig, make_spec, running_rig
from tests.integration.envd.sockets import (
    DialingLink,
    Service,
    connect,
    keep_alive_answer,
    read_to_end,
    serve,
)

DOMAIN = "sandbox.test"


class FixedPeers:
    """Knows one sandbox of another node."""

    def __init__(self) -> None:
        self.gateways: dict[str, str] = {}
        self.asked: list[str] = []

    async def gateway_of(self, sandbox_id: str) -> str | None:
        self.asked.append(sandbox_id)
        return self.gateways.get(sandbox_id)

    def close(self) -> None: ...


@pytest.fixture
def near() -> Iterator[Rig]:
    """The gateway that clients reach."""
    with running_rig(peers=FixedPeers()) as rig:
        yield rig


def before_control_plane(url: str) -> GatewaySettings:
    return GatewaySettings(host="127.0.0.1", port=0, domain=f"{DOMAIN}:8443", control_plane_url=url)


@contextmanager
def control_plane(answer: Any) -> Iterator[tuple[Service, Rig]]:
    """A control plane and the gateway before it."""
    service = Service(answer)
    with running_rig(before_control_plane(f"http://127.0.0.1:{service.port}")) as rig:
        yield service, rig


def test_names_of_the_control_plane_lead_to_it() -> None:
    with control_plane(keep_alive_answer) as (service, near):
        for host in (f"api.{DOMAIN}", f"API.{DOMAIN}:8443", DOMAIN):
            headers = {"host": host, "x-forwarded-for": "1.2.3.4", "x-forwarded-proto": "https"}
            answer = httpx.get(f"{near.url}/sandboxes?x=%2F", headers=headers)
            assert (answer.status_code, answer.text) == (200, "ok")
            head = service.received.pop().decode().split("\r\n")
            assert head[0] == "GET /sandboxes?x=%2F HTTP/1.1"
            assert f"host: {host}" in head
            told = [line for line in head if line.startswith("x-forwarded")]
            assert told == ["x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http"]


def test_routing_headers_and_other_names_do_not() -> None:
    with control_plane(keep_alive_answer) as (service, near):
        for headers in (
            {"host": DOMAIN, "e2b-sandbox-id": "abc", "e2b-sandbox-port": "49983"},
            {"host": f"49983-abc.{DOMAIN}"},
            {"host": f"x.{DOMAIN}"},
            {"host": "api.elsewhere.test"},
        ):
            assert httpx.get(f"{near.url}/health", headers=headers).status_code in (400, 502)
        assert service.received == []


def test_websockets_reach_the_control_plane() -> None:
    def upgrade(service: Service, connection: socket.socket) -> None:
        service.read_head(connection)
        connection.sendall(b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhi")
        connection.sendall(connection.recv(65536).upper())

    with control_plane(upgrade) as (_, near):
        client = connect(near)
        client.sendall(
            b"GET /ws/ HTTP/1.1\r\nHost: " + DOMAIN.encode() + b"\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\nword"
        )
        assert read_to_end(client).endswith(b"\r\n\r\nhiWORD")


def test_a_control_plane_that_is_down_is_a_503() -> None:
    with running_rig(before_control_plane("http://127.0.0.1:1")) as near:
        answer = httpx.get(f"{near.url}/sandboxes", headers={"host": f"api.{DOMAIN}"})
    assert answer.status_code == 503
    assert answer.json() == {"message": "The control plane is not answering", "code": 503}


# --- Other nodes -------------------------------------------------------------------------------


@pytest.fixture
def far(near: Rig) -> Iterator[Rig]:
    """The gateway of another node."""
    with running_rig(peers=FixedPeers()) as rig:
        near.peers.gateways = {"far": rig.url, "lost": "http://127.0.0.1:1"}
        rig.peers.gateways = {"lost": near.url}
        yield rig


@pytest.fixture
def remote(far: Rig) -> LiveSandbox:
    return far.add(make_spec("far"), link=DialingLink())


def test_a_sandbox_of_another_node_answers_here(near: Rig, remote: LiveSandbox) -> None:
    service = serve(remote, keep_alive_answer)
    for headers in (
        {"host": f"8000-far.{DOMAIN}"},
        {"e2b-sandbox-id": "far", "e2b-sandbox-port": "8000"},
    ):
        assert httpx.get(near.url, headers=headers).text == "ok"
    assert all(b"sandlot-forwarded" not in head for head in service.received)
    health = httpx.get(f"{near.url}/health", headers={"host": f"49983-far.{DOMAIN}"})
    assert health.status_code == 204


def test_a_kill_over_there_breaks_the_stream_here(near: Rig, far: Rig, remote: LiveSandbox) -> None:
    begun = threading.Event()

    def endless(service: Service, connection: socket.socket) -> None:
        service.read_head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        begun.wait(10)

    serve(remote, endless)
    client = connect(near)
    client.sendall(b"GET / HTTP/1.1\r\nHost: 8000-far.test\r\n\r\n")
    data = b""
    while b"one" not in data:
        data += client.recv(65536)
    far.kill(remote)
    with pytest.raises(ConnectionResetError):
        read_to_end(client)
    begun.set()
    gone = httpx.get(f"{near.url}/health", headers={"host": "49983-far.test"})
    assert (gone.status_code, gone.json()["message"]) == (502, "The sandbox was not found")


def test_a_node_that_does_not_answer_is_a_503(near: Rig, far: Rig) -> None:
    answer = httpx.get(near.url, headers={"host": "8000-lost.test"})
    assert answer.status_code == 503
    assert answer.json()["message"] == "The sandbox's node is not answering"


def test_a_request_is_forwarded_once_only(near: Rig, far: Rig) -> None:
    near.peers.gateways["lost"] = far.url  # each says the other has it
    answer = httpx.get(near.url, headers={"host": "8000-lost.test"})
    assert answer.status_code == 502
    assert "lost" not in far.peers.asked


# --- Asking the control plane ------------------------------------------------------------------


class Directory:
    """The control plane's answer to where a sandbox is."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None, str | None]] = []
        self.answers: dict[str, tuple[int, object]] = {}
        directory = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                headers = self.headers
                directory.asked.append(
                    (self.path, headers.get("Authorization"), headers.get("Sandlot-Node"))
                )
                status, value = directory.answers.get(self.path, (404, {"code": 404}))
                body = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def directory() -> Iterator[Directory]:
    found = Directory()
    yield found
    found.close()


@pytest.fixture
def peers(directory: Directory) -> Iterator[HttpPeers]:
    asking = HttpPeers(directory.url, node_id="n1", token="sln_x", timeout_seconds=10)
    yield asking
    asking.close()


async def test_an_answer_is_believed_for_a_while(directory: Directory, peers: HttpPeers) -> None:
    place = {"nodeID": "n2", "gatewayURL": "http://10.0.0.2:8001"}
    directory.answers["/internal/sandboxes/abc/node"] = (200, place)
    for _ in range(3):
        assert await peers.gateway_of("abc") == "http://10.0.0.2:8001"
    assert directory.asked == [("/internal/sandboxes/abc/node", "Bearer sln_x", "n1")]
    assert await peers.gateway_of("other") is None


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"nodeID": "n1", "gatewayURL": "http://10.0.0.1:8001"}),  # ourselves: it just ended
        (200, {"nodeID": "n2", "gatewayURL": ""}),
        (200, ["x"]),
        (200, b"not json"),
        (401, {"code": 401}),
        (500, b""),
    ],
)
async def test_anything_else_is_no_other_node(
    directory: Directory, peers: HttpPeers, answer: tuple[int, object]
) -> None:
    directory.answers["/internal/sandboxes/abc/node"] = answer
    assert await peers.gateway_of("abc") is None


async def test_without_a_control_plane_there_are_no_others() -> None:
    peers = HttpPeers("http://127.0.0.1:1", node_id="n1", token="t")
    assert await peers.gateway_of("abc") is None
    peers.close()
