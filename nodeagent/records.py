"""A sandbox as the agent holds it, and its file in the state directory.

Files are replaced atomically. They are fsynced only when a sandbox is paused: then its files must
outlive a power cut, while a running sandbox's processes do not, so its record need not either.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nodeagent import wire
from nodeagent.runtime.base import Container
from nodeagent.sandbox import LiveSandbox
from nodeagent.wire import CreateSandbox, NodeSandboxState, PoolSpec, SandboxStarted, SandboxState

logger = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class OwnedSandbox(LiveSandbox):
    """`lock`: held by whoever moves it. `created`: what create answered, for the same id again."""

    container: Container
    created: SandboxStarted
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    move: asyncio.Task[Any] | None = None  # a pause, resume or snapshot that a kill may cancel
    has_ended: bool = False
    is_halting: bool = False  # its container is being stopped by us
    oom_at: float | None = None  # monotonic: when the kernel last killed one of its processes
    log_tokens: float = 0.0  # lines its log may still take; see Agent.log
    log_at: float = 0.0  # monotonic

    def summary(self) -> SandboxState:
        return SandboxState(
            sandbox_id=self.sandbox_id,
            state=self.state,
            started_at=self.started_at,
            end_at=self.end_at,
            paused_at=self.paused_at,
            memory=self.keeps_memory,
            is_moving=self.lock.locked(),
        )

    def stored(self) -> StoredSandbox:
        return StoredSandbox(
            spec=self.spec,
            container_id=self.container_id,
            container_name=self.container.name,
            state=self.state,
            started_at=self.started_at,
            end_at=self.end_at,
            paused_at=self.paused_at,
            keeps_memory=self.keeps_memory,
            is_halting=self.is_halting,
            created=self.created,
        )


@dataclass(frozen=True, kw_only=True)
class StoredSandbox:
    spec: CreateSandbox
    container_id: str
    container_name: str
    state: NodeSandboxState
    started_at: float
    end_at: float
    created: SandboxStarted
    paused_at: float | None = None
    keeps_memory: bool = True
    is_halting: bool = False  # of a running one: it is being paused without its memory


@dataclass(frozen=True, kw_only=True)
class StoredWarm:
    container_id: str
    container_name: str
    spec: PoolSpec


class StateStore:
    """The node's folder: `sandboxes/`, `warm/`, `run/<container name>/`, `pools.json`."""

    def __init__(self, node_dir: Path) -> None:
        self._sandboxes = node_dir / "sandboxes"
        self._warm = node_dir / "warm"
        self._pools = node_dir / "pools.json"
        self.run_dir = node_dir / "run"
        self.events_path = node_dir / "events.jsonl"
        for folder in (node_dir, self._sandboxes, self._warm, self.run_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write_sandbox(self, stored: StoredSandbox, *, durable: bool = False) -> None:
        _write(self._sandboxes / f"{stored.spec.sandbox_id}.json", stored, durable=durable)

    def delete_sandbox(self, sandbox_id: str) -> None:
        (self._sandboxes / f"{sandbox_id}.json").unlink(missing_ok=True)

    def sandboxes(self) -> list[StoredSandbox]:
        return list(_read_all(self._sandboxes, StoredSandbox))

    def write_warm(self, stored: StoredWarm) -> None:
        _write(self._warm / f"{stored.container_id}.json", stored)

    def delete_warm(self, container_id: str) -> None:
        (self._warm / f"{container_id}.json").unlink(missing_ok=True)

    def warm(self) -> list[StoredWarm]:
        return list(_read_all(self._warm, StoredWarm))

    def prune_run_dirs(self, names: Collection[str]) -> None:
        """Remove the run directories of containers that are gone."""
        for path in self.run_dir.iterdir():
            if path.name not in names:
                shutil.rmtree(path, ignore_errors=True)

    def write_pools(self, specs: list[PoolSpec]) -> None:
        _write(self._pools, specs)

    def pools(self) -> list[PoolSpec]:
        try:
            return [wire.decode(PoolSpec, item) for item in json.loads(self._pools.read_text())]
        except (FileNotFoundError, ValueError):
            return []  # the next heartbeat brings them


def _write(path: Path, message: Any, *, durable: bool = False) -> None:
    fresh = path.with_suffix(".new")
    text = json.dumps(wire.encode(message), separators=(",", ":"))
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123 - the mode holds tokens in
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    fresh.replace(path)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _read_all(folder: Path, kind: type[wire.T]) -> Iterator[wire.T]:
    for path in sorted(folder.glob("*.json")):
        try:
            yield wire.decode(kind, json.loads(path.read_text()))
        except ValueError as error:
            logger.warning("Set aside an unreadable state file %s: %s", path.name, error)
            path.replace(path.with_suffix(".unreadable"))
