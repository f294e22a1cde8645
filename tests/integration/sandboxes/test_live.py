"""Hints to pages: coalesced, per team, from any process."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from asgiref.sync import sync_to_async
from channels.layers import get_channel_layer

from sandboxes import live
from tests.factories import make_person


@pytest.fixture
def team(transactional_db):
    return make_person().team


@pytest.fixture
def mode(monkeypatch):
    fresh = live._Mode()
    monkeypatch.setattr(live, "_mode", fresh)
    return fresh


async def test_a_burst_of_changes_is_one_hint_to_its_own_team(team, mode):
    live.serve_on(asyncio.get_running_loop())
    layer = get_channel_layer()
    channel = await layer.new_channel()
    other = await layer.new_channel()
    await layer.group_add(live.team_group(team), channel)
    await layer.group_add("team.0", other)
    await sync_to_async(lambda: [live.publish(team.pk) for _ in range(50)])()
    await sync_to_async(live.publish)(team.pk, topics=("keys",))
    message = await asyncio.wait_for(layer.receive(channel), 10)
    topics = set(message["topics"])
    if "keys" not in topics:  # the burst was cut in two by the clock
        topics |= set((await asyncio.wait_for(layer.receive(channel), 10))["topics"])
    assert message["type"] == "live.changed"
    assert topics == {"sandboxes", "keys"}
    for waiting in (channel, other):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(layer.receive(waiting), 0.3)


@pytest.fixture
def web():
    """What the worker takes for the web process."""
    received: queue.Queue = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.put((self.path, self.headers["Authorization"], json.loads(body)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.server_port, received
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_process_without_sockets_passes_hints_through_the_web(team, mode, web, settings):
    settings.WEB_PORT, received = web
    mode.relays = True
    live.publish(team.pk)
    path, authorization, body = received.get(timeout=10)
    assert (path, body) == ("/internal/live", {str(team.pk): ["sandboxes"]})
    assert authorization == f"Bearer {settings.INTERNAL_TOKEN}"


def test_only_a_layer_in_memory_needs_the_web(mode, settings):
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer"}}
    live.relay_through_web()
    assert mode.relays is False
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    live.relay_through_web()
    assert mode.relays is True
