"""Warm containers: booted, start command running and ready, waiting for one tenant each."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from nodeagent.errors import AgentError
from nodeagent.pool_policy import wanted_size
from nodeagent.records import StateStore, StoredWarm
from nodeagent.runtime.base import Container, ContainerSpec, Runtime
from nodeagent.waiting import is_set_within
from nodeagent.wire import CreateSandbox, PoolSpec

logger = logging.getLogger(__name__)

PoolKey = tuple[str, str, int, int, int]  # build, image, vCPU, MiB, disk MiB

REMEMBERED_CLAIMS = 500
PREPARE_SECONDS = 600.0
QUIET_SECONDS = 0.15
BUSY_SECONDS = 1.0
FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 60.0


@dataclass(eq=False)
class _Pool:
    spec: PoolSpec
    is_wanted: bool = True
    ready: deque[Container] = field(default_factory=deque)
    booting: int = 0
    claimed_at: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED_CLAIMS))
    retry_at: float = 0.0
    retry_seconds: float = FIRST_RETRY_SECONDS


def pool_key(spec: PoolSpec | CreateSandbox) -> PoolKey:
    return (spec.build_id, spec.image, spec.cpu_count, spec.memory_mb, spec.disk_size_mb)


def container_name(node_id: str) -> str:
    return f"sandlot-{node_id}-{secrets.token_hex(8)}"


def container_spec(spec: PoolSpec | CreateSandbox, *, name: str) -> ContainerSpec:
    return ContainerSpec(
        name=name,
        image=spec.image,
        template_id=spec.template_id,
        build_id=spec.build_id,
        cpu_count=spec.cpu_count,
        memory_mb=spec.memory_mb,
        disk_size_mb=spec.disk_size_mb,
    )


class WarmPool:
    """`claim` is a dict look-up; everything slow happens in `keep_filled`.

    prepare: runs a template's start command in a fresh container and returns when it is ready.
    discard: removes a container, in the background. may_boot: False while the machine is short of
    memory or busy with someone's cold start.
    """

    def __init__(
        self,
        *,
        node_id: str,
        runtime: Runtime,
        store: StateStore,
        prepare: Callable[[Container, PoolSpec | CreateSandbox], Awaitable[None]],
        discard: Callable[[Container], None],
        may_boot: Callable[[], bool],
        clock: Callable[[], float],
        ceiling: int,
        concurrency: int,
    ) -> None:
        self._node_id = node_id
        self._runtime = runtime
        self._store = store
        self._prepare = prepare
        self._discard = discard
        self._may_boot = may_boot
        self._clock = clock
        self._ceiling = ceiling
        self._concurrency = concurrency
        self._pools: dict[PoolKey, _Pool] = {}
        self._changed = asyncio.Event()
        self._boots: set[asyncio.Task[None]] = set()
        self._quiet_at = 0.0  # monotonic: when the claims of late will be over
        self._busy_since: float | None = None
        self.booting_names: set[str] = set()  # containers the sweep must not take for orphans

    def set_wanted(self, specs: list[PoolSpec]) -> None:
        """Replace the wanted pools; what is no longer wanted drains."""
        wanted = {pool_key(spec): spec for spec in specs}
        if wanted == {key: pool.spec for key, pool in self._pools.items() if pool.is_wanted}:
            return
        for key, pool in self._pools.items():
            pool.is_wanted = key in wanted
        for key, spec in wanted.items():
            pool = self._pools.setdefault(key, _Pool(spec))
            pool.spec = spec
            pool.retry_at, pool.retry_seconds = 0.0, FIRST_RETRY_SECONDS
        self._changed.set()
        try:
            self._store.write_pools(specs)
        except OSError as error:  # they are for the next agent; the next heartbeat brings them too
            logger.warning("The wanted pools could not be noted: %s", error)

    def expect(self, stored: StoredWarm) -> None:
        """Count on a warm container of an earlier agent until `restore` tells of it."""
        pool = self._pools.setdefault(pool_key(stored.spec), _Pool(stored.spec, is_wanted=False))
        pool.booting += 1

    def restore(self, stored: StoredWarm, container: Container | None) -> None:
        """Take back what was expected; None when it turned out to be broken."""
        pool = self._pools[pool_key(stored.spec)]
        pool.booting -= 1
        if container is not None:
            pool.ready.append(container)
        self._changed.set()

    def claim(self, spec: CreateSandbox) -> Container | None:
        """A ready container, or None. It is the caller's for good, its state file too."""
        pool = self._pools.get(pool_key(spec))
        if pool is None:
            return None
        pool.claimed_at.append(self._clock())
        self._quiet_at = time.monotonic() + QUIET_SECONDS
        if self._busy_since is None:
            self._busy_since = time.monotonic()
        self._changed.set()
        # Oldest first: what it inherited from its image (caches, a started server) has settled.
        return pool.ready.popleft() if pool.ready else None

    def forget(self, container_id: str) -> Container | None:
        """Drop a container that died; None when it is not one of ours."""
        for pool in self._pools.values():
            for container in pool.ready:
                if container.container_id == container_id:
                    pool.ready.remove(container)
                    self._store.delete_warm(container_id)
                    self._changed.set()
                    return container
        return None

    def drain_image(self, image: str) -> list[Container]:
        """Take out every container of an image that is about to be deleted."""
        drained = []
        for pool in self._pools.values():
            if pool.spec.image == image:
                pool.is_wanted = False
                while pool.ready:
                    drained.append(pool.ready.popleft())
        return drained

    def container_ids(self) -> set[str]:
        return {container.container_id for pool in self._pools.values() for container in pool.ready}

    def ready_by_build(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for pool in self._pools.values():
            if pool.ready:
                build_id = pool.spec.build_id
                counts[build_id] = counts.get(build_id, 0) + len(pool.ready)
        return counts

    async def keep_filled(self) -> None:
        """Boot what is missing and drain what is too much, for ever."""
        try:
            while True:
                self._changed.clear()
                if self._is_quiet():
                    self._balance()
                # Demand decays with time alone, and retries fall due: look again every second.
                await is_set_within(self._changed, QUIET_SECONDS if self._busy_since else 1.0)
        finally:
            for task in self._boots:
                task.cancel()
            await asyncio.gather(*self._boots, return_exceptions=True)

    def _is_quiet(self) -> bool:
        """False for a moment after a claim: a boot takes a core that the next create could use.

        A burst that does not end is not waited for, or the pool would run dry.
        """
        now = time.monotonic()
        if self._busy_since is None:
            return True
        if now < self._quiet_at and now < self._busy_since + BUSY_SECONDS:
            return False
        self._busy_since = None
        return True

    def _balance(self) -> None:
        now = self._clock()
        for key, pool in list(self._pools.items()):
            wanted = 0
            if pool.is_wanted:
                wanted = wanted_size(
                    pool.claimed_at, now=now, floor=pool.spec.size, ceiling=self._ceiling
                )
            while len(pool.ready) > wanted:
                container = pool.ready.pop()
                self._store.delete_warm(container.container_id)
                self._discard(container)
            if not pool.is_wanted and not pool.booting:
                del self._pools[key]
        # One boot for each pool in turn, so that a large pool does not starve a small one.
        progressed = True
        while progressed:
            progressed = False
            for pool in self._pools.values():
                if self._is_short(pool, now):
                    self._start_boot(pool)
                    progressed = True

    def _is_short(self, pool: _Pool, now: float) -> bool:
        if not pool.is_wanted or pool.retry_at > now or len(self._boots) >= self._concurrency:
            return False
        wanted = wanted_size(pool.claimed_at, now=now, floor=pool.spec.size, ceiling=self._ceiling)
        return len(pool.ready) + pool.booting < wanted and self._may_boot()

    def _start_boot(self, pool: _Pool) -> None:
        pool.booting += 1
        task = asyncio.create_task(self._boot(pool), name=f"warm {pool.spec.build_id}")
        self._boots.add(task)
        task.add_done_callback(self._boots.discard)

    async def _boot(self, pool: _Pool) -> None:
        spec = pool.spec
        name = container_name(self._node_id)
        self.booting_names.add(name)
        container = None
        try:
            container = await self._runtime.boot(container_spec(spec, name=name))
            async with asyncio.timeout(PREPARE_SECONDS):
                await self._prepare(container, spec)
            self._store.write_warm(
                StoredWarm(container_id=container.container_id, container_name=name, spec=spec)
            )
        except (AgentError, OSError) as error:  # a timeout, or a full disk
            if container is not None:
                self._discard(container)
            pool.retry_at = self._clock() + pool.retry_seconds
            pool.retry_seconds = min(LAST_RETRY_SECONDS, 2 * pool.retry_seconds)
            logger.warning("A warm container of %s failed to boot: %s", spec.image, error)
        except asyncio.CancelledError:
            if container is not None:
                self._discard(container)
            raise
        else:
            pool.retry_seconds = FIRST_RETRY_SECONDS
            if pool.is_wanted:
                pool.ready.append(container)
            else:
                self._store.delete_warm(container.container_id)
                self._discard(container)
        finally:
            pool.booting -= 1
            self.booting_names.discard(name)
            self._changed.set()
