"""Which node a sandbox goes to. Pure: facts in, an ordered list of candidates out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A node as placement sees it. `allocated_*`: promised to its sandboxes that run."""

    node_id: str
    is_ready: bool  # heard of lately, not draining, not lost
    cpu_count: int
    memory_mb: int
    disk_available_mb: int
    max_sandboxes: int
    sandbox_count: int
    allocated_cpu: int
    allocated_memory_mb: int
    has_warm: bool  # a warm container of the wanted build waits there


@dataclass(frozen=True, kw_only=True)
class Need:
    cpu_count: int
    memory_mb: int
    disk_size_mb: int
    node_id: str = ""  # where its image lies, when only one node has it


@dataclass(frozen=True, kw_only=True)
class Overcommit:
    """How often a machine's vCPUs and memory may be promised: most sandboxes idle most of the
    time.
    """

    cpu: int
    memory: int


MIN_FREE_DISK_MB = 512


def rank_nodes(
    candidates: Iterable[Candidate], need: Need, overcommit: Overcommit
) -> list[Candidate]:
    """The nodes that fit, best first: a warm container beats all, then the fullest.

    Filling one node before the next keeps room for large sandboxes and lets idle nodes be drained.
    """
    fitting = [candidate for candidate in candidates if _fits(candidate, need, overcommit)]
    return sorted(
        fitting,
        key=lambda node: (not node.has_warm, -_fullness(node, overcommit), node.node_id),
    )


def _fits(node: Candidate, need: Need, overcommit: Overcommit) -> bool:
    if not node.is_ready or (need.node_id and need.node_id != node.node_id):
        return False
    return (
        node.sandbox_count < node.max_sandboxes
        and need.cpu_count <= max(node.cpu_count, 1) * overcommit.cpu - node.allocated_cpu
        and need.memory_mb <= node.memory_mb * overcommit.memory - node.allocated_memory_mb
        and node.disk_available_mb >= MIN_FREE_DISK_MB
    )


def _fullness(node: Candidate, overcommit: Overcommit) -> float:
    memory = node.allocated_memory_mb / max(node.memory_mb * overcommit.memory, 1)
    count = node.sandbox_count / max(node.max_sandboxes, 1)
    return max(memory, count)
