"""A container's control groups on the host: the one place that knows versions 1 and 2."""

from __future__ import annotations

import functools
from pathlib import Path

from nodeagent.runtime.base import ContainerUsage

ROOT = Path("/sys/fs/cgroup")


@functools.cache
def version(root: Path = ROOT) -> int:
    """2 when the hierarchy is unified; a hybrid one, whose controllers are on version 1, is 1."""
    return 2 if (root / "cgroup.controllers").exists() else 1


def parse_paths(text: str) -> dict[str, str]:
    """/proc/<pid>/cgroup -> controller -> path; the unified hierarchy's controller is ""."""
    paths = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                paths[controller] = parts[2]
    return paths


class ContainerGroups:
    """The groups of the container whose PID 1 is `pid`; they stay the same until it stops."""

    def __init__(self, pid: int, *, root: Path = ROOT, proc: Path = Path("/proc")) -> None:
        """Raises: OSError when there is no such process."""
        paths = parse_paths((proc / str(pid) / "cgroup").read_text())
        self._version = version(root)
        if self._version == 2:
            self._memory = self._cpu = self._pids = _child(root, paths[""])
        else:
            self._memory = _child(root / "memory", paths["memory"])
            self._cpu = _child(root / "cpuacct", paths["cpuacct"])
            self._pids = _child(root / "pids", paths["pids"])

    def usage(self) -> ContainerUsage:
        """Raises: OSError when the container has stopped."""
        stat = _numbers(self._memory / "memory.stat")
        if self._version == 2:
            memory_bytes = _number(self._memory / "memory.current")
            cache, shared = stat.get("file", 0), stat.get("shmem", 0)
            cpu_seconds = _numbers(self._cpu / "cpu.stat").get("usage_usec", 0) / 1e6
        else:
            memory_bytes = _number(self._memory / "memory.usage_in_bytes")
            cache, shared = stat.get("total_cache", 0), stat.get("total_shmem", 0)
            cpu_seconds = _number(self._cpu / "cpuacct.usage") / 1e9
        # What lies in a tmpfs is counted as cache but cannot be dropped: it is in use.
        cache = max(0, cache - shared)
        return ContainerUsage(
            cpu_seconds=cpu_seconds,
            memory_used=max(0, memory_bytes - cache),
            memory_cache=cache,
            pids=_number(self._pids / "pids.current"),
        )


def _child(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _number(path: Path) -> int:
    return int(path.read_text())


def _numbers(path: Path) -> dict[str, int]:
    """Lines of "name number"."""
    values = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            values[name] = int(value)
    return values
