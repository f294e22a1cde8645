"""The agent API over a real socket, called by the control plane's own client."""

import asyncio
import http.client
import json
import socket

import pytest

from nodeagent import wire
from nodeagent.client import AgentClient
from nodeagent.errors import (
    Conflict,
    InvalidArgument,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from nodeagent.server import MAX_BODY_BYTES, AgentServer
from nodeagent.wire import EndReason, NetworkConfig, NodeSandboxState
from tests.unit.nodeagent.fakes import IMAGE, create_spec, pool_spec

TOKEN = "sln_test"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
async def port(stage):
    await stage.kill()
    agent = await stage.start(api_port=free_port())
    serving = asyncio.create_task(AgentServer(agent).serve())
    await stage.until(lambda: _answers(agent.settings.api_port))
    yield agent.settings.api_port
    serving.cancel()
    await asyncio.wait([serving])


@pytest.fixture
def call(port):
    """Calls a method of the client in a thread, as the control plane's threads do."""
    client = AgentClient(f"http://127.0.0.1:{port}", TOKEN)

    async def call_one(method, *args, **options):
        return await asyncio.to_thread(getattr(client, method), *args, **options)

    yield call_one
    client.close()


def _answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def request(port, method, path, *, body=None, token=TOKEN, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        sent = {"Authorization": f"Bearer {token}"} if token is not None else {}
        connection.request(method, path, body=body, headers={**sent, **(headers or {})})
        answer = connection.getresponse()
        raw = answer.read()
        return answer.status, json.loads(raw) if raw else None
    finally:
        connection.close()


async def ask(port, *args, **options):
    return await asyncio.to_thread(request, port, *args, **options)


async def test_every_call_of_the_client_is_served(call, stage):
    assert (await call("node_status")).node_id == "n1"
    await call("put_pools", [pool_spec(1)])
    started = await call("create", create_spec())
    assert await call("create", create_spec()) == started
    assert [state.sandbox_id for state in await call("list_sandboxes")] == ["i1"]
    assert (await call("set_deadline", "i1", end_at=started.started_at + 9)).end_at == (
        started.started_at + 9
    )
    assert (await call("pause", "i1")).memory
    assert (await call("get_sandbox", "i1")).state is NodeSandboxState.PAUSED
    assert (await call("resume", "i1", timeout_seconds=60)).sandbox_id == "i1"
    await call("put_network", "i1", NetworkConfig(allow_internet_access=False))
    assert await call("snapshot", "i1", image="snapshots/a-b:tag") > 0
    assert (await call("kill", "i1", reason=EndReason.OUT_OF_CREDIT)).reason == "out_of_credit"
    await call("delete_image", "snapshots/a-b:tag")
    assert stage.runtime.images == {}


async def test_errors_reach_the_client_by_name(call):
    with pytest.raises(NotFound) as absent:
        await call("get_sandbox", "nope")
    assert absent.value.error_code == "not_found"
    with pytest.raises(NotFound):
        await call("kill", "nope")
    with pytest.raises(NotFound):
        await call("pause", "../../v1/node")
    with pytest.raises(InvalidArgument, match="cpu_count"):
        await call("create", create_spec(cpu_count=0))
    with pytest.raises(InvalidArgument, match="invalid denied CIDR"):
        await call("create", create_spec(network=NetworkConfig(deny_out=["x"])))
    await call("create", create_spec())
    await call("pause", "i1")
    with pytest.raises(Conflict):
        await call("set_deadline", "i1", end_at=1.0)
    with pytest.raises(Conflict):
        await call("delete_image", IMAGE)


async def test_a_node_that_is_not_there_is_unavailable():
    client = AgentClient(f"http://127.0.0.1:{free_port()}", TOKEN)
    with pytest.raises(Unavailable, match="does not answer"):
        await asyncio.to_thread(client.node_status)
    client.close()


@pytest.mark.parametrize("token", [None, "", "wrong", "sln_tesT"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/node"),
        ("PUT", "/v1/pools"),
        ("POST", "/v1/sandboxes"),
        ("DELETE", "/v1/sandboxes/i1"),
        ("DELETE", "/v1/images/x"),
        ("GET", "/nowhere"),
    ],
)
async def test_nothing_is_served_without_the_token(port, method, path, token):
    status, body = await ask(port, method, path, token=token)
    assert (status, body["code"], body["error_code"]) == (401, 401, "unauthenticated")


async def test_another_scheme_is_no_token(port):
    status, _ = await ask(
        port, "GET", "/v1/node", token=None, headers={"Authorization": f"Basic {TOKEN}"}
    )
    assert status == 401


async def test_the_client_names_a_wrong_token(port):
    client = AgentClient(f"http://127.0.0.1:{port}", "wrong")
    with pytest.raises(Unauthenticated):
        await asyncio.to_thread(client.node_status)
    client.close()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/sandboxes", b"{"),
        ("POST", "/v1/sandboxes", b"[]"),
        ("POST", "/v1/sandboxes", b""),
        ("POST", "/v1/sandboxes", b"[" * 100_000),
        ("PUT", "/v1/pools", b"{}"),
        ("PUT", "/v1/pools", b"[1]"),
        ("POST", "/v1/sandboxes/i1/deadline", b'{"end_at": "soon"}'),
        ("POST", "/v1/sandboxes/i1/deadline", b'{"end_at": NaN}'),
        ("POST", "/v1/sandboxes/i1/snapshots", b'{"image": 7}'),
        ("POST", "/v1/sandboxes/i1/snapshots", b'{"image": "-rm"}'),
        ("POST", "/v1/sandboxes/i1/resume", b"{}"),
        ("DELETE", "/v1/sandboxes/i1?reason=whim", None),
    ],
)
async def test_a_malformed_request_is_named_and_changes_nothing(port, stage, method, path, body):
    await stage.agent.create(create_spec())
    before = stage.agent.states()
    status, answer = await ask(port, method, path, body=body)
    assert status == 400
    assert answer["message"]
    assert stage.agent.states() == before


async def test_an_oversized_body_is_refused(port):
    body = b" " * (MAX_BODY_BYTES + 1)
    status, answer = await ask(port, "POST", "/v1/sandboxes", body=body)
    assert (status, answer["error_code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/node", 405),
        ("DELETE", "/v1/sandboxes", 405),
        ("PATCH", "/v1/sandboxes/i1", 405),
        ("GET", "/v1/sandboxes/i1/pause", 405),
        ("GET", "/v1/sandboxes/i1/nothing", 404),
        ("GET", "/", 404),
        ("GET", "/v2/node", 404),
    ],
)
async def test_unknown_routes_and_methods_say_so(port, method, path, status):
    found, body = await ask(port, method, path)
    assert (found, body["code"]) == (status, status)


async def test_an_unforeseen_error_tells_nothing_of_the_inside(port, stage, caplog):
    stage.runtime.boot_error = RuntimeError("container 1234 at /var/lib")
    body = json.dumps(wire.encode(create_spec())).encode()

    status, answer = await ask(port, "POST", "/v1/sandboxes", body=body)

    assert (status, answer["error_code"]) == (500, "internal_server_error")
    assert "1234" not in json.dumps(answer)
    assert "container 1234" in caplog.text
