"""Usage of each sandbox from its control groups; disk more seldom, since it must be walked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nodeagent.errors import Unavailable
from nodeagent.records import OwnedSandbox
from nodeagent.runtime.base import ContainerUsage, Runtime
from nodeagent.waiting import is_set_within
from nodeagent.wire import MetricSample, NodeSandboxState

logger = logging.getLogger(__name__)

T = TypeVar("T")

KEPT_SAMPLES = 60  # per sandbox: five minutes at the usual rate
UNSENT_SAMPLES = 5_000  # over all sandboxes, while the control plane is away; the oldest go first
DISK_SECONDS = 15.0
DISK_SHARE = 0.05  # of the time at most: walking a large tree again waits twenty times what it took


@dataclass(eq=False)
class _Track:
    last: ContainerUsage | None = None
    last_at: float = 0.0  # monotonic
    disk_bytes: int = 0
    samples: deque[MetricSample] = field(default_factory=lambda: deque(maxlen=KEPT_SAMPLES))


class Meter:
    """sandboxes: the node's sandboxes as they are now. on_disk: told what each holds on disk."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        sandboxes: Callable[[], Iterable[OwnedSandbox]],
        clock: Callable[[], float],
        period_seconds: float,
        on_disk: Callable[[OwnedSandbox, int], None] = lambda sandbox, size_bytes: None,
    ) -> None:
        self._on_disk = on_disk
        self._runtime = runtime
        self._sandboxes = sandboxes
        self._clock = clock
        self._period_seconds = period_seconds
        self._tracks: dict[str, _Track] = {}
        self._unsent: deque[MetricSample] = deque(maxlen=UNSENT_SAMPLES)
        self._new_sandbox = asyncio.Event()
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="meter")

    def begin(self, sandbox_id: str) -> None:
        """Take a first sample of a new sandbox soon."""
        self._tracks.setdefault(sandbox_id, _Track())
        self._new_sandbox.set()

    def samples(self, sandbox_id: str) -> list[MetricSample]:
        """Oldest first."""
        track = self._tracks.get(sandbox_id)
        return list(track.samples) if track else []

    def unsent(self) -> list[MetricSample]:
        return list(self._unsent)

    def mark_sent(self, sent: list[MetricSample]) -> None:
        done = {id(sample) for sample in sent}
        self._unsent = deque(
            (sample for sample in self._unsent if id(sample) not in done), maxlen=UNSENT_SAMPLES
        )

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sample_for_ever(), name="sample usage")
            group.create_task(self._walk_for_ever(), name="walk disks")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _sample_for_ever(self) -> None:
        due = time.monotonic() + self._period_seconds
        while True:
            self._new_sandbox.clear()
            if await is_set_within(self._new_sandbox, max(0.0, due - time.monotonic())):
                await asyncio.sleep(1.0)  # cpu_used_pct needs some time to look back on
                await self.sample(only_new=True)
            else:
                due = time.monotonic() + self._period_seconds
                await self.sample()

    async def sample(self, *, only_new: bool = False) -> None:
        """Sample every running sandbox, or only those never sampled."""
        alive = {sandbox.sandbox_id: sandbox for sandbox in self._sandboxes()}
        for sandbox_id in [name for name in self._tracks if name not in alive]:
            del self._tracks[sandbox_id]
        wanted = [
            sandbox
            for sandbox in alive.values()
            if sandbox.state is NodeSandboxState.RUNNING
            and not (only_new and self._tracks.get(sandbox.sandbox_id, _Track()).samples)
        ]
        readings = await self._in_thread(self._read, wanted)
        for sandbox, usage in readings:
            if usage is not None:
                self._record(sandbox, usage)

    async def sample_now(self, sandbox: OwnedSandbox) -> MetricSample:
        """Raises: Unavailable when its container is not running."""
        usage = await self._in_thread(self._runtime.usage, sandbox.container)
        if usage is None:
            raise Unavailable(f"sandbox {sandbox.sandbox_id} is not running")
        return self._record(sandbox, usage)

    async def walk(self) -> float:
        """Measure every running sandbox's disk; returns how long that took."""
        began = time.monotonic()
        running = [box for box in self._sandboxes() if box.state is NodeSandboxState.RUNNING]
        if running:
            sizes = await self._in_thread(
                self._runtime.disk_usage, [sandbox.container for sandbox in running]
            )
            for sandbox in running:
                size_bytes = sizes.get(sandbox.container_id)
                if size_bytes is not None:
                    self._tracks.setdefault(sandbox.sandbox_id, _Track()).disk_bytes = size_bytes
                    self._on_disk(sandbox, size_bytes)
        return time.monotonic() - began

    async def _walk_for_ever(self) -> None:
        while True:
            took = await self.walk()
            await asyncio.sleep(max(DISK_SECONDS, took / DISK_SHARE))

    def _read(
        self, sandboxes: list[OwnedSandbox]
    ) -> list[tuple[OwnedSandbox, ContainerUsage | None]]:
        return [(sandbox, self._runtime.usage(sandbox.container)) for sandbox in sandboxes]

    def _record(self, sandbox: OwnedSandbox, usage: ContainerUsage) -> MetricSample:
        track = self._tracks.setdefault(sandbox.sandbox_id, _Track())
        now = time.monotonic()
        cpu_used_pct = 0.0
        # A reboot starts the counter again; what came before the first reading is not known.
        if track.last is not None and usage.cpu_seconds >= track.last.cpu_seconds:
            spent = usage.cpu_seconds - track.last.cpu_seconds
            elapsed = max(1e-3, now - track.last_at) * sandbox.spec.cpu_count
            cpu_used_pct = round(min(100.0, 100.0 * spent / elapsed), 2)
        track.last, track.last_at = usage, now
        sample = MetricSample(
            sandbox_id=sandbox.sandbox_id,
            at=self._clock(),
            cpu_count=sandbox.spec.cpu_count,
            cpu_used_pct=cpu_used_pct,
            mem_used=usage.memory_used,
            mem_total=sandbox.spec.memory_mb * 1024 * 1024,
            mem_cache=usage.memory_cache,
            disk_used=track.disk_bytes,
            disk_total=sandbox.spec.disk_size_mb * 1024 * 1024,
        )
        track.samples.append(sample)
        self._unsent.append(sample)
        return sample

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
