"""The pages' websockets: hints of what changed in a team, and terminals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.utils import timezone

from accounts.models import AuditEvent, Membership
from accounts.services import Actor, audit
from config.errors import AppError
from frontend.doors import door_of
from frontend.envd import Door, EnvdError
from frontend.pages import Can, membership_of
from frontend.terminal import MAX_INPUT_BYTES, Terminal, Viewer, clamp_size, terminals
from sandboxes.access import access_sandbox
from sandboxes.live import team_group

logger = logging.getLogger(__name__)

UPDATES_EVERY_SECONDS = 0.25  # at most four hints a second and page
BEAT_SECONDS = 15.0
RECHECK_SECONDS = 60.0

# Close codes; a browser only sees them once the handshake is accepted.
LOGGED_OUT = 4401
NOT_FOUND = 4404
ENDED = 4410
UNAVAILABLE = 4503

UNACKED_BYTES = 256 * 1024
MAX_TYPED_BYTES = 4 * 1024 * 1024
NOTE_EVERY = timedelta(minutes=10)


class TeamConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # channels has no types
    """A socket within one team; it closes when the person leaves the team or logs out."""

    membership: Membership
    needs = ""

    async def connect(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        await self.accept()
        user = self.scope["user"]
        if not user.is_authenticated:
            await self.close(LOGGED_OUT)
            return
        slug = self.scope["url_route"]["kwargs"]["team_slug"]
        membership = await database_sync_to_async(membership_of)(user, slug)
        if membership is None or (self.needs and not Can(membership)[self.needs]):
            await self.close(NOT_FOUND)
            return
        self.membership = membership
        await self.opened()
        self.spawn(self._recheck(), "recheck")

    async def opened(self) -> None:
        """The person may be here; start what this socket is for."""
        raise NotImplementedError

    def spawn(self, work: Any, name: str) -> None:
        self.tasks.append(asyncio.create_task(work, name=f"{type(self).__name__}.{name}"))

    async def disconnect(self, code: int) -> None:
        for task in self.tasks:
            task.cancel()

    async def _recheck(self) -> None:
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            if not await database_sync_to_async(self._may_stay)():
                await self.close(NOT_FOUND)
                return

    def _may_stay(self) -> bool:
        session = self.scope["session"]
        if not session.session_key or not session.exists(session.session_key):
            return False
        membership = membership_of(self.scope["user"], self.membership.team.slug)
        return membership is not None and (not self.needs or Can(membership)[self.needs])


class LiveConsumer(TeamConsumer):
    """Tells a page which topics changed. It carries no data: the page asks for a fresh snapshot.

    Changes within UPDATES_EVERY_SECONDS become one hint, so a burst costs one message, and a socket
    that is slow holds a set of topic names, never a queue.
    """

    async def opened(self) -> None:
        self.changed: set[str] = set()
        self.wake = asyncio.Event()
        self.group = team_group(self.membership.team)
        await self.channel_layer.group_add(self.group, self.channel_name)
        # What changed between the page's making and this moment was told to nobody: ask again.
        await self.send(json.dumps({"type": "joined"}))
        self.spawn(self._pump(), "pump")

    async def disconnect(self, code: int) -> None:
        await super().disconnect(code)
        if hasattr(self, "group"):
            await self.channel_layer.group_discard(self.group, self.channel_name)

    async def live_changed(self, event: dict[str, Any]) -> None:
        """A message of `sandboxes.live`."""
        self.changed.update(event.get("topics", ["sandboxes"]))
        self.wake.set()

    async def _pump(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self.wake.wait(), BEAT_SECONDS)
            except TimeoutError:
                await self.send(json.dumps({"type": "beat"}))
                continue
            self.wake.clear()
            topics, self.changed = sorted(self.changed), set()
            await self.send(json.dumps({"type": "changed", "topics": topics}))
            await asyncio.sleep(UPDATES_EVERY_SECONDS)


class TerminalConsumer(TeamConsumer):
    """A terminal in one sandbox. Binary frames are its bytes; text frames are JSON control.

    From the page: `{"type": "resize", "cols", "rows"}`, `{"type": "ack", "bytes"}`. To the page:
    `{"type": "ready"}`, `{"type": "viewers", "count"}`, `{"type": "ended", "reason"}`. No more than
    UNACKED_BYTES are on their way to a page at a time.
    """

    needs = "open_terminal"

    async def opened(self) -> None:
        self.terminal: Terminal | None = None
        self.viewer: Viewer | None = None
        self.unacked = 0
        self.acked = asyncio.Event()
        self.typed = bytearray()
        self.typing = asyncio.Event()
        query = parse_qs(self.scope["query_string"].decode("ascii", "ignore"))
        cols, rows = clamp_size(_number(query, "cols", 80), _number(query, "rows", 24))
        try:
            door = await database_sync_to_async(self._door)()
            terminal = await terminals.join(door, cols=cols, rows=rows)
        except AppError as error:
            await self._end(error.message, NOT_FOUND)
            return
        except EnvdError as error:
            await self._end(error.message, UNAVAILABLE)
            return
        self.terminal = terminal
        self.viewer, missed = terminal.attach()
        await self.send(json.dumps({"type": "ready"}))
        if missed:
            self.unacked += len(missed)
            await self.send(bytes_data=missed)
        await self._quietly(terminal.resize(cols, rows))
        self.spawn(self._pump(terminal, self.viewer), "pump")
        self.spawn(self._send_typed(terminal), "send_typed")

    def _door(self) -> Door:
        sandbox = access_sandbox(
            self.membership.team, self.scope["url_route"]["kwargs"]["sandbox_id"]
        )
        door = door_of(sandbox, now=timezone.now())
        self._note(sandbox.public_id)
        return door

    def _note(self, sandbox_id: str) -> None:
        """One line in the audit log, not one for every time a socket comes back."""
        user, team = self.scope["user"], self.membership.team
        seen = AuditEvent.objects.filter(
            team=team,
            actor_user=user,
            action="terminal.opened",
            target=sandbox_id,
            at__gte=timezone.now() - NOTE_EVERY,
        )
        if not seen.exists():
            actor = Actor.of_user(user, ip_address=(self.scope.get("client") or [None])[0])
            audit(team=team, actor=actor, action="terminal.opened", target=sandbox_id)

    async def disconnect(self, code: int) -> None:
        await super().disconnect(code)
        terminal = getattr(self, "terminal", None)
        if terminal and self.viewer:
            terminal.detach(self.viewer)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        terminal = getattr(self, "terminal", None)
        if terminal is None:
            return
        if bytes_data:
            if len(self.typed) + len(bytes_data) > MAX_TYPED_BYTES:
                await self._end("More was typed than the sandbox takes.", UNAVAILABLE)
                return
            self.typed += bytes_data
            self.typing.set()
            return
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            message = json.loads(text_data or "")
            if message.get("type") == "resize":
                await self._quietly(terminal.resize(int(message["cols"]), int(message["rows"])))
            elif message.get("type") == "ack":
                self.unacked = max(0, self.unacked - int(message["bytes"]))
                self.acked.set()

    async def _pump(self, terminal: Terminal, viewer: Viewer) -> None:
        shown = 0
        while True:
            if terminal.viewers != shown:
                shown = terminal.viewers
                await self.send(json.dumps({"type": "viewers", "count": shown}))
            while self.unacked > UNACKED_BYTES:
                self.acked.clear()
                await self.acked.wait()
            data = await viewer.take()
            if data is None:
                await self._end(viewer.end_reason, ENDED)
                return
            self.unacked += len(data)
            await self.send(bytes_data=data)

    async def _send_typed(self, terminal: Terminal) -> None:
        """One call at a time, in order: what is typed meanwhile goes with the next one."""
        while True:
            await self.typing.wait()
            self.typing.clear()
            while self.typed:
                piece = bytes(self.typed[:MAX_INPUT_BYTES])
                del self.typed[: len(piece)]
                await self._quietly(terminal.send(piece))

    async def _end(self, reason: str, code: int) -> None:
        await self.send(json.dumps({"type": "ended", "reason": reason}))
        await self.close(code)

    async def _quietly(self, call: Any) -> None:
        try:
            await call
        except EnvdError as error:
            logger.info("a terminal call failed: %s", error.message)


def _number(query: dict[str, list[str]], name: str, default: int) -> int:
    try:
        return int(query[name][0])
    except (KeyError, ValueError):
        return default
