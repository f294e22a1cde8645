"""The agent of one machine: its sandboxes, their moves, and what keeps it all true."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from nodeagent import __version__, wire
from nodeagent.builder import Builder
from nodeagent.commands import run_template_commands
from nodeagent.deadlines import Deadlines
from nodeagent.errors import (
    AgentError,
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    NoSpace,
    NotFound,
    Unavailable,
)
from nodeagent.events import EventSpool
from nodeagent.heartbeat import ControlPlane
from nodeagent.meter import Meter
from nodeagent.netpolicy import Firewall, is_default, validate_network
from nodeagent.pool import WarmPool, container_name, container_spec
from nodeagent.reconcile import Plan, WantedSandbox, plan_containers, plan_reply
from nodeagent.records import OwnedSandbox, StateStore, StoredSandbox, StoredWarm
from nodeagent.runtime.base import (
    Container,
    ContainerEvent,
    ContainerEventKind,
    FoundContainer,
    Runtime,
    RuntimeInfo,
)
from nodeagent.sandbox import LiveSandbox, Node
from nodeagent.settings import Settings
from nodeagent.waiting import is_set_within
from nodeagent.wire import (
    CreateSandbox,
    EndReason,
    EventKind,
    MetricSample,
    NetworkConfig,
    NodeSandboxState,
    OnTimeout,
    PoolSpec,
    SandboxEnded,
    SandboxPaused,
    SandboxStarted,
    SandboxState,
)

logger = logging.getLogger(__name__)

COALESCE_SECONDS = 0.02  # events that belong together share one heartbeat
LOG_COALESCE_SECONDS = 1.0  # lines of logs may wait: two a command would beat without end
SWEEP_SECONDS = 30.0
RETRY_PAUSE_SECONDS = 1.0
REMEMBERED_ENDS = 2_000
EVENTS_PER_HEARTBEAT = 500
SAMPLES_PER_HEARTBEAT = 2_000
WAKE_WAIT_SECONDS = 60.0
WAKE_LEAST_SECONDS = 300.0
OOM_SECONDS = 10.0  # a container that dies this soon after running out of memory died of it
OOM_NEWS_SECONDS = 1.0
LOG_BURST = 50
LOG_PER_SECOND = 10.0
_SANDBOX_ID = re.compile(r"^[a-z0-9]{1,64}$")
_IMAGE = re.compile(r"^[a-z0-9][a-zA-Z0-9._/:@-]{0,254}$")


class Door(Protocol):
    """Something that listens for as long as the agent lives: the agent API, the gateway."""

    async def serve(self) -> None: ...


class Agent:
    """Implements `sandbox.Node`. Verbs are safe to repeat, and to call several at once.

    Claim, act, settle holds here too: a move is taken under the sandbox's lock, and a kill, which
    always wins, takes the sandbox out of the table first and waits for nobody.
    adopt_data_plane: called for each sandbox that begins to run here, and after each boot of it,
    before it is routable.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        runtime: Runtime,
        firewall: Firewall,
        control_plane: ControlPlane,
        adopt_data_plane: Callable[[Node, LiveSandbox], None] = lambda node, sandbox: None,
        builder: Builder | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.builder = builder
        self.stopping = asyncio.Event()
        self.ready = asyncio.Event()
        self._runtime = runtime
        self._firewall = firewall
        self._control_plane = control_plane
        self._adopt_data_plane = adopt_data_plane
        self._clock = clock
        self._started_at = clock()
        self._store = StateStore(settings.node_dir)
        self._events = EventSpool(self._store.events_path)
        self._events.on_event(self._wake_heartbeat)
        self._sandboxes: dict[str, OwnedSandbox] = {}
        self._by_container: dict[str, OwnedSandbox] = {}
        self._starting: dict[str, asyncio.Task[SandboxStarted]] = {}
        self._starting_at: dict[str, float] = {}
        self._starting_names: set[str] = set()
        self._ended: OrderedDict[str, EndReason] = OrderedDict()
        self._deadlines = Deadlines()
        self._deadline_changed = asyncio.Event()
        self._heartbeat_now = asyncio.Event()
        self._log_timer: asyncio.TimerHandle | None = None
        self._sweep_now = asyncio.Event()
        self._jobs: set[asyncio.Task[None]] = set()
        self._teardowns: dict[str, asyncio.Task[None]] = {}  # by container id
        self._cold_starts = asyncio.Semaphore(settings.cold_start_concurrency)
        self._cold_waiting = 0
        self._info: RuntimeInfo | None = None
        self._is_draining = False
        self._unrecorded: set[OwnedSandbox] = set()  # their files on disk are out of date
        self._pool = WarmPool(
            node_id=settings.node_id,
            runtime=runtime,
            store=self._store,
            prepare=run_template_commands,
            discard=self._discard,
            may_boot=lambda: self._cold_waiting == 0 and _has_memory(),
            clock=clock,
            ceiling=settings.pool_ceiling,
            concurrency=settings.refill_concurrency,
        )
        self._meter = Meter(
            runtime=runtime,
            sandboxes=lambda: list(self._sandboxes.values()),
            clock=clock,
            period_seconds=settings.meter_seconds,
            on_disk=self._check_disk,
        )

    # -- lifetime -------------------------------------------------------------------------------

    async def run(self, doors: list[Door]) -> None:
        """Serve until `stopping` is set, then drain. Sandboxes keep running without us."""
        self._info = await self._runtime.open()
        await self._firewall.open()
        await self._readopt()
        loops: list[tuple[str, Callable[[], Coroutine[Any, Any, None]]]] = [
            ("deadlines", self._enforce_deadlines),
            ("heartbeat", self._send_heartbeats),
            ("engine events", self._follow_engine),
            ("sweep", self._sweep_for_ever),
            ("warm pool", self._pool.keep_filled),
            ("meter", self._meter.run),
        ]
        loops += [(type(door).__name__, door.serve) for door in doors]
        try:
            async with asyncio.TaskGroup() as side:
                tasks = [side.create_task(loop(), name=name) for name, loop in loops]
                self.ready.set()
                await self.stopping.wait()
                await self._drain()
                for task in tasks:
                    task.cancel()
        finally:
            await self._close()

    async def _drain(self) -> None:
        """Take no new work and let what is under way finish, for a bounded time."""
        self._is_draining = True
        waiting = [*self._starting.values(), *self._jobs]
        moves = [box.move for box in self._sandboxes.values() if box.move is not None]
        if waiting or moves:
            await asyncio.wait([*waiting, *moves], timeout=10.0)

    async def _close(self) -> None:
        for task in [*self._starting.values(), *self._jobs]:
            task.cancel()
        await asyncio.gather(*self._starting.values(), *self._jobs, return_exceptions=True)
        if self.builder is not None:
            await self.builder.close()
        self._meter.close()
        self._events.close()
        self._control_plane.close()
        await self._firewall.close()
        await self._runtime.close()

    # -- reading --------------------------------------------------------------------------------

    def find(self, sandbox_id: str) -> LiveSandbox | None:
        return self._sandboxes.get(sandbox_id)

    def states(self) -> list[SandboxState]:
        """Every sandbox of the node, those being started included."""
        starting = [name for name in self._starting_at if name not in self._sandboxes]
        return [
            *(sandbox.summary() for sandbox in self._sandboxes.values()),
            *(self._starting_state(sandbox_id) for sandbox_id in starting),
        ]

    def state(self, sandbox_id: str) -> SandboxState:
        if sandbox_id in self._starting_at and sandbox_id not in self._sandboxes:
            return self._starting_state(sandbox_id)
        return self._get(sandbox_id).summary()

    def _starting_state(self, sandbox_id: str) -> SandboxState:
        began_at = self._starting_at[sandbox_id]
        return SandboxState(
            sandbox_id=sandbox_id,
            state=NodeSandboxState.STARTING,
            started_at=began_at,
            end_at=began_at,
        )

    def all(self) -> list[LiveSandbox]:
        return list(self._sandboxes.values())

    def samples(self, sandbox_id: str) -> list[MetricSample]:
        """The last few minutes, oldest first."""
        self._get(sandbox_id)
        return self._meter.samples(sandbox_id)

    async def sample(self, sandbox: LiveSandbox) -> MetricSample:
        return await self._meter.sample_now(self._get(sandbox.sandbox_id))

    def log(self, sandbox: LiveSandbox, level: str, message: str, fields: dict[str, Any]) -> None:
        """A line for the sandbox's owner; one that logs too much loses lines, not the node."""
        owned = self._sandboxes.get(sandbox.sandbox_id)
        if owned is None:
            return
        now = time.monotonic()
        refill = (now - owned.log_at) * LOG_PER_SECOND
        owned.log_tokens = min(float(LOG_BURST), owned.log_tokens + refill)
        owned.log_at = now
        if owned.log_tokens < 1.0:
            return
        owned.log_tokens -= 1.0
        self._events.append(
            EventKind.LOG,
            owned.sandbox_id,
            at=self._clock(),
            data={
                "level": level,
                "message": message[:2000],
                "fields": {str(key)[:64]: str(value)[:500] for key, value in fields.items()},
            },
        )

    def status(self) -> wire.NodeStatus:
        memory = _memory_info()
        info = self._info
        disk_total, disk_available = _disk_mb(info.data_root if info else "/")
        return wire.NodeStatus(
            node_id=self.settings.node_id,
            version=__version__,
            api_version=wire.API_VERSION,
            api_url=self.settings.api_url,
            gateway_url=self.settings.gateway_url,
            started_at=self._started_at,
            cpu_count=os.cpu_count() or 1,
            memory_mb=memory["MemTotal"] // 1024,
            memory_available_mb=memory["MemAvailable"] // 1024,
            disk_total_mb=disk_total,
            disk_available_mb=disk_available,
            max_sandboxes=self.settings.max_sandboxes,
            draining=self._is_draining,
            docker_version=info.version if info else "",
            storage_driver=info.storage_driver if info else "",
            cgroup_version=info.cgroup_version if info else 0,
            warm=self._pool.ready_by_build(),
        )

    def _get(self, sandbox_id: str) -> OwnedSandbox:
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            raise NotFound(f"sandbox {sandbox_id} is not on this node")
        return sandbox

    # -- create ---------------------------------------------------------------------------------

    def put_pools(self, specs: list[PoolSpec]) -> None:
        for spec in specs:
            _check_image(spec.image)
        self._pool.set_wanted(specs)

    async def create(self, spec: CreateSandbox) -> SandboxStarted:
        """Start a sandbox, warm if one is ready; on any error nothing is left of it.

        The same id again joins the start under way or gets the first answer.
        Raises: InvalidArgument, Conflict when it has ended already, Unavailable, DeadlineExceeded.
        """
        if (existing := self._sandboxes.get(spec.sandbox_id)) is not None:
            return existing.created
        task = self._starting.get(spec.sandbox_id)
        if task is None:
            self._check_create(spec)
            self._starting_at[spec.sandbox_id] = self._clock()
            task = asyncio.create_task(self._start(spec), name=f"start {spec.sandbox_id}")
            self._starting[spec.sandbox_id] = task
        try:
            # Shielded: a caller that goes away does not end what another caller may be waiting for.
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Conflict(f"sandbox {spec.sandbox_id} was killed while it started") from None
            raise

    def _check_create(self, spec: CreateSandbox) -> None:
        if not _SANDBOX_ID.match(spec.sandbox_id):
            raise InvalidArgument("sandbox_id: use 1 to 64 of a-z and 0-9")
        _check_image(spec.image)
        if spec.cpu_count < 1 or spec.memory_mb < 32 or spec.disk_size_mb < 1:
            raise InvalidArgument("cpu_count, memory_mb or disk_size_mb is too small")
        if not spec.timeout_seconds > 0:
            raise InvalidArgument("timeout_seconds must be greater than 0")
        validate_network(spec.network)
        if spec.sandbox_id in self._ended:
            raise Conflict(f"sandbox {spec.sandbox_id} has ended already")
        if self._is_draining:
            raise Unavailable("the node is draining")
        if len(self._sandboxes) + len(self._starting) >= self.settings.max_sandboxes:
            raise Unavailable(
                f"the node is full: {self.settings.max_sandboxes} sandboxes",
                error_code="node_full",
            )

    async def _start(self, spec: CreateSandbox) -> SandboxStarted:
        container = self._pool.claim(spec)
        is_warm = container is not None
        try:
            if container is None:
                container = await self._cold_start(spec)
            if not is_default(spec.network):
                await self._firewall.apply(container.container_id, container.ip, spec.network)
            if not is_warm:
                await self._within_create(run_template_commands(container, spec))
            return self._settle_start(spec, container, is_warm=is_warm)
        except BaseException:
            if container is not None:
                self._by_container.pop(container.container_id, None)
                self._discard(container)
            raise
        finally:
            self._starting.pop(spec.sandbox_id, None)
            self._starting_at.pop(spec.sandbox_id, None)

    async def _cold_start(self, spec: CreateSandbox) -> Container:
        name = container_name(self.settings.node_id)
        self._starting_names.add(name)
        self._cold_waiting += 1
        try:
            async with asyncio.timeout(self.settings.create_timeout_seconds):
                async with self._cold_starts:
                    return await self._runtime.boot(container_spec(spec, name=name))
        except TimeoutError:
            raise DeadlineExceeded("the sandbox did not start in time") from None
        finally:
            self._cold_waiting -= 1
            self._starting_names.discard(name)

    async def _within_create(self, work: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self.settings.create_timeout_seconds):
                await work
        except TimeoutError:
            raise DeadlineExceeded("the template's ready command did not pass in time") from None

    def _settle_start(
        self, spec: CreateSandbox, container: Container, *, is_warm: bool
    ) -> SandboxStarted:
        """From here on it is a sandbox. No await inside: nobody sees half of it."""
        started_at = self._clock()
        end_at = started_at + min(spec.timeout_seconds, spec.max_length_seconds)
        sandbox = OwnedSandbox(
            spec=spec,
            container_id=container.container_id,
            link=container.link,
            state=NodeSandboxState.RUNNING,
            started_at=started_at,
            end_at=end_at,
            container=container,
            created=SandboxStarted(
                sandbox_id=spec.sandbox_id, started_at=started_at, end_at=end_at, warm=is_warm
            ),
        )
        try:
            self._store.write_sandbox(sandbox.stored())
        except OSError as error:
            raise NoSpace(f"the node cannot note the sandbox: {error.strerror}") from error
        if is_warm:
            self._store.delete_warm(container.container_id)
        try:
            self._enter(sandbox)
        except BaseException:
            self._leave(sandbox)
            self._store.delete_sandbox(spec.sandbox_id)
            raise
        self._events.append(
            EventKind.STARTED,
            spec.sandbox_id,
            at=started_at,
            data={"end_at": end_at, "warm": is_warm},
        )
        self._meter.begin(spec.sandbox_id)
        return sandbox.created

    def _enter(self, sandbox: OwnedSandbox) -> None:
        self._sandboxes[sandbox.sandbox_id] = sandbox
        self._by_container[sandbox.container_id] = sandbox
        if sandbox.state is NodeSandboxState.RUNNING:
            self._adopt_data_plane(self, sandbox)
            self._set_timer(sandbox)

    def _leave(self, sandbox: OwnedSandbox) -> None:
        self._sandboxes.pop(sandbox.sandbox_id, None)
        self._by_container.pop(sandbox.container_id, None)
        self._deadlines.discard(sandbox.sandbox_id)
        self._unrecorded.discard(sandbox)

    def _record(self, sandbox: OwnedSandbox, *, durable: bool = False) -> None:
        """Note what has happened to it already; on a full disk later, by the sweep."""
        try:
            self._store.write_sandbox(sandbox.stored(), durable=durable)
        except OSError as error:
            logger.error(
                "A sandbox's file cannot be written: %s",
                error,
                extra={"sandbox_id": sandbox.sandbox_id},
            )
            self._unrecorded.add(sandbox)
            return
        self._unrecorded.discard(sandbox)

    def _later_than(self, at: float) -> float:
        """Now, but after `at` even where somebody has set the clock back.

        Whoever hears of the moves of a sandbox tells their order by their instants.
        """
        return max(self._clock(), at + 1e-3)

    # -- end ------------------------------------------------------------------------------------

    def kill(self, sandbox_id: str, *, reason: EndReason) -> SandboxEnded:
        """End a sandbox in any state; its container is torn down behind the answer.

        Raises: NotFound.
        """
        starting = self._starting.get(sandbox_id)
        if sandbox_id not in self._sandboxes and starting is not None:
            starting.cancel()
            return self._settle_end(sandbox_id, reason, "killed while it started")
        sandbox = self._get(sandbox_id)
        return self._end(sandbox, reason)

    def _end(self, sandbox: OwnedSandbox, reason: EndReason, detail: str = "") -> SandboxEnded:
        sandbox.has_ended = True
        sandbox.unroute()
        self._leave(sandbox)
        ended = self._settle_end(sandbox.sandbox_id, reason, detail)
        if sandbox.move is not None:
            sandbox.move.cancel()
        self._discard(sandbox.container)
        return ended

    def _settle_end(self, sandbox_id: str, reason: EndReason, detail: str) -> SandboxEnded:
        ended_at = self._clock()
        # The event first: dying between the two lines re-adopts the sandbox, and the control plane,
        # which heard that it ended, has it killed again. The other way round its end would go
        # untold.
        self._events.append(
            EventKind.ENDED,
            sandbox_id,
            at=ended_at,
            data={"reason": reason.value, "detail": detail},
        )
        self._store.delete_sandbox(sandbox_id)
        self._ended[sandbox_id] = reason
        while len(self._ended) > REMEMBERED_ENDS:
            self._ended.popitem(last=False)
        return SandboxEnded(sandbox_id=sandbox_id, ended_at=ended_at, reason=reason)

    def _discard(self, container: Container) -> None:
        """Tear a container down in the background; the sweep retries what fails."""
        container_id = container.container_id
        if container_id in self._teardowns:
            return
        task = self._spawn(self._tear_down(container), f"remove {container.name}")
        self._teardowns[container_id] = task
        task.add_done_callback(lambda _: self._teardowns.pop(container_id, None))

    async def _tear_down(self, container: Container) -> None:
        await self._runtime.remove(container.container_id, container.name)
        # Only now: without its rules a process that still ran could reach what they forbade.
        await self._firewall.clear(container.container_id)
        self._store.delete_warm(container.container_id)

    # -- deadline -------------------------------------------------------------------------------

    def set_deadline(self, sandbox_id: str, end_at: float) -> SandboxState:
        """Raises: NotFound, Conflict when it is not running."""
        sandbox = self._get(sandbox_id)
        if sandbox.state is not NodeSandboxState.RUNNING:
            raise Conflict(f"sandbox {sandbox_id} is not running")
        capped = min(end_at, sandbox.started_at + sandbox.spec.max_length_seconds)
        if capped != sandbox.end_at:
            sandbox.end_at = capped
            self._record(sandbox)
            self._set_timer(sandbox)
            self._events.append(
                EventKind.DEADLINE, sandbox_id, at=self._clock(), data={"end_at": capped}
            )
        return sandbox.summary()

    def _set_timer(self, sandbox: OwnedSandbox) -> None:
        self._deadlines.set(sandbox.sandbox_id, sandbox.end_at)
        self._deadline_changed.set()

    async def _enforce_deadlines(self) -> None:
        while True:
            self._deadline_changed.clear()
            self.enforce_due()
            next_at = self._deadlines.next_at()
            # At most a second: the wall clock may be stepped under us.
            wait = 1.0 if next_at is None else min(1.0, max(0.001, next_at - self._clock()))
            await is_set_within(self._deadline_changed, wait)

    def enforce_due(self) -> None:
        """Kill or begin to pause every sandbox whose deadline has come."""
        for sandbox_id in self._deadlines.pop_due(self._clock()):
            self._expire(sandbox_id)

    def _expire(self, sandbox_id: str) -> None:
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.state is not NodeSandboxState.RUNNING:
            return
        if sandbox.spec.on_timeout is OnTimeout.KILL:
            self._end(sandbox, EndReason.TIMEOUT)
        else:
            self._spawn(self._auto_pause(sandbox), f"auto-pause {sandbox_id}")

    async def _auto_pause(self, sandbox: OwnedSandbox) -> None:
        """Pause at the deadline; a failure is tried again: the user's files are at stake."""
        try:
            await self._pause(sandbox, memory=sandbox.spec.auto_pause_memory, reason="timeout")
        except NotFound:
            return
        except AgentError as error:
            logger.warning("A sandbox could not be paused at its deadline: %s", error)

    # -- disk -----------------------------------------------------------------------------------

    def _check_disk(self, sandbox: OwnedSandbox, size_bytes: int) -> None:
        """Pause a sandbox that holds more than it may: the engine's storage has no quotas.

        It keeps everything, and whoever resumes it has until the next look to make room.
        """
        limit_mb = sandbox.spec.disk_size_mb
        if size_bytes <= limit_mb * 2**20 or sandbox.lock.locked() or sandbox.has_ended:
            return
        self.log(
            sandbox,
            "error",
            f"Paused: it holds {size_bytes // 2**20} MiB on disk and may hold {limit_mb} MiB."
            " Resume it and remove files at once.",
            {"disk_used_mb": size_bytes // 2**20, "disk_size_mb": limit_mb},
        )
        self._spawn(self._pause_for_disk(sandbox), f"pause for disk {sandbox.sandbox_id}")

    async def _pause_for_disk(self, sandbox: OwnedSandbox) -> None:
        try:
            await self._pause(sandbox, memory=True, reason="disk")
        except NotFound:
            return  # it was killed meanwhile

    # -- pause and resume -----------------------------------------------------------------------

    async def pause(self, sandbox_id: str, *, memory: bool) -> SandboxPaused:
        """Raises: NotFound, Unavailable (it then runs on, or is paused all the same)."""
        return await self._pause(self._get(sandbox_id), memory=memory, reason="request")

    async def resume(
        self, sandbox_id: str, *, timeout_seconds: float, memory: bool
    ) -> SandboxStarted:
        """Raises: NotFound, InvalidArgument, Unavailable (it then stays paused)."""
        if not timeout_seconds > 0:
            raise InvalidArgument("timeout_seconds must be greater than 0")
        return await self._resume(
            self._get(sandbox_id), timeout_seconds=timeout_seconds, memory=memory
        )

    async def wake(self, sandbox: LiveSandbox) -> None:
        found = self._sandboxes.get(sandbox.sandbox_id)
        if found is None or found is not sandbox:
            raise NotFound(f"sandbox {sandbox.sandbox_id} was not found")
        if not found.spec.auto_resume:
            raise NotFound(f"sandbox {sandbox.sandbox_id} is not running")
        timeout_seconds = max(WAKE_LEAST_SECONDS, found.spec.timeout_seconds)
        try:
            async with asyncio.timeout(WAKE_WAIT_SECONDS):
                async with found.lock:
                    pass  # a pause under way must end before we can say what is left to wake
                if found.state is NodeSandboxState.PAUSED and not found.keeps_memory:
                    raise NotFound(f"sandbox {sandbox.sandbox_id} was paused without its memory")
                await self._resume(found, timeout_seconds=timeout_seconds, memory=True)
        except TimeoutError:
            raise Conflict("The sandbox is still transitioning. Try again in a moment.") from None

    async def _pause(self, sandbox: OwnedSandbox, *, memory: bool, reason: str) -> SandboxPaused:
        async with sandbox.lock:
            _check_alive(sandbox)
            if sandbox.state is not NodeSandboxState.PAUSED:
                await self._move(sandbox, self._do_pause(sandbox, memory=memory, reason=reason))
            assert sandbox.paused_at is not None
            return SandboxPaused(
                sandbox_id=sandbox.sandbox_id,
                paused_at=sandbox.paused_at,
                memory=sandbox.keeps_memory,
            )

    async def _do_pause(self, sandbox: OwnedSandbox, *, memory: bool, reason: str) -> None:
        sandbox.unroute()
        self._deadlines.discard(sandbox.sandbox_id)
        try:
            if memory:
                await self._runtime.freeze(sandbox.container)
            else:
                sandbox.is_halting = True
                # Noted first: to an agent that starts now, a stopped container would be a dead one.
                await asyncio.to_thread(self._record, sandbox, durable=True)
                await self._runtime.halt(sandbox.container)
        except BaseException:
            sandbox.is_halting = False
            if not sandbox.has_ended:
                if not memory:
                    self._record(sandbox)
                sandbox.is_routable = True
                # Not at once when it is due already: what just failed would be tried without a
                # pause.
                again_at = max(sandbox.end_at, self._clock() + RETRY_PAUSE_SECONDS)
                self._deadlines.set(sandbox.sandbox_id, again_at)
                self._deadline_changed.set()
            raise
        sandbox.state = NodeSandboxState.PAUSED
        sandbox.keeps_memory = memory
        sandbox.paused_at = sandbox.end_at = self._later_than(sandbox.started_at)
        # Durable before we say so: from here on the files must outlive a power cut.
        await asyncio.to_thread(self._record, sandbox, durable=True)
        self._events.append(
            EventKind.PAUSED,
            sandbox.sandbox_id,
            at=sandbox.paused_at,
            data={"memory": memory, "reason": reason},
        )

    async def _resume(
        self, sandbox: OwnedSandbox, *, timeout_seconds: float, memory: bool
    ) -> SandboxStarted:
        async with sandbox.lock:
            _check_alive(sandbox)
            is_warm = True
            if sandbox.state is NodeSandboxState.PAUSED:
                is_warm = memory and sandbox.keeps_memory
                await self._move(
                    sandbox,
                    self._do_resume(sandbox, timeout_seconds=timeout_seconds, memory=memory),
                )
            return SandboxStarted(
                sandbox_id=sandbox.sandbox_id,
                started_at=sandbox.started_at,
                end_at=sandbox.end_at,
                warm=is_warm,
            )

    async def _do_resume(
        self, sandbox: OwnedSandbox, *, timeout_seconds: float, memory: bool
    ) -> None:
        has_memory = sandbox.keeps_memory and memory
        if has_memory:
            await self._runtime.thaw(sandbox.container)
            if sandbox.envd is None:  # taken back while frozen, when its guest could not answer
                self._adopt_data_plane(self, sandbox)
        else:
            await self._boot_again(sandbox)
        sandbox.started_at = self._later_than(sandbox.paused_at or sandbox.started_at)
        sandbox.end_at = sandbox.started_at + min(timeout_seconds, sandbox.spec.max_length_seconds)
        sandbox.state = NodeSandboxState.RUNNING
        sandbox.paused_at = None
        sandbox.keeps_memory = True
        sandbox.oom_at = None
        self._record(sandbox)
        self._set_timer(sandbox)
        self._events.append(
            EventKind.RESUMED,
            sandbox.sandbox_id,
            at=sandbox.started_at,
            data={"end_at": sandbox.end_at, "memory": has_memory},
        )
        sandbox.is_routable = True
        self._meter.begin(sandbox.sandbox_id)

    async def _boot_again(self, sandbox: OwnedSandbox) -> None:
        """A new boot from the sandbox's own files; on an error it is left stopped, to try again."""
        if sandbox.keeps_memory:
            sandbox.is_halting = True
            await self._runtime.halt(sandbox.container)
            sandbox.keeps_memory = False
            await asyncio.to_thread(self._record, sandbox, durable=True)
        try:
            await self._runtime.reboot(sandbox.container)
            sandbox.is_halting = False
            sandbox.link = sandbox.container.link
            if not is_default(sandbox.spec.network):
                # Before any of its programs runs: the new boot may have another address.
                await self._firewall.apply(
                    sandbox.container_id, sandbox.container.ip, sandbox.spec.network
                )
            self._adopt_data_plane(self, sandbox)
            await self._within_create(run_template_commands(sandbox.container, sandbox.spec))
        except BaseException:
            if not sandbox.has_ended:
                sandbox.is_halting = True
                await asyncio.shield(self._runtime.halt(sandbox.container))
            raise

    async def _move(self, sandbox: OwnedSandbox, work: Coroutine[Any, Any, None]) -> None:
        """Run a move to its end even if the caller goes away; only a kill cuts it short."""
        task = asyncio.create_task(work, name=f"move {sandbox.sandbox_id}")
        sandbox.move = task
        try:
            # The lock must outlive an impatient caller, so this waits where a shield would not.
            cancelled = False
            while not task.done():
                try:
                    await asyncio.wait([task])
                except asyncio.CancelledError:
                    cancelled = True
            if sandbox.has_ended:
                raise NotFound(f"sandbox {sandbox.sandbox_id} was killed")
            task.result()
            if cancelled:
                raise asyncio.CancelledError
        finally:
            sandbox.move = None

    # -- network, snapshots, images -------------------------------------------------------------

    async def put_network(self, sandbox_id: str, network: NetworkConfig) -> None:
        """Replace the rules; they hold for new connections when this returns."""
        validate_network(network)
        sandbox = self._get(sandbox_id)
        async with sandbox.lock:
            _check_alive(sandbox)
            if sandbox.container.pid:
                await self._firewall.apply(sandbox.container_id, sandbox.container.ip, network)
            sandbox.spec = dataclasses.replace(sandbox.spec, network=network)
            self._record(sandbox, durable=sandbox.state is NodeSandboxState.PAUSED)

    async def snapshot(self, sandbox_id: str, image: str) -> int:
        """Commit the file system to `image`; the sandbox goes on. Returns the bytes it adds."""
        _check_image(image)
        sandbox = self._get(sandbox_id)
        sizes: list[int] = []

        async def commit() -> None:
            sizes.append(await self._runtime.commit(sandbox.container, image))

        async with sandbox.lock:
            _check_alive(sandbox)
            await self._move(sandbox, commit())
        return sizes[0]

    async def delete_image(self, image: str) -> None:
        """Waits for containers that are on their way out. Raises: Conflict while one uses it."""
        _check_image(image)
        for container in self._pool.drain_image(image):
            self._store.delete_warm(container.container_id)
            self._discard(container)
        if self._teardowns:
            await asyncio.wait(list(self._teardowns.values()), timeout=20.0)
        await self._runtime.remove_image(image)

    # -- the engine and the state directory -----------------------------------------------------

    async def _readopt(self) -> None:
        """Take back what an earlier agent left: sandboxes, warm containers, rules."""
        stored = {item.spec.sandbox_id: item for item in self._store.sandboxes()}
        warm = {item.container_id: item for item in self._store.warm()}
        found = await self._runtime.containers()
        plan = plan_containers(
            sandboxes=[_wanted(item) for item in stored.values()], warm=set(warm), found=found
        )
        for sandbox_id in [*plan.keep, *plan.thaw, *plan.demote, *plan.halted]:
            await self._readopt_sandbox(stored[sandbox_id], plan)
        for sandbox_id in plan.lost:
            oom = await self._was_oom(stored[sandbox_id].container_id)
            self._settle_end(
                sandbox_id,
                EndReason.OOM if oom else EndReason.EXITED,
                "its container was gone when the node agent started",
            )
        await self._firewall.restore(
            {
                sandbox.container_id: (sandbox.container.ip, sandbox.spec.network)
                for sandbox in self._sandboxes.values()
                if sandbox.container.pid and not is_default(sandbox.spec.network)
            }
        )
        for container in plan.remove:
            self._spawn(self._remove_found(container), f"remove {container.name}")
        self._store.prune_run_dirs({container.name for container in found})
        self._pool.set_wanted(self._store.pools())
        # Bind first, reclaim behind it: checking warm containers must not delay the doors.
        for container_id in plan.keep_warm:
            self._pool.expect(warm[container_id])
            self._spawn(self._readopt_warm(warm[container_id]), "take back a warm container")
        for container_id in set(warm) - set(plan.keep_warm):
            self._store.delete_warm(container_id)
        if self._sandboxes or plan.lost:
            logger.info(
                "Took back %d sandboxes; %d had ended meanwhile.",
                len(self._sandboxes),
                len(plan.lost),
            )

    async def _readopt_sandbox(self, stored: StoredSandbox, plan: Plan) -> None:
        sandbox_id = stored.spec.sandbox_id
        try:
            container = await self._runtime.adopt(stored.container_id)
            if sandbox_id in plan.thaw:
                await self._runtime.thaw(container)
        except NotFound:
            self._settle_end(sandbox_id, EndReason.EXITED, "its container vanished")
            return
        if sandbox_id in plan.halted:
            paused_at = max(self._clock(), stored.started_at + 1e-3)
            stored = dataclasses.replace(
                stored,
                state=NodeSandboxState.PAUSED,
                keeps_memory=False,
                paused_at=paused_at,
                end_at=paused_at,
            )
        sandbox = OwnedSandbox(
            spec=stored.spec,
            container_id=stored.container_id,
            link=container.link,
            is_halting=stored.is_halting,
            state=stored.state,
            started_at=stored.started_at,
            end_at=stored.end_at,
            paused_at=stored.paused_at,
            keeps_memory=stored.keeps_memory and sandbox_id not in plan.demote,
            is_routable=stored.state is NodeSandboxState.RUNNING,
            container=container,
            created=stored.created,
        )
        self._enter(sandbox)
        if sandbox_id in plan.demote or sandbox_id in plan.halted:
            self._record(sandbox, durable=True)
        if sandbox_id in plan.halted:
            self._events.append(
                EventKind.PAUSED,
                sandbox_id,
                at=sandbox.end_at,
                data={"memory": False, "reason": "request"},
            )
        elif sandbox.is_halting and sandbox.state is NodeSandboxState.RUNNING:
            # The engine may be stopping it at this moment; so finish what was begun.
            self._spawn(self._finish_pause(sandbox), f"finish the pause of {sandbox_id}")
        self._meter.begin(sandbox_id)

    async def _finish_pause(self, sandbox: OwnedSandbox) -> None:
        try:
            await self._pause(sandbox, memory=False, reason="request")
        except NotFound:
            return  # it was killed meanwhile

    async def _readopt_warm(self, stored: StoredWarm) -> None:
        container = None
        try:
            container = await self._runtime.adopt(stored.container_id)
            await container.link.ping()
        except AgentError:
            self._store.delete_warm(stored.container_id)
            await self._runtime.remove(stored.container_id, stored.container_name)
            container = None
        finally:
            self._pool.restore(stored, container)

    async def _remove_found(self, found: FoundContainer) -> None:
        await self._runtime.remove(found.container_id, found.name)
        await self._firewall.clear(found.container_id)

    async def _follow_engine(self) -> None:
        async for event in self._runtime.events():
            try:
                await self._on_engine_event(event)
            except AgentError as error:
                logger.warning("An event of the engine could not be followed up: %s", error)
                self._sweep_now.set()

    async def _on_engine_event(self, event: ContainerEvent) -> None:
        if event.kind is ContainerEventKind.RESYNC:
            self._sweep_now.set()
            return
        sandbox = self._by_container.get(event.container_id)
        if event.kind is ContainerEventKind.OOM:
            if sandbox is not None:
                sandbox.oom_at = time.monotonic()
                self.log(
                    sandbox, "warn", "The kernel ended a process: the sandbox is out of memory.", {}
                )
            return
        if (warm := self._pool.forget(event.container_id)) is not None:
            logger.info("A warm container died; it will be replaced.")
            self._discard(warm)
        elif sandbox is not None:
            await self._on_death(sandbox)

    async def _on_death(self, sandbox: OwnedSandbox) -> None:
        """Its container is said to have stopped: by itself, by someone else or by our own hand."""
        if sandbox.is_halting or sandbox.has_ended:
            return
        try:
            is_running, oom_killed = await self._runtime.state_of(sandbox.container_id)
        except NotFound:
            self._end_unless_ended(sandbox, EndReason.EXITED, "its container was removed")
            return
        if is_running or sandbox.is_halting or sandbox.has_ended:
            return  # old news: it has been booted again since
        if sandbox.state is NodeSandboxState.PAUSED:
            # Its processes are gone, as after an engine restart; its files are not.
            if sandbox.keeps_memory:
                sandbox.keeps_memory = False
                sandbox.container.pid = 0
                self._record(sandbox, durable=True)
        elif _died_of_memory(sandbox, oom_killed):
            self._end(sandbox, EndReason.OOM, "the sandbox ran out of memory")
        else:
            sandbox.unroute()
            self._spawn(self._end_dead(sandbox), f"end {sandbox.sandbox_id}")

    async def _end_dead(self, sandbox: OwnedSandbox) -> None:
        """The engine may tell that memory ran out only after it told of the death."""
        give_up_at = time.monotonic() + OOM_NEWS_SECONDS
        oom_killed = False
        while sandbox.oom_at is None and not oom_killed and time.monotonic() < give_up_at:
            await asyncio.sleep(0.05)
            oom_killed = await self._was_oom(sandbox.container_id)
        if _died_of_memory(sandbox, oom_killed):
            self._end_unless_ended(sandbox, EndReason.OOM, "the sandbox ran out of memory")
        else:
            self._end_unless_ended(sandbox, EndReason.EXITED, "the container stopped")

    def _end_unless_ended(self, sandbox: OwnedSandbox, reason: EndReason, detail: str) -> None:
        if not sandbox.has_ended:
            self._end(sandbox, reason, detail)

    async def _was_oom(self, container_id: str) -> bool:
        try:
            _, oom_killed = await self._runtime.state_of(container_id)
        except NotFound:
            return False
        return oom_killed

    async def _sweep_for_ever(self) -> None:
        while True:
            if await is_set_within(self._sweep_now, SWEEP_SECONDS):
                self._sweep_now.clear()
                await asyncio.sleep(0.2)  # what set it off may still be settling
            try:
                await self.sweep()
            except AgentError as error:
                logger.warning("The sweep could not look at the engine: %s", error)

    async def sweep(self) -> None:
        """Compare what we hold with what the engine has, and repair the difference."""
        for box in list(self._unrecorded):
            self._record(box, durable=box.state is NodeSandboxState.PAUSED)
        await self._firewall.verify()
        before = {
            box.container_id: _wanted(box.stored())
            for box in self._sandboxes.values()
            if not box.lock.locked()
        }
        found = await self._runtime.containers()
        plan = plan_containers(
            sandboxes=before.values(), warm=self._pool.container_ids(), found=found
        )
        for sandbox_id in [*plan.lost, *plan.demote]:
            sandbox = self._sandboxes.get(sandbox_id)
            if sandbox is not None and not sandbox.lock.locked():
                await self._on_death(sandbox)
        for container in plan.remove:
            if not self._is_ours_now(container):
                await self._remove_found(container)

    def _is_ours_now(self, found: FoundContainer) -> bool:
        """True for what is being made or unmade, or was claimed since the list was read."""
        return (
            found.container_id in self._by_container
            or found.container_id in self._teardowns
            or found.container_id in self._pool.container_ids()
            or found.name in self._starting_names
            or found.name in self._pool.booting_names
            or (self.builder is not None and found.name in self.builder.container_names)
            or bool(self._starting)  # a claimed warm container has no name there yet
        )

    # -- the control plane ----------------------------------------------------------------------

    def _wake_heartbeat(self, event: wire.NodeEvent) -> None:
        if event.kind is not EventKind.LOG:
            self._heartbeat_now.set()
        elif self._log_timer is None:
            self._log_timer = asyncio.get_running_loop().call_later(
                LOG_COALESCE_SECONDS, self._heartbeat_now.set
            )

    async def _send_heartbeats(self) -> None:
        retry_seconds = 0.5
        while True:
            self._heartbeat_now.clear()
            if self._log_timer is not None:
                self._log_timer.cancel()
                self._log_timer = None
            try:
                has_more = await self.heartbeat()
            except Unavailable as error:
                if retry_seconds == 0.5:
                    logger.warning("No heartbeat: %s", error)
                await asyncio.sleep(retry_seconds)
                retry_seconds = min(15.0, 2 * retry_seconds)
                continue
            if retry_seconds > 0.5:
                logger.info("The control plane answers again.")
            retry_seconds = 0.5
            if has_more:
                continue
            if await is_set_within(self._heartbeat_now, self.settings.heartbeat_seconds):
                await asyncio.sleep(COALESCE_SECONDS)

    async def heartbeat(self) -> bool:
        """Send one and do what the reply asks; True when more events wait. Raises: Unavailable."""
        states = self.states()
        events = self._events.pending(EVENTS_PER_HEARTBEAT)
        metrics = self._meter.unsent()[:SAMPLES_PER_HEARTBEAT]
        reply = await self._control_plane.send(
            wire.Heartbeat(node=self.status(), sandboxes=states, events=events, metrics=metrics)
        )
        self._meter.mark_sent(metrics)
        self._events.ack(reply.acked_seq)
        self._pool.set_wanted(reply.pools)
        plan = plan_reply(
            reply,
            reported={state.sandbox_id for state in states},
            running={
                sandbox.sandbox_id: sandbox.end_at
                for sandbox in self._sandboxes.values()
                if sandbox.state is NodeSandboxState.RUNNING
            },
        )
        for sandbox_id in plan.kill:
            if sandbox_id in self._sandboxes or sandbox_id in self._starting:
                self.kill(sandbox_id, reason=EndReason.UNKNOWN_TO_CONTROL_PLANE)
        for sandbox_id, end_at in plan.deadlines.items():
            if sandbox_id in self._sandboxes:
                self.set_deadline(sandbox_id, end_at)
        progressed = bool(events) and reply.acked_seq >= events[0].seq
        return progressed and len(self._events) > 0

    # -- small things ---------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A job nobody waits for; it is logged when it fails, and the sweep finds what it left."""
        task = asyncio.create_task(work, name=name)
        self._jobs.add(task)
        task.add_done_callback(self._job_done)
        return task

    def _job_done(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._sweep_now.set()
        if isinstance(error, AgentError):
            logger.warning("Job %r failed: %s", task.get_name(), error)
        else:
            logger.error("Job %r failed.", task.get_name(), exc_info=error)


def _died_of_memory(sandbox: OwnedSandbox, oom_killed: bool) -> bool:
    """The engine's flag stays set once any process was killed for memory, so the time decides."""
    if sandbox.oom_at is None:
        return oom_killed
    return time.monotonic() - sandbox.oom_at < OOM_SECONDS


def _check_alive(sandbox: OwnedSandbox) -> None:
    if sandbox.has_ended:
        raise NotFound(f"sandbox {sandbox.sandbox_id} was killed")


def _check_image(image: str) -> None:
    if not _IMAGE.match(image):
        raise InvalidArgument(f"image: {image[:80]!r} is not an image name")


def _wanted(stored: StoredSandbox) -> WantedSandbox:
    return WantedSandbox(
        sandbox_id=stored.spec.sandbox_id,
        container_id=stored.container_id,
        state=stored.state,
        keeps_memory=stored.keeps_memory,
        is_halting=stored.is_halting,
    )


def _memory_info() -> dict[str, int]:
    """/proc/meminfo in KiB."""
    values = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0])
    return values


def _has_memory() -> bool:
    """Warm containers are a luxury: none are made of the last tenth of memory."""
    memory = _memory_info()
    return memory["MemAvailable"] * 10 > memory["MemTotal"]


def _disk_mb(path: str) -> tuple[int, int]:
    """(total, available) of the file system at `path`."""
    try:
        stat = os.statvfs(path)
    except OSError:
        stat = os.statvfs("/")
    unit = stat.f_frsize
    return stat.f_blocks * unit // 2**20, stat.f_bavail * unit // 2**20
