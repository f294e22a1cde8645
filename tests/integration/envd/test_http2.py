"""HTTP/2: over TLS, and for clients that know without asking."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import httpx
import pytest

from nodeagent import http2_protocol
from nodeagent.envd.connect import envelope
from nodeagent.gateway import GatewaySettings
from nodeagent.sandbox import LiveSandbox
from tests.integration.envd.rig import Rig, make_spec, running_rig
from tests.integration.envd.sockets import (
    DialingLink,
    Service,
    keep_alive_answer,
    make_certificate,
    opened,
    serve,
    wait_until,
)

ENVD, PORT = "49983-abc.sandbox.test", "8000-abc.sandbox.test"


class Answer:
    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.body = b""
        self.has_ended = False
        self.reset: int | None = None
        self.empty_frames = 0

    @property
    def status(self) -> int:
        return int(self.headers[":status"])


class Client:
    """A client on one connection, one frame at a time."""

    def __init__(self, connection: socket.socket, **settings: int) -> None:
        opened.append(connection)
        connection.settimeout(20)
        self.socket = connection
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(header_encoding="utf-8", validate_outbound_headers=False)
        )
        self.h2.initiate_connection()
        self.h2.update_settings(
            {h2.settings.SettingCodes[name.upper()]: value for name, value in settings.items()}
        )
        self.answers: dict[int, Answer] = {}
        self.goaway: int | None = None
        self.acknowledges = True
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def ask(
        self,
        path: str,
        *,
        host: str = ENVD,
        method: str = "GET",
        body: bytes | None = None,
        ends: bool = True,
        headers: Any = (),
    ) -> int:
        """Send a request, its body as far as the window allows. Returns the stream."""
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "https"), (":authority", host), (":path", path)]
        self.h2.send_headers(stream, [*head, *headers], end_stream=body is None and ends)
        self.answers[stream] = Answer()
        self.flush()
        if body is not None:
            self.send(stream, body, ends=ends)
        return stream

    def send(self, stream: int, body: bytes, *, ends: bool = True) -> None:
        rest = body
        while rest:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room == 0:
                self.read()
                continue
            piece, rest = rest[:room], rest[room:]
            self.h2.send_data(stream, piece, end_stream=ends and not rest)
            self.flush()

    def read(self) -> bool:
        """Take what comes next; False at the end of the connection."""
        data = self.socket.recv(1 << 16)
        if not data:
            return False
        for event in self.h2.receive_data(data):
            stream = getattr(event, "stream_id", None)
            answer = self.answers.get(stream or 0)
            if isinstance(event, h2.events.ConnectionTerminated):
                self.goaway = event.error_code
            if answer is None:
                continue
            if isinstance(event, h2.events.ResponseReceived):
                answer.headers = dict(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                answer.body += event.data
                if not event.data and event.stream_ended is None:
                    answer.empty_frames += 1
                if self.acknowledges:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
            elif isinstance(event, h2.events.StreamEnded):
                answer.has_ended = True
            elif isinstance(event, h2.events.StreamReset):
                answer.reset = event.error_code
        self.flush()
        return True

    def wait(self, stream: int) -> Answer:
        """Until the stream has ended, one way or another."""
        answer = self.answers[stream]
        while not answer.has_ended and answer.reset is None:
            assert self.read(), "the connection ended"
        return answer


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def rig(certificate: tuple[Path, Path]) -> Iterator[Rig]:
    cert, key = certificate
    settings = GatewaySettings(host="127.0.0.1", port=0, tls_port=0, tls_cert=cert, tls_key=key)
    with running_rig(settings) as rig:
        yield rig


@pytest.fixture
def sandbox(rig: Rig) -> Iterator[LiveSandbox]:
    sandbox = rig.add(make_spec("abc"), link=DialingLink())
    yield sandbox
    rig.kill(sandbox)


def over_tls(rig: Rig, *protocols: str, cafile: Path) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(cafile))
    context.set_alpn_protocols(list(protocols))
    plain = socket.create_connection(("127.0.0.1", rig.tls_port), timeout=20)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection = context.wrap_socket(plain, server_hostname=ENVD)
    opened.append(connection)
    return connection


@pytest.fixture(params=["tls", "plain"])
def client(request: pytest.FixtureRequest, rig: Rig, certificate: tuple[Path, Path]) -> Client:
    if request.param == "tls":
        return Client(over_tls(rig, "h2", "http/1.1", cafile=certificate[0]))
    return Client(socket.create_connection(("127.0.0.1", rig.port)))


def start_process(client: Client, sandbox: LiveSandbox) -> tuple[int, Any]:
    body = envelope(0, json.dumps({"process": {"cmd": "x"}}).encode())
    headers = [("content-type", "application/connect+json")]
    stream = client.ask("/process.Process/Start", method="POST", body=body, headers=headers)
    while b'"start"' not in client.answers[stream].body:
        assert client.read()
    return stream, list(sandbox.link.processes.values())[-1]


def test_the_client_chooses_the_protocol(rig: Rig, certificate: tuple[Path, Path]) -> None:
    for offered, chosen in ((["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), ([], None)):
        connection = over_tls(rig, *offered, cafile=certificate[0])
        assert connection.selected_alpn_protocol() == chosen


def test_requests_share_a_connection(client: Client, sandbox: LiveSandbox) -> None:
    streams = [client.ask("/health") for _ in range(150)]
    assert {client.wait(stream).status for stream in streams} == {204}
    assert client.h2.remote_settings.max_concurrent_streams >= 100


def test_a_library_client_works(
    rig: Rig, sandbox: LiveSandbox, certificate: tuple[Path, Path]
) -> None:
    service = serve(sandbox, keep_alive_answer)
    trust = ssl.create_default_context(cafile=str(certificate[0]))
    trust.check_hostname = False
    with httpx.Client(http2=True, verify=trust) as http:
        answer = http.post(
            f"https://127.0.0.1:{rig.tls_port}/a%20b?c=d",
            headers={"host": PORT, "cookie": "a=b; c=d"},
            content=iter([b"one", b"two"]),
        )
        assert (answer.http_version, answer.status_code, answer.text) == ("HTTP/2", 200, "ok")
    head = service.received[0].lower()
    assert head.startswith(b"post /a%20b?c=d http/1.1\r\n")
    assert b"\r\nhost: " + PORT.encode() + b"\r\n" in head
    assert b"\r\ncookie: a=b; c=d\r\n" in head
    assert b"\r\ntransfer-encoding: chunked\r\n" in head


def test_a_kill_breaks_streams_and_leaves_the_connection(rig: Rig, client: Client) -> None:
    sandbox = rig.add(make_spec("abc"), link=DialingLink())
    stream, channel = start_process(client, sandbox)
    process = sandbox.envd.processes.find(pid=channel.pid)
    rig.kill(sandbox)
    assert client.wait(stream).reset == h2.errors.ErrorCodes.INTERNAL_ERROR
    assert not client.answers[stream].has_ended
    gone = client.wait(client.ask("/health"))
    assert (gone.status, json.loads(gone.body)["message"]) == (502, "The sandbox was not found")
    wait_until(lambda: not process.subscribers)


def test_a_stream_that_its_client_breaks_off_is_dropped_at_once(
    client: Client, sandbox: LiveSandbox
) -> None:
    stream, channel = start_process(client, sandbox)
    process = sandbox.envd.processes.find(pid=channel.pid)
    client.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
    client.flush()
    wait_until(lambda: not process.subscribers)
    assert sandbox.aborts == set()
    assert client.wait(client.ask("/health")).status == 204


def test_a_connection_that_ends_drops_its_streams(client: Client, sandbox: LiveSandbox) -> None:
    _, channel = start_process(client, sandbox)
    process = sandbox.envd.processes.find(pid=channel.pid)
    client.socket.close()
    wait_until(lambda: not process.subscribers)


def test_output_waits_for_the_clients_window(
    rig: Rig, client: Client, sandbox: LiveSandbox
) -> None:
    """A stream that is not read costs a bounded amount, and holds up no other."""
    client.acknowledges = False
    stream, channel = start_process(client, sandbox)
    other, second = start_process(client, sandbox)
    for _ in range(2000):
        rig.loop.call_soon_threadsafe(channel.emit, "stdout", b"x" * 32768)
    while len(client.answers[stream].body) < 65000:
        client.read()
    assert channel.taken < 500
    assert client.answers[stream].empty_frames == 0
    client.h2.increment_flow_control_window(1 << 24)  # the connection's; the stream still waits
    client.flush()
    rig.loop.call_soon_threadsafe(second.emit, "stdout", b"second")
    before = len(client.answers[other].body)
    while len(client.answers[other].body) == before:
        client.read()
    client.h2.increment_flow_control_window(1 << 24, stream)
    client.flush()
    while len(client.answers[stream].body) < 1 << 20:
        client.read()


def test_bodies_of_any_size_pass_both_ways(client: Client, sandbox: LiveSandbox) -> None:
    """More than every window, without a length, by hash."""

    def echo(service: Service, connection: socket.socket) -> None:
        head, _, data = service.read_head(connection).partition(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        while not data.endswith(b"0\r\n\r\n"):
            data += connection.recv(1 << 20)
        body = b""
        while True:
            size, _, data = data.partition(b"\r\n")
            if not int(size, 16):
                break
            body += data[: int(size, 16)]
            data = data[int(size, 16) + 2 :]
        digest = hashlib.sha256(body).hexdigest()
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nX-Digest: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (digest.encode(), len(body), body)
        )

    serve(sandbox, echo)
    body = os.urandom(5_000_000)
    answer = client.wait(client.ask("/", host=PORT, method="POST", body=body))
    assert answer.status == 200
    assert answer.headers["x-digest"] == hashlib.sha256(body).hexdigest()
    assert answer.body == body
    assert answer.empty_frames == 0


def test_an_upload_that_is_refused_may_stop(client: Client, sandbox: LiveSandbox) -> None:
    stream = client.ask("/nosuch", method="POST", body=b"x" * 1000, ends=False)
    answer = client.wait(stream)
    assert answer.status == 404
    while answer.reset is None:
        client.read()
    assert answer.reset == h2.errors.ErrorCodes.NO_ERROR
    for _ in range(3):  # what is refused gives the connection's window back
        late = client.ask("/nosuch", method="POST", body=b"x" * 60_000, ends=False)
        assert client.wait(late).status == 404
    assert client.wait(client.ask("/health")).status == 204


def test_answers_without_a_body(client: Client, sandbox: LiveSandbox) -> None:
    def head_only(service: Service, connection: socket.socket) -> None:
        while service.read_head(connection):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")

    serve(sandbox, head_only)
    answer = client.wait(client.ask("/", host=PORT, method="HEAD"))
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "5", b"")


def test_expectations_are_met(client: Client, sandbox: LiveSandbox) -> None:
    stream = client.ask(
        "/files?path=expected.txt",
        method="POST",
        ends=False,
        headers=[("expect", "100-continue"), ("content-type", "application/octet-stream")],
    )
    client.socket.settimeout(20)
    informed = False
    while not informed:
        for event in client.h2.receive_data(client.socket.recv(65536)):
            informed = informed or isinstance(event, h2.events.InformationalResponseReceived)
    client.send(stream, b"content")
    assert client.wait(stream).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        [(":method", "GET"), (":scheme", "https"), (":authority", ENVD)],
        [(":method", "GET"), (":path", "/"), (":authority", ENVD)],
        [(":method", "CONNECT"), (":scheme", "https"), (":path", "/"), (":authority", ENVD)],
        [(":method", "G T"), (":scheme", "https"), (":path", "/"), (":authority", ENVD)],
        [(":method", "GET"), (":scheme", "https"), (":path", "/a b"), (":authority", ENVD)],
        [(":method", "GET"), (":scheme", "https"), (":path", "x"), (":authority", ENVD)],
        [(":method", "GET"), (":scheme", "https"), (":path", "/\r\nx: y"), (":authority", ENVD)],
        [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":path", "/x")],
        [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":odd", "x")],
        [*((":method", "GET"), (":scheme", "https"), (":path", "/")), ("connection", "x")],
        [*((":method", "GET"), (":scheme", "https"), (":path", "/")), ("upgrade", "websocket")],
        [*((":method", "GET"), (":scheme", "https"), (":path", "/")), ("te", "gzip")],
        [*((":method", "GET"), (":scheme", "https"), (":path", "/")), ("x", "a\r\nb: c")],
        [*((":method", "GET"), (":scheme", "https"), (":path", "/")), ("x y", "a")],
        [*((":method", "GET"), (":scheme", "https"), (":path", "/")), ("content-length", "3")],
        [("host", ENVD), (":method", "GET"), (":scheme", "https"), (":path", "/")],
        [
            *((":method", "GET"), (":scheme", "https"), (":path", "/")),
            *(("host", "a.test"), ("host", "b.test")),
        ],
    ],
)
def test_malformed_requests_are_refused_one_by_one(
    rig: Rig, sandbox: LiveSandbox, headers: list[tuple[str, str]]
) -> None:
    service = serve(sandbox, keep_alive_answer)
    client = Client(socket.create_connection(("127.0.0.1", rig.port)))
    client.h2.config.normalize_outbound_headers = False
    stream = client.h2.get_next_available_stream_id()
    client.h2.send_headers(stream, headers, end_stream=True)
    client.answers[stream] = Answer()
    client.flush()
    assert client.wait(stream).reset == h2.errors.ErrorCodes.PROTOCOL_ERROR
    assert client.wait(client.ask("/health")).status == 204
    assert service.received == []


def test_a_body_that_ends_early_is_not_forwarded_as_whole(rig: Rig, sandbox: LiveSandbox) -> None:
    """Or the next request on that connection would be taken for its rest."""

    def patient(service: Service, connection: socket.socket) -> None:
        while head := service.read_head(connection):
            rest = head.partition(b"\r\n\r\n")[2]
            while head.startswith(b"POST") and len(rest) < 60:
                piece = connection.recv(65536)
                if not piece:
                    return
                rest += piece
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    service = serve(sandbox, patient)
    client = Client(socket.create_connection(("127.0.0.1", rig.port)))
    stream = client.ask(
        "/", host=PORT, method="POST", body=b"ab", ends=False, headers=[("content-length", "60")]
    )
    client.flush()
    wait_until(lambda: service.connections == 1)  # the upload is under way
    client.h2.send_headers(stream, [("x-trailer", "1")], end_stream=True)
    client.flush()
    assert client.wait(stream).reset == h2.errors.ErrorCodes.PROTOCOL_ERROR
    for _ in range(3):
        assert client.wait(client.ask("/", host=PORT)).body == b"ok"
    assert service.connections == 2


def test_garbage_ends_the_connection(rig: Rig, sandbox: LiveSandbox) -> None:
    client = Client(socket.create_connection(("127.0.0.1", rig.port)))
    _, channel = start_process(client, sandbox)
    process = sandbox.envd.processes.find(pid=channel.pid)
    client.socket.sendall(b"\x00\x00\x08\x06\x00\x00\x00\x00\x01garbage!")  # a ping on a stream
    while client.goaway is None:
        assert client.read()
    assert client.goaway == h2.errors.ErrorCodes.PROTOCOL_ERROR
    wait_until(lambda: not process.subscribers)


def test_a_client_that_only_breaks_off_is_told_to_calm_down(
    rig: Rig, sandbox: LiveSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_protocol, "MAX_BROKEN_OFF", 50)
    client = Client(socket.create_connection(("127.0.0.1", rig.port)))
    client.socket.settimeout(20)
    try:
        for _ in range(200):
            stream = client.ask("/files?path=x", method="POST", ends=False)
            client.h2.reset_stream(stream)
            client.flush()
    except ConnectionError:
        pass  # it may hang up while we are at it
    try:
        while client.goaway is None and client.read():
            pass
    except ConnectionError:
        return
    assert client.goaway == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM


def test_a_gateway_that_stops_lets_answers_finish() -> None:
    with running_rig() as rig:
        sandbox = rig.add(make_spec("abc"), link=DialingLink())
        release = threading.Event()

        def slow(service: Service, connection: socket.socket) -> None:
            service.read_head(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none")
            release.wait(20)
            connection.sendall(b"two")

        serve(sandbox, slow)
        client = Client(socket.create_connection(("127.0.0.1", rig.port)))
        stream = client.ask("/", host=PORT)
        while b"one" not in client.answers[stream].body:
            client.read()
        rig.call(rig._serving.cancel)
        while client.goaway is None:
            assert client.read()
        assert client.goaway == h2.errors.ErrorCodes.NO_ERROR
        release.set()
        # The client's own state machine takes no more after a GOAWAY: read the frames plainly.
        data = b""
        while piece := client.socket.recv(65536):
            data += piece
        assert b"two" in data
