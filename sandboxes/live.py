"""Hints to open pages that something of a team changed. They carry no data: a page asks again.

Layering: pages subscribe (`team_group`) and this module never knows them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import urllib3
from channels.layers import get_channel_layer
from django.conf import settings
from django.db import transaction

from accounts.models import Team

logger = logging.getLogger(__name__)

PUBLISH_EVERY_SECONDS = 0.05
INTERNAL_PATH = "/internal/live"


def team_group(team: Team) -> str:
    return _group_name(team.pk)


def publish(team_id: int, *, topics: tuple[str, ...] = ("sandboxes",)) -> None:
    """Tell the team's pages, once the transaction at hand is committed. Never raises, never waits.

    Hints within PUBLISH_EVERY_SECONDS become one message: a burst of changes costs one.
    """
    transaction.on_commit(lambda: _outbox.add(team_id, topics), robust=True)


class Outbox:
    """Collects hints and sends them from a thread of its own, off the path of requests."""

    def __init__(self) -> None:
        self._waiting: dict[int, set[str]] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._http = urllib3.PoolManager(num_pools=1, maxsize=1, retries=False)

    def add(self, team_id: int, topics: tuple[str, ...]) -> None:
        with self._lock:
            self._waiting.setdefault(team_id, set()).update(topics)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="live", daemon=True)
                self._thread.start()
        self._wake.set()

    def _run(self) -> None:
        # One loop for the thread's life: a channel layer keeps a connection per loop.
        self._runner = asyncio.Runner()
        while True:
            self._wake.wait()
            # Let a burst gather; the first hint waits this long as well.
            time.sleep(PUBLISH_EVERY_SECONDS)
            self._wake.clear()
            with self._lock:
                waiting, self._waiting = self._waiting, {}
            try:
                self._send(waiting)
            except Exception:
                # A hint lost is repaired by the page's next poll; the thread must live on.
                logger.warning("Could not publish live changes", exc_info=True)

    def _send(self, waiting: dict[int, set[str]]) -> None:
        if _mode.relays:
            self._http.request(
                "POST",
                f"http://127.0.0.1:{settings.WEB_PORT}{INTERNAL_PATH}",
                headers={"Authorization": f"Bearer {settings.INTERNAL_TOKEN}"},
                json={str(team_id): sorted(topics) for team_id, topics in waiting.items()},
                timeout=2.0,
            )
            return
        loop = _mode.loop
        if loop is not None and loop.is_running():
            asyncio.run_coroutine_threadsafe(send_all(waiting), loop).result(timeout=5)
        else:
            self._runner.run(send_all(waiting))


async def send_all(waiting: dict[int, set[str]]) -> None:
    layer: Any = get_channel_layer()
    for team_id, topics in waiting.items():
        message = {"type": "live.changed", "topics": sorted(topics)}
        await layer.group_send(_group_name(team_id), message)


def _group_name(team_id: int) -> str:
    return f"team.{team_id}"


class _Mode:
    """How this process reaches the sockets."""

    loop: asyncio.AbstractEventLoop | None = None
    relays = False


_mode = _Mode()


def serve_on(loop: asyncio.AbstractEventLoop) -> None:
    """This process serves the sockets on `loop`: messages must be sent there."""
    _mode.loop = loop


def relay_through_web() -> None:
    """This process serves none; without a shared channel layer the web process passes hints on."""
    backend = str(settings.CHANNEL_LAYERS["default"]["BACKEND"])
    _mode.relays = backend.endswith("InMemoryChannelLayer")


_outbox = Outbox()
