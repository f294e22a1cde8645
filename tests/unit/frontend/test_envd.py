"""The envd client against answers as bytes, cut and broken in every way."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator

import httpx
import pytest

from frontend.envd import Door, EnvdError, Files, Processes

DOOR = Door(gateway_url="http://gateway", sandbox_id="iabc", access_token="secret")


def envelope(message: object, flags: int = 0) -> bytes:
    payload = json.dumps(message).encode()
    return struct.pack(">BI", flags, len(payload)) + payload


class Pieces(httpx.AsyncByteStream):
    def __init__(self, data: bytes, step: int) -> None:
        self.data, self.step = data, step

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self.data), self.step):
            yield self.data[at : at + self.step]


def processes(
    data: bytes, step: int = 7, status: int = 200
) -> tuple[Processes, list[httpx.Request]]:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, stream=Pieces(data, step))

    return Processes(DOOR, httpx.MockTransport(answer)), seen


async def collect(client: Processes) -> list[dict]:
    async with client.start_shell(cols=80, rows=24, tag="t") as events:
        return [event async for event in events]


STREAM = (
    envelope({"event": {"start": {"pid": 7}}})
    + envelope({"event": {"data": {"pty": base64.b64encode(b"hi").decode()}}})
    + envelope({"event": {"keepalive": {}}})
    + envelope({"event": {"end": {"exited": True}}})
    + envelope({}, flags=2)
)


@pytest.mark.parametrize("step", [1, 3, 1000])
async def test_events_survive_any_cutting(step: int) -> None:
    client, seen = processes(STREAM, step)
    events = await collect(client)
    assert [next(iter(event)) for event in events] == ["start", "data", "keepalive", "end"]
    request = seen[0]
    assert request.headers["E2b-Sandbox-Id"] == "iabc"
    assert request.headers["X-Access-Token"] == "secret"
    body = request.read()
    assert json.loads(body[5:])["pty"] == {"size": {"cols": 80, "rows": 24}}
    await client.close()


async def test_an_error_at_the_end_of_a_stream_is_raised() -> None:
    client, _ = processes(envelope({"error": {"code": "not_found", "message": "gone"}}, flags=2))
    with pytest.raises(EnvdError, match="gone") as caught:
        await collect(client)
    assert caught.value.code == "not_found"
    await client.close()


async def test_an_oversized_envelope_is_refused_before_it_is_read() -> None:
    client, _ = processes(struct.pack(">BI", 0, 2**31) + b"x" * 100)
    with pytest.raises(EnvdError, match="too large"):
        await collect(client)
    await client.close()


async def test_a_gateway_error_is_told_in_its_words() -> None:
    body = {"sandboxId": "iabc", "message": "The sandbox was not found", "code": 502}
    client, _ = processes(json.dumps(body).encode(), status=502)
    with pytest.raises(EnvdError, match="was not found") as caught:
        await collect(client)
    assert caught.value.code == "unavailable"
    await client.close()


def test_a_node_that_does_not_answer_is_unavailable() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with Files(DOOR, httpx.MockTransport(refuse)) as files, pytest.raises(EnvdError) as caught:
        files.list("/")
    assert caught.value.code == "unavailable"


def test_entries_are_read() -> None:
    entry = {
        "name": "a",
        "type": "FILE_TYPE_DIRECTORY",
        "path": "/a",
        "size": "4096",
        "permissions": "drwxr-xr-x",
        "owner": "user",
        "modifiedTime": "2026-01-02T03:04:05.678Z",
    }
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"entries": [entry, {}]}))
    with Files(DOOR, transport) as files:
        first, odd = files.list("/")
    assert first.is_directory
    assert first.size_bytes == 4096
    assert first.modified_at is not None
    assert odd.modified_at is None


def test_reading_stops_at_the_limit() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=b"x" * 10_000))
    with Files(DOOR, transport) as files:
        assert files.read("/big", 100) == b"x" * 100
