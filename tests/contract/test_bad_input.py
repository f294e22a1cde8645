"""Bad input over plain HTTP: a clear error in E2B's shape, never a 500, and nothing is created."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.stack import Stack


@pytest.fixture
def api(stack: Stack) -> Iterator[httpx.Client]:
    headers = {"X-API-Key": stack.env()["E2B_API_KEY"]}
    with httpx.Client(base_url=stack.web_url, headers=headers, timeout=30) as client:
        before = _ids(client)
        yield client
        assert _ids(client) == before, "something was created or ended"


def _ids(client: httpx.Client) -> set[str]:
    return {item["sandboxID"] for item in client.get("/v2/sandboxes").json()}


def refused(answer: httpx.Response, status: int) -> str:
    """The message of an answer that must be an error of that status in E2B's shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["code"] == status
    assert body["message"]
    assert "Traceback" not in answer.text
    return str(body["message"])


GOOD: dict[str, Any] = {"templateID": "base", "timeout": 30}


@pytest.mark.parametrize(
    ("change", "status", "names"),
    [
        ({"templateID": "no-such-template"}, 404, "no-such-template"),
        ({"templateID": ""}, 400, "template ID"),
        ({"templateID": None}, 400, "templateID"),
        ({"templateID": 7}, 400, "templateID"),
        ({"templateID": "../../etc"}, 400, ""),
        ({"timeout": -1}, 400, "timeout"),
        ({"timeout": 10**12}, 400, "timeout"),
        ({"timeout": 1.5}, 400, "timeout"),
        ({"timeout": "soon"}, 400, "timeout"),
        ({"metadata": ["a"]}, 400, "metadata"),
        ({"metadata": {"a": {"b": 1}}}, 400, "metadata"),
        ({"envVars": "A=1"}, 400, "envVars"),
    ],
)
def test_a_bad_create_is_refused(
    api: httpx.Client, change: dict[str, Any], status: int, names: str
) -> None:
    message = refused(api.post("/sandboxes", json={**GOOD, **change}), status)
    assert names.lower() in message.lower()


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"{}" * 3])
def test_a_malformed_body_is_refused(api: httpx.Client, body: bytes) -> None:
    refused(api.post("/sandboxes", content=body, headers={"Content-Type": "application/json"}), 400)


def test_a_body_over_the_limit_is_refused(api: httpx.Client) -> None:
    body = json.dumps({**GOOD, "metadata": {"a": "x" * (17 * 1024 * 1024)}})
    try:
        answer = api.post("/sandboxes", content=body)
    except httpx.HTTPError:
        return  # the connection may be closed on it, as long as nothing is created
    assert answer.status_code == 413, answer.text


@pytest.mark.parametrize("key", ["", "nonsense", "e2b_" + "0" * 40, "e2b_" + "a" * 4000, "e2b_é"])
def test_a_wrong_key_is_refused(api: httpx.Client, key: str) -> None:
    headers = {b"X-API-Key": key.encode()}
    refused(api.post("/sandboxes", json=GOOD, headers=headers), 401)
    refused(api.get("/v2/sandboxes", headers=headers), 401)


def test_no_key_is_refused(stack: Stack) -> None:
    refused(httpx.post(f"{stack.web_url}/sandboxes", json=GOOD), 401)


def test_another_teams_sandbox_looks_absent(stack: Stack, api: httpx.Client) -> None:
    charlie = {"X-API-Key": stack.env("charlie@example.com")["E2B_API_KEY"]}
    made = api.post("/sandboxes", json=GOOD).json()["sandboxID"]
    try:
        with httpx.Client(base_url=stack.web_url, headers=charlie) as other:
            for method, path, body in (
                ("GET", f"/sandboxes/{made}", None),
                ("DELETE", f"/sandboxes/{made}", None),
                ("POST", f"/sandboxes/{made}/timeout", {"timeout": 5}),
                ("POST", f"/sandboxes/{made}/connect", {"timeout": 5}),
                ("POST", f"/sandboxes/{made}/refreshes", {"duration": 5}),
                ("POST", f"/sandboxes/{made}/pause", None),
            ):
                refused(other.request(method, path, json=body), 404)
            assert made not in _ids(other)
        assert api.get(f"/sandboxes/{made}").json()["state"] == "running"
    finally:
        assert api.delete(f"/sandboxes/{made}").status_code == 204


@pytest.mark.parametrize("path", ["/sandboxes/nosuch", "/sandboxes/NO%20such", "/no/such/path"])
def test_what_is_not_there_is_refused(api: httpx.Client, path: str) -> None:
    assert api.get(path).status_code in (400, 404)


@pytest.mark.parametrize("place", ["web", "gateway"])
@pytest.mark.parametrize(
    "host", ["evil.example", "a b", "..", "x" * 300, "[::1", "8000-..localhost"]
)
def test_an_invalid_host_header_is_refused(stack: Stack, place: str, host: str) -> None:
    """By hand: no client library would send these."""
    url = urlsplit(stack.web_url if place == "web" else stack.gateway_url)
    with socket.create_connection(("127.0.0.1", url.port), timeout=10) as connection:
        connection.sendall(
            f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        )
        status = int(connection.makefile("rb").readline().split()[1])
    assert 400 <= status < 500 or (place == "gateway" and status == 502)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"E2b-Sandbox-Id": "nosuchsandbox0000000", "E2b-Sandbox-Port": "49983"}, 502),
        ({"E2b-Sandbox-Id": "nosuchsandbox0000000", "E2b-Sandbox-Port": "port"}, 400),
        ({"E2b-Sandbox-Id": "../../x", "E2b-Sandbox-Port": "80"}, 400),
        ({"E2b-Sandbox-Id": "nosuchsandbox0000000", "E2b-Sandbox-Port": "70000"}, 400),
    ],
)
def test_the_gateway_refuses_bad_targets(
    stack: Stack, headers: dict[str, str], status: int
) -> None:
    answer = httpx.get(f"{stack.gateway_url}/x", headers=headers)
    assert answer.status_code in (status, 502), answer.text
    assert answer.json()["message"]


def test_the_agent_api_answers_nobody_without_its_token(stack: Stack) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer sln_" + "0" * 64},
        {"Authorization": "Basic eA=="},
    ):
        for method, path in (("GET", "/v1/node"), ("POST", "/v1/sandboxes")):
            answer = httpx.request(method, f"{stack.agent_url}{path}", headers=headers)
            assert answer.status_code == 401, answer.text
    answer = httpx.post(f"{stack.web_url}/internal/nodes/heartbeat", json={})
    assert answer.status_code == 401
