"""The node's events: numbered, spooled to a file until the control plane has acknowledged them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from nodeagent import wire
from nodeagent.wire import EventKind, NodeEvent

logger = logging.getLogger(__name__)

MAX_EVENTS = 20_000
COMPACT_BYTES = 4 * 1024 * 1024


class EventSpool:
    """Appends survive a killed agent (they reach the kernel), not a power cut.

    They are not fsynced: it costs milliseconds on the path of every create, and what a power cut
    takes is repaired by the heartbeat, which lists every sandbox. When the control plane is away
    for long, log events are dropped first, then deadline changes; starts and ends stay.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._events: deque[NodeEvent] = deque()
        self._next_seq = 1
        self._on_event: Callable[[NodeEvent], None] = lambda _: None
        self._is_behind = False  # events are missing in the file, since the disk is full
        is_whole = self._load()
        self._file: IO[str] = self._path.open("a", encoding="utf-8")
        if not is_whole:
            self._compact()  # or the next event would be written behind half a line

    def __len__(self) -> int:
        return len(self._events)

    @property
    def last_seq(self) -> int:
        return self._next_seq - 1

    def on_event(self, callback: Callable[[NodeEvent], None]) -> None:
        """Call it after every append."""
        self._on_event = callback

    def append(
        self, kind: EventKind, sandbox_id: str, *, at: float, data: dict[str, Any] | None = None
    ) -> NodeEvent:
        event = NodeEvent(
            seq=self._next_seq, kind=kind, sandbox_id=sandbox_id, at=at, data=data or {}
        )
        self._next_seq += 1
        self._events.append(event)
        self._write(event)
        if len(self._events) > MAX_EVENTS:
            self._drop_some()
        self._on_event(event)
        return event

    def pending(self, limit: int) -> list[NodeEvent]:
        """The oldest events not acknowledged yet."""
        return [event for event, _ in zip(self._events, range(limit), strict=False)]

    def ack(self, acked_seq: int) -> None:
        """Forget events up to `acked_seq`.

        An acknowledgement of what we never sent means that this state directory is newer than the
        node: numbering then goes on after it, or our events would look already applied.
        """
        if acked_seq > self.last_seq:
            logger.warning("The control plane knows later events than this spool; renumbering.")
            self._next_seq = acked_seq + 1
            waiting, self._events = self._events, deque()
            for event in waiting:
                self._events.append(
                    NodeEvent(
                        seq=self._next_seq,
                        kind=event.kind,
                        sandbox_id=event.sandbox_id,
                        at=event.at,
                        data=event.data,
                    )
                )
                self._next_seq += 1
            self._compact()
            return
        while self._events and self._events[0].seq <= acked_seq:
            self._events.popleft()
        try:
            if self._is_behind or self._file.tell() > COMPACT_BYTES:
                self._compact()
                self._is_behind = False
        except OSError:
            self._is_behind = True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._compact()
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self, event: NodeEvent) -> None:
        """A full disk costs what survives a killed agent, not the event, nor who tells of it."""
        try:
            if self._is_behind:
                self._compact()
                self._is_behind = False
                return
            self._file.write(json.dumps(wire.encode(event), separators=(",", ":")) + "\n")
            self._file.flush()
        except OSError as error:
            if not self._is_behind:
                logger.error("The event spool cannot be written: %s", error)
            self._is_behind = True

    def _load(self) -> bool:
        """False when the file ends or breaks off in something unreadable."""
        if not self._path.exists():
            return True
        text = self._path.read_text(errors="replace")
        is_whole = text.endswith("\n") or not text
        for number, line in enumerate(text.splitlines()):
            try:
                raw = json.loads(line)
                if isinstance(raw, dict) and "next_seq" in raw:
                    self._next_seq = max(self._next_seq, int(raw["next_seq"]))
                    continue
                event = wire.decode(NodeEvent, raw)
            except ValueError:
                # A line cut short by the agent's death in mid-write; what it told is in the
                # heartbeat.
                logger.warning("Skipped an unreadable event, line %d of the spool.", number + 1)
                is_whole = False
                continue
            self._events.append(event)
            self._next_seq = max(self._next_seq, event.seq + 1)
        return is_whole

    def _compact(self) -> None:
        fresh = self._path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"next_seq": self._next_seq}) + "\n")
            for event in self._events:
                file.write(json.dumps(wire.encode(event), separators=(",", ":")) + "\n")
        fresh.replace(self._path)
        with contextlib.suppress(OSError):
            self._file.close()  # what it could not write is in the new file
        self._file = self._path.open("a", encoding="utf-8")

    def _drop_some(self) -> None:
        for kind in (EventKind.LOG, EventKind.DEADLINE):
            kept = deque(event for event in self._events if event.kind is not kind)
            if len(kept) < len(self._events):
                logger.warning("The event spool is full; dropped its %s events.", kind.value)
                self._events = kept
                break
        else:
            self._events.popleft()
        if len(self._events) < MAX_EVENTS:
            self._compact()
