"""The processes of one sandbox as their clients see them.

One channel to the guest, any number of subscribers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from nodeagent.envd.queue import EventQueue
from nodeagent.errors import AgentError, GuestFault, NotFound, Unavailable
from nodeagent.guest.link import ProcessChannel, ProcessExit

logger = logging.getLogger(__name__)

RETAIN_SECONDS = 30.0
RETAIN_COUNT = 1024

# What a subscriber gets: ("stdout" | "stderr" | "pty", bytes), or the exit, or the failure that
# ended the channel.
Event = tuple[str, bytes] | ProcessExit | AgentError
Subscriber = EventQueue[Event]


class Process:
    """A process started through envd. `config`: as its client sent it, in the JSON mapping."""

    def __init__(
        self, channel: ProcessChannel, config: dict[str, Any], tag: str | None, has_pty: bool
    ) -> None:
        self.channel = channel
        self.pid = channel.pid
        self.config = config
        self.tag = tag
        self.has_pty = has_pty
        self.exit: ProcessExit | None = None
        self.ended_at: float | None = None  # monotonic
        self.input_lock = asyncio.Lock()  # keeps the bytes of two writers apart
        self.subscribers: set[Subscriber] = set()
        self.pump: asyncio.Task[None] | None = None
        self.on_end: Callable[[Process], None] | None = None  # with `exit` None: the guest was lost

    def subscribe(self) -> Subscriber:
        subscriber: Subscriber = EventQueue()
        self.subscribers.add(subscriber)
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        self.subscribers.discard(subscriber)
        subscriber.close()

    async def publish(self, event: Event) -> None:
        """Give `event` to every subscriber, waiting for the slowest; without one it is dropped."""
        for subscriber in list(self.subscribers):
            await subscriber.put(event)


class Processes:
    """Those that run, and for a short while those that ended."""

    def __init__(self) -> None:
        self._running: dict[int, Process] = {}
        self._ended: dict[int, Process] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._running)

    def running(self) -> list[Process]:
        return list(self._running.values())

    def add(self, process: Process) -> None:
        """Take over a process and start reading its output; subscribe before, to miss nothing."""
        self._forget_old()
        self._ended.pop(process.pid, None)
        if process.tag is not None:
            for pid in [pid for pid, old in self._ended.items() if old.tag == process.tag]:
                del self._ended[pid]
        self._running[process.pid] = process
        name = f"process {process.pid}"
        process.pump = asyncio.get_running_loop().create_task(self._pump(process), name=name)

    def find(self, *, pid: int | None = None, tag: str | None = None) -> Process | None:
        """A running process; of several with the same tag, the newest."""
        if pid is not None:
            return self._running.get(pid)
        found = [process for process in self._running.values() if process.tag == tag]
        return found[-1] if found else None

    def find_ended(self, *, pid: int | None = None, tag: str | None = None) -> Process | None:
        """A process that ended a short while ago."""
        self._forget_old()
        if pid is not None:
            return self._ended.get(pid)
        found = [process for process in self._ended.values() if process.tag == tag]
        return found[-1] if found else None

    async def close(self) -> None:
        """Leave every process; they live on in their sandbox."""
        pumps = [process.pump for process in self._running.values() if process.pump is not None]
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, process: Process) -> None:
        end: ProcessExit | AgentError
        try:
            async for stream, data in process.channel:
                if process.subscribers:
                    await process.publish((stream, data))
            end = process.channel.exit or GuestFault("the process ended without saying how")
        except AgentError as error:
            end = error
        except asyncio.CancelledError:
            process.channel.close()
            raise
        except Exception:
            logger.exception("Reading the output of process %d failed", process.pid)
            end = GuestFault("reading the output failed")
        process.channel.close()
        self._settle(process, end)
        if isinstance(end, AgentError):
            end = Unavailable(f"lost the connection to process {process.pid}: {end.message}")
        await process.publish(end)

    def _settle(self, process: Process, end: ProcessExit | AgentError) -> None:
        if self._running.get(process.pid) is process:
            del self._running[process.pid]
        process.ended_at = time.monotonic()
        if isinstance(end, ProcessExit):
            process.exit = end
            self._ended[process.pid] = process
        self._forget_old()
        if process.on_end is not None:
            process.on_end(process)

    def _forget_old(self) -> None:
        limit = time.monotonic() - RETAIN_SECONDS
        while self._ended:
            pid, process = next(iter(self._ended.items()))
            assert process.ended_at is not None
            if len(self._ended) <= RETAIN_COUNT and process.ended_at >= limit:
                return
            del self._ended[pid]


def not_found(*, pid: int | None, tag: str | None) -> NotFound:
    if pid is not None:
        return NotFound(f"process with pid {pid} not found")
    return NotFound(f"process with tag {tag} not found")
