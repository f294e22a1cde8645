"""Which sandbox and port a request is for, and what the edge itself answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import Conflict, InvalidArgument, NotFound, QuotaExceeded
from nodeagent.gateway import Gateway, GatewaySettings
from nodeagent.proxy import SandboxPort, connection_options, response_headers
from nodeagent.routing import MissingHeader, Target, find_target, is_internal
from nodeagent.wire import NetworkConfig, NodeSandboxState
from tests.unit.envd.asgi import TOKEN, Client, FakeNode, make_client

BROWSER = {"user-agent": "Mozilla/5.0 Firefox/1", "accept": "text/html,*/*"}


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("8000-abc.sandbox.test", Target("abc", 8000)),
        ("8000-ABC.sandbox.test:8443", Target("abc", 8000)),
        ("8000-abc-client1-x.sandbox.test", Target("abc", 8000)),
        ("0-abc.test", Target("abc", 0)),
        ("49983-i1.localhost", Target("i1", 49983)),
    ],
)
def test_hosts(host, target) -> None:
    assert find_target(host, "other", "1") == target


@pytest.mark.parametrize("host", ["localhost:8001", "127.0.0.1", "sandbox.test", "", "my-app.test"])
def test_headers_decide_where_the_host_does_not(host) -> None:
    assert find_target(host, "abc", "8080") == Target("abc", 8080)
    with pytest.raises(MissingHeader, match="E2b-Sandbox-Port"):
        find_target(host, "abc", None)
    with pytest.raises(MissingHeader, match="E2b-Sandbox-Id"):
        find_target(host, None, "8080")


@pytest.mark.parametrize(
    ("host", "sandbox_id", "port", "message"),
    [
        ("localhost", None, None, "Invalid host"),
        ("sandbox.test", None, None, "Invalid host"),
        ("8000-a_b.test", None, None, "Invalid sandbox ID"),
        ("x-abc.test", None, None, "Invalid sandbox port"),
        ("99999-abc.test", None, None, "Invalid sandbox port"),
        ("localhost", "../x", "1", "Invalid sandbox ID"),
        ("localhost", "abc", "-1", "Invalid sandbox port"),
        ("localhost", "abc", "\u0661", "Invalid sandbox port"),
    ],
)
def test_bad_input(host, sandbox_id, port, message) -> None:
    with pytest.raises(InvalidArgument, match=message):
        find_target(host, sandbox_id, port)


@given(st.text(max_size=60), st.none() | st.text(max_size=20), st.none() | st.text(max_size=8))
def test_anything_is_a_target_or_a_bad_request(host, sandbox_id, port) -> None:
    try:
        target = find_target(host, sandbox_id, port)
    except InvalidArgument:
        return
    assert target.sandbox_id.isalnum()
    assert target.sandbox_id.isascii()
    assert 0 <= target.port <= 65535


@pytest.mark.parametrize("path", ["/init", "/init/", "//init", "/a/../init", "/./freeze"])
def test_internal_paths_however_they_are_written(path) -> None:
    assert is_internal(path)
    assert not is_internal("/initial")


async def test_not_found_as_json_and_as_a_page() -> None:
    client, _, _ = make_client()
    client.sandbox = None
    nobody = {"host": "8000-gone.sandbox.test"}
    answer = await client.ask("GET", "/", headers=nobody)
    assert (answer.status, answer.body) == (
        502,
        b'{"sandboxId":"gone","message":"The sandbox was not found","code":502}',
    )
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    for headers, is_page in [
        (BROWSER, True),
        ({**BROWSER, "sec-fetch-mode": "navigate", "x-requested-with": "x"}, True),
        ({**BROWSER, "sec-fetch-mode": "cors"}, False),
        ({**BROWSER, "x-requested-with": "XMLHttpRequest"}, False),
        ({**BROWSER, "accept": "application/json"}, False),
        ({"user-agent": "curl/8"}, False),
        ({}, False),
    ]:
        answer = await client.ask("GET", "/", headers={**nobody, **headers})
        assert answer.status == 502
        assert answer.body.startswith(b"<html") is is_page, headers
    page = (await client.ask("GET", "/", headers={**nobody, **BROWSER})).body.decode()
    assert page.endswith("</html>")
    assert "Sandbox Not Found" in page
    assert "gone" in page


async def test_closed_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodeagent.proxy.DIAL_PAUSES", (0, 0, 0, 0))
    client, sandbox, _ = make_client()
    answer = await client.ask("GET", "/", port=3000)
    assert answer.status == 502
    assert answer.json() == {
        "sandboxId": "abc",
        "message": "The sandbox is running but port is not open",
        "port": 3000,
        "code": 502,
    }
    assert sandbox.link.dials == [3000] * 5
    page = (await client.ask("GET", "/", port=3000, headers=BROWSER)).body.decode()
    assert "Closed Port Error" in page
    assert "no service running on port" in page


async def test_internal_operations_are_hidden_before_the_sandbox_is_looked_up() -> None:
    client, _, _ = make_client()
    client.sandbox = None
    for path in ("/init", "/x/../upgrade"):
        answer = await client.ask("PUT", path, headers={"host": "49983-gone.test"})
        assert answer.status == 404
        assert answer.json() == {
            "message": "This endpoint is reserved for the E2B control plane and is not reachable"
            " through the sandbox URL",
            "path": path,
            "code": 404,
        }


async def test_bad_hosts_and_half_routing_are_400() -> None:
    client, _, _ = make_client()
    client.sandbox = None
    answer = await client.ask("GET", "/", headers={"host": "example.test"})
    assert (answer.status, answer.json()["message"]) == (400, "Invalid host")
    answer = await client.ask("GET", "/", headers={"e2b-sandbox-id": "abc"})
    assert (answer.status, answer.body) == (400, b"missing header E2b-Sandbox-Port")


async def test_traffic_token() -> None:
    client, sandbox, _ = make_client(
        traffic_access_token="t" * 32, network=NetworkConfig(allow_public_traffic=False)
    )
    answer = await client.ask("GET", "/", port=80)
    assert (answer.status, answer.json()) == (
        403,
        {
            "sandboxId": "abc",
            "message": "Sandbox is secured with traffic access token. "
            "Token header 'e2b-traffic-access-token' is missing",
            "code": 403,
        },
    )
    answer = await client.ask("GET", "/", port=80, headers={"e2b-traffic-access-token": "x"})
    assert answer.json()["message"] == (
        "Sandbox is secured with traffic access token. "
        "Provided token in header 'e2b-traffic-access-token' is invalid"
    )
    assert sandbox.link.dials == []
    assert (await client.ask("GET", "/health")).status == 204  # envd's port is not affected


def paused(**fields):
    client, sandbox, node = make_client(**fields)
    sandbox.state, sandbox.is_routable = NodeSandboxState.PAUSED, False
    return client, sandbox, node


async def test_paused_without_auto_resume_is_not_found() -> None:
    client, _, node = paused()
    assert (await client.ask("GET", "/health")).status == 502
    client, sandbox, node = paused(auto_resume=True)
    sandbox.keeps_memory = False
    assert (await client.ask("GET", "/health")).status == 502
    assert node.wakes == []


async def test_traffic_wakes_a_sandbox_for_who_may() -> None:
    client, _sandbox, node = paused(auto_resume=True)
    for token in (None, "wrong"):
        answer = await client.ask("GET", "/health", token=token)
        assert (answer.status, answer.json()["message"]) == (
            403,
            "This sandbox can't be resumed with the credentials provided. "
            "Check your access token and try again.",
        )
    assert node.wakes == []
    assert (await client.ask("GET", "/health", token=TOKEN)).status == 204
    assert node.wakes == ["abc"]
    assert (await client.ask("GET", "/envs")).status == 200
    assert node.wakes == ["abc"]


async def test_private_ports_wake_only_with_the_traffic_token(monkeypatch) -> None:
    monkeypatch.setattr("nodeagent.proxy.DIAL_PAUSES", ())
    client, _, node = paused(
        auto_resume=True,
        traffic_access_token="t",
        network=NetworkConfig(allow_public_traffic=False),
    )
    assert (await client.ask("GET", "/", port=80)).status == 403
    assert node.wakes == []
    answer = await client.ask("GET", "/", port=80, headers={"e2b-traffic-access-token": "t"})
    assert node.wakes == ["abc"]
    assert answer.json()["message"] == "The sandbox is running but port is not open"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (NotFound("x"), 502, "The sandbox was not found"),
        (Conflict("x"), 409, "The sandbox is still transitioning. Try again in a moment."),
        (QuotaExceeded("too many"), 429, "too many"),
        (QuotaExceeded(""), 429, "Sandbox limit reached"),
    ],
)
async def test_waking_can_fail(error, status, message) -> None:
    client, _, node = paused(auto_resume=True)
    node.wake_error = error
    answer = await client.ask("GET", "/health")
    assert (answer.status, answer.json()["message"]) == (status, message)
    assert answer.json()["sandboxId"] == "abc"


async def test_a_killed_sandbox_resets_streams_and_answers_not_found_at_once() -> None:
    client, sandbox, _ = make_client()
    conversation = client.stream("/process.Process/Start", {"process": {"cmd": "x"}})
    await conversation.until(conversation.answer.messages)
    sandbox.unroute()
    assert conversation.exchange.was_reset
    assert not conversation.answer.is_complete
    answer = await client.ask("GET", "/health")
    assert (answer.status, answer.json()["message"]) == (502, "The sandbox was not found")
    conversation.hang_up()


async def test_finished_requests_are_not_remembered() -> None:
    client, sandbox, _ = make_client()
    await client.ask("GET", "/envs")
    await client.run_stream("/process.Process/Connect", {"process": {"pid": 1}})
    assert sandbox.aborts == set()


async def test_connection_cap() -> None:
    node = FakeNode()
    sandbox = node.add()
    client = Client(
        Gateway(node, GatewaySettings(host="127.0.0.1", port=0, max_connections=1)), sandbox
    )
    conversation = client.stream("/process.Process/Start", {"process": {"cmd": "x"}})
    await conversation.until(conversation.answer.messages)
    answer = await client.ask("GET", "/envs")
    assert (answer.status, answer.json()) == (
        429,
        {
            "sandboxId": "abc",
            "message": "The sandbox has too many concurrent incoming connections (limit: 1)",
            "connectionLimit": 1,
            "code": 429,
        },
    )
    conversation.hang_up()


class _Request:
    def __init__(self, headers, method="GET", target=b"/a?b") -> None:
        self.headers, self.method = headers, method
        self.exchange = type("E", (), {"raw_target": target})

    def header(self, name):
        return next((value.decode() for key, value in self.headers if key == name), None)


def head_lines(sandbox, headers, **arguments) -> list[bytes]:
    head = SandboxPort(sandbox, 8000).head(_Request(headers), **arguments)
    assert head.endswith(b"\r\n\r\n")
    return head[:-4].split(b"\r\n")


def test_what_the_service_sees() -> None:
    _, sandbox, _ = make_client()
    headers = [
        (b"host", b"8000-abc.test"),
        (b"x-forwarded-for", b"1.2.3.4"),
        (b"forwarded", b"for=x"),
        (b"connection", b"keep-alive, x-hop"),
        (b"x-hop", b"1"),
        (b"te", b"trailers"),
        (b"cookie", b"a=b"),
        (b"content-length", b"3"),
    ]
    assert head_lines(sandbox, headers) == [
        b"GET /a?b HTTP/1.1",
        b"host: 8000-abc.test",
        b"te: trailers",
        b"cookie: a=b",
        b"content-length: 3",
    ]


def test_masked_host() -> None:
    _, sandbox, _ = make_client(network=NetworkConfig(mask_request_host="localhost:${PORT}"))
    headers = [(b"host", b"8000-abc.test"), (b"x-forwarded-host", b"evil")]
    assert head_lines(sandbox, headers) == [
        b"GET /a?b HTTP/1.1",
        b"host: localhost:8000",
        b"x-forwarded-host: 8000-abc.test",
    ]


def test_framing_headers_cannot_be_made_hop_by_hop() -> None:
    assert connection_options([(b"connection", b"Content-Length, x, Host")]) == {b"x"}


def test_response_headers_lose_hop_by_hop_and_broken_ones() -> None:
    headers = [
        (b"content-type", b"text/plain"),
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"close"),
        (b"keep-alive", b"timeout=5"),
        (b"x-bad", b"a\x00b"),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
    ]
    assert response_headers(headers) == [
        (b"content-type", b"text/plain"),
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
    ]
