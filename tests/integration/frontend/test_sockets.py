"""The live socket: who may listen, what it tells, and how little it says when much happens."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from channels.layers import get_channel_layer
from channels.testing import WebsocketCommunicator
from django.test import Client

from accounts.models import Team, User
from config.asgi import application
from frontend import consumers
from sandboxes.live import team_group
from sandboxes.models import Sandbox
from tests.integration.frontend.conftest import client_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers, "RECHECK_SECONDS", 0.05)


def socket(path: str, client: Client | None = None, origin: str = "http://localhost") -> Any:
    headers = [(b"origin", origin.encode()), (b"host", b"localhost")]
    if client:
        cookies = "; ".join(f"{name}={morsel.value}" for name, morsel in client.cookies.items())
        headers.append((b"cookie", cookies.encode()))
    return WebsocketCommunicator(application, path, headers=headers)


async def close_code(communicator: Any) -> int:
    connected, _ = await communicator.connect()
    assert connected
    while True:
        message = await communicator.receive_output(timeout=10)
        if message["type"] == "websocket.close":
            return int(message["code"])


async def change(team: Team, *topics: str) -> None:
    layer: Any = get_channel_layer()
    await layer.group_send(team_group(team), {"type": "live.changed", "topics": list(topics)})


async def test_a_page_hears_what_changed(team: Team, as_alice: Client) -> None:
    live = socket(f"/ws/teams/{team.slug}/live", as_alice)
    await live.connect()
    assert json.loads(await live.receive_from(timeout=10)) == {"type": "joined"}
    await change(team, "sandboxes")
    assert json.loads(await live.receive_from(timeout=10)) == {
        "type": "changed",
        "topics": ["sandboxes"],
    }
    await live.disconnect()


async def test_a_burst_becomes_a_few_hints(team: Team, as_alice: Client) -> None:
    live = socket(f"/ws/teams/{team.slug}/live", as_alice)
    await live.connect()
    assert json.loads(await live.receive_from(timeout=10)) == {"type": "joined"}
    began = time.monotonic()
    for index in range(200):
        await change(team, "sandboxes" if index % 2 else "keys")
        await asyncio.sleep(0)
    messages = []
    while True:
        try:
            messages.append(json.loads(await live.receive_from(timeout=0.4)))
        except TimeoutError:
            break
    # However slow the machine: no more than the page's rate allows in that time.
    allowed = 2 + (time.monotonic() - began) / consumers.UPDATES_EVERY_SECONDS
    assert 1 <= len(messages) <= min(allowed, 50)
    assert messages[-1]["type"] == "changed"
    # receive_from gave up by cancelling the application, so there is nothing to disconnect.


async def test_strangers_hear_nothing(team: Team, as_charlie: Client) -> None:
    assert await close_code(socket(f"/ws/teams/{team.slug}/live", as_charlie)) == 4404
    assert await close_code(socket("/ws/teams/no-such/live", as_charlie)) == 4404
    assert await close_code(socket(f"/ws/teams/{team.slug}/live")) == 4401


async def test_other_origins_are_refused(team: Team, as_alice: Client) -> None:
    live = socket(f"/ws/teams/{team.slug}/live", as_alice, origin="https://evil.example")
    connected, _ = await live.connect()
    assert not connected


async def test_a_socket_closes_when_its_person_logs_out(team: Team, as_alice: Client) -> None:
    live = socket(f"/ws/teams/{team.slug}/live", as_alice)
    await live.connect()
    await live.receive_from(timeout=10)
    await asyncio.to_thread(as_alice.logout)
    message = await live.receive_output(timeout=10)
    assert message["type"] == "websocket.close"
    assert message["code"] == 4404


async def test_terminals_are_for_developers_of_the_team(
    team: Team, sandbox: Sandbox, vera: User, charlie: User
) -> None:
    path = f"/ws/teams/{team.slug}/sandboxes/{sandbox.public_id}/terminal"
    for user in (vera, charlie):
        client = await asyncio.to_thread(client_of, user)
        assert await close_code(socket(path, client)) == 4404
    assert await close_code(socket(path)) == 4401


async def test_a_terminal_of_a_node_that_is_gone_says_so(
    team: Team, sandbox: Sandbox, as_alice: Client
) -> None:
    path = f"/ws/teams/{team.slug}/sandboxes/{sandbox.public_id}/terminal"
    terminal = socket(path, as_alice)
    await terminal.connect()
    message = json.loads(await terminal.receive_from(timeout=10))
    assert message["type"] == "ended"
    assert "does not answer" in message["reason"]
    assert (await terminal.receive_output(timeout=10))["code"] == 4503
