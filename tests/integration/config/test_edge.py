"""The web process as a server calls it: paths, hosts, bodies, origins, errors."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.factories import make_person, make_template

ORIGIN = {"Origin": "https://somewhere.example"}


@pytest.fixture
async def http(transactional_db):
    from config.asgi import http_application

    transport = httpx.ASGITransport(app=http_application)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
        yield client


@pytest.fixture
def alice(transactional_db):
    return make_person("alice")


async def test_health_needs_nobody(http):
    response = await http.get("/health")
    assert (response.status_code, response.text) == (200, "Health check successful")


@pytest.fixture
def template(alice):
    return make_template("mine", team=alice.team)


async def test_an_encoded_slash_stays_in_its_segment(alice, template, http):
    for path in (
        "/templates/aliases/alice%2Fmine",
        "/templates/alice%2Fmine%3Adefault",
        "/templates/aliases/alice/mine",
    ):
        response = await http.get(path, headers=alice.headers)
        assert response.json()["templateID"] == template.public_id, path
    response = await http.get("/templates/alice%2Fmine/tags", headers=alice.headers)
    assert [tag["tag"] for tag in response.json()] == ["default"]


@pytest.mark.parametrize("host", ["evil.example", "a b", "localhost:x", "[::1", "-", "%00"])
async def test_an_unknown_host_is_refused_clearly(http, host):
    response = await http.get("/v2/sandboxes", headers={"Host": host})
    assert response.status_code == 400
    assert response.json()["code"] == 400
    assert "Invalid host" in response.json()["message"]


@pytest.mark.parametrize("path", ["/sandboxes", "/internal/nodes/heartbeat", "/accounts/login/"])
async def test_a_body_over_the_limit_is_refused(http, settings, path):
    settings.MAX_BODY_BYTES = 1000
    response = await http.post(path, content=b"x" * 1001)
    assert (response.status_code, response.text) == (413, "request too large")


async def test_a_chunked_body_over_the_limit_is_refused(http, settings):
    settings.MAX_BODY_BYTES = 1000

    async def chunks():
        for _ in range(3):
            yield b"x" * 500

    response = await http.post("/sandboxes", content=chunks())
    assert (response.status_code, response.text) == (413, "request too large")


async def test_a_chunked_body_is_read_whole(alice, http):
    async def chunks():
        yield b'{"templateID":'
        yield b'"nothing"}'

    response = await http.post("/sandboxes", content=chunks(), headers=alice.headers)
    assert (response.status_code, response.json()["message"]) == (
        404,
        "template 'nothing' not found",
    )


@pytest.mark.parametrize(
    "path", ["/v2/nothing", "/sandboxes/", "/v3/x", "/sandboxes/a/b/c", "/internal/none"]
)
async def test_an_unknown_api_path_answers_json(http, path):
    for accept in ("*/*", "text/html"):
        response = await http.get(path, headers={"Accept": accept})
        assert response.status_code == 404
        assert response.json() == {
            "code": 404,
            "message": "validation error: no matching operation was found",
        }


async def test_health_is_told_while_every_thread_waits(http, alice, monkeypatch):
    from config.asgi import http_application
    from sandboxes.api import views

    go = threading.Event()

    def wait(*_args, **_options):
        assert go.wait(30)
        return [], None

    monkeypatch.setattr(views, "list_page", wait)
    monkeypatch.setattr(http_application, "threads", ThreadPoolExecutor(1))
    waiting = asyncio.create_task(http.get("/v2/sandboxes", headers=alice.headers))
    try:
        response = await asyncio.wait_for(http.get("/health"), 20)
        assert response.status_code == 200
        assert not waiting.done()
    finally:
        go.set()
    assert (await waiting).status_code == 200
    http_application.threads.shutdown()


async def test_a_stream_is_sent_as_it_is_made(transactional_db, monkeypatch):
    from django.http import StreamingHttpResponse

    from config.asgi import http_application

    made: list[int] = []
    sent: list[dict] = []

    def parts():
        for number in range(3):
            made.append(number)
            yield f"part {number}\n"

    stream = StreamingHttpResponse(parts())
    stream.set_cookie("a", "b")
    monkeypatch.setattr(http_application, "get_response", lambda request: stream)

    async def receive():
        if sent:
            await asyncio.Event().wait()
        return {"type": "http.request"}

    async def send(message):
        sent.append({**message, "made": len(made)})

    scope = {"type": "http", "method": "GET", "path": "/x", "headers": [], "query_string": b""}
    await http_application(scope, receive, send)
    assert [message.get("body") for message in sent] == [
        None,
        b"part 0\n",
        b"part 1\n",
        b"part 2\n",
        None,
    ]
    assert [message["made"] for message in sent] == [0, 1, 2, 3, 3]
    assert (b"Set-Cookie", b"a=b; Path=/") in sent[0]["headers"]
    assert stream.closed


async def test_an_unknown_page_answers_a_page_to_people_only(http):
    page = await http.get("/no-such-page", headers={"Accept": "text/html"})
    assert page.headers["Content-Type"].startswith("text/html")
    assert (await http.get("/no-such-page")).json()["code"] == 404


async def test_any_origin_may_ask(alice, http):
    preflight = await http.options(
        "/v2/sandboxes", headers={**ORIGIN, "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == "*"
    for name in ("X-API-Key", "Idempotency-Key", "sdk_runtime"):
        assert name in preflight.headers["Access-Control-Allow-Headers"]
    answer = await http.get("/v2/sandboxes", headers={**ORIGIN, **alice.headers})
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "X-Next-Token" in answer.headers["Access-Control-Expose-Headers"]


async def test_pages_are_for_their_own_origin_only(http):
    response = await http.get("/accounts/login/", headers=ORIGIN)
    assert "Access-Control-Allow-Origin" not in response.headers


async def test_pages_allow_no_script_but_ours(http):
    response = await http.get("/accounts/login/")
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


async def test_a_crash_answers_json_without_a_trace(alice, http, monkeypatch):
    from sandboxes.api import views

    def crash(*_args, **_options):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(views, "list_page", crash)
    response = await http.get("/v2/sandboxes", headers=alice.headers)
    assert response.status_code == 500
    assert response.json() == {"code": 500, "message": "Something went wrong on our side"}


async def test_the_api_describes_itself(http):
    document = (await http.get("/schema")).json()
    paths = document["paths"]
    assert {"get", "post"} <= set(paths["/sandboxes"])
    assert not [path for path in paths if path.startswith(("/internal", "/operator", "/t/"))]
    body = paths["/v2/sandboxes"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].endswith("/CreateInput")
