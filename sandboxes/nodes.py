"""The node directory: who they are, how to reach them, which one takes a sandbox."""

from __future__ import annotations

import hashlib
import hmac
import threading
from datetime import datetime, timedelta

from django.conf import settings
from django.db import connection
from django.db.models import Count, Sum

from config.errors import Unavailable
from nodeagent import wire
from nodeagent.client import AgentClient
from sandboxes.lifecycle import ACTIVE, State
from sandboxes.models import Node, Sandbox
from sandboxes.placement import Candidate, Need, Overcommit, rank_nodes
from templates_app.models import TemplateBuild

NODE_TOKEN_PREFIX = "sln_"  # noqa: S105


def node_token(node_id: str) -> str:
    """The token of one node: it opens that node's agent API, and lets that node report here."""
    digest = hmac.new(settings.NODE_SECRET.encode(), f"node:{node_id}".encode(), hashlib.sha256)
    return NODE_TOKEN_PREFIX + digest.hexdigest()


def is_token_of(node_id: str, token: str) -> bool:
    return hmac.compare_digest(node_token(node_id).encode(), token.encode())


class NodeDirectory:
    """One client per node, kept for as long as its address stays: its connections stay open too."""

    def __init__(self) -> None:
        self._clients: dict[str, AgentClient] = {}
        self._lock = threading.Lock()

    def client_of(self, node: Node) -> AgentClient:
        client = self._clients.get(node.node_id)
        if client is not None and client.api_url == node.api_url.rstrip("/"):
            return client
        with self._lock:
            client = AgentClient(node.api_url, node_token(node.node_id))
            self._clients[node.node_id] = client
        return client

    def client_for(self, sandbox: Sandbox) -> AgentClient:
        """The client of the sandbox's node. Raises: Unavailable when that node is lost."""
        node = sandbox.node
        if node is None or node.is_lost:
            raise Unavailable("The sandbox's node is not answering right now, please retry")
        release_connection()
        return self.client_of(node)


directory = NodeDirectory()


def release_connection() -> None:
    """Give a pooled database connection back before a call that may take long.

    Otherwise every request that waits for a node would hold one. Without a pool, or inside a
    transaction, nothing happens.
    """
    if connection.settings_dict.get("OPTIONS", {}).get("pool") and not connection.in_atomic_block:
        connection.close()


NOTHING = (0, 0, 0)


def _promised() -> dict[int, tuple[int, int, int]]:
    """Node -> sandboxes, vCPUs and memory of those that run there or soon will.

    A query of its own: joined to the nodes it would read every sandbox that ever was.
    """
    rows = (
        Sandbox.objects.filter(state__in=ACTIVE - {State.RESUMING}, node__isnull=False)
        .values_list("node_id")
        .annotate(Count("pk"), Sum("cpu_count"), Sum("memory_mb"))
    )
    return {node_id: (count, cpu, memory_mb) for node_id, count, cpu, memory_mb in rows}


def rank_nodes_for(build: TemplateBuild, *, now: datetime) -> list[Node]:
    """The nodes that can take one more sandbox of this build, best first."""
    nodes = list(Node.objects.filter(is_lost=False))
    promised = _promised()
    stale = now - timedelta(seconds=settings.NODE_STALE_AFTER_SECONDS)
    build_id = str(build.public_id)
    candidates = [
        Candidate(
            node_id=node.node_id,
            is_ready=is_ready(node, stale_before=stale),
            cpu_count=node.cpu_count,
            memory_mb=node.memory_mb,
            disk_available_mb=node.disk_available_mb,
            max_sandboxes=node.max_sandboxes,
            sandbox_count=promised.get(node.pk, NOTHING)[0],
            allocated_cpu=promised.get(node.pk, NOTHING)[1],
            allocated_memory_mb=promised.get(node.pk, NOTHING)[2],
            has_warm=node.warm.get(build_id, 0) > 0,
        )
        for node in nodes
    ]
    need = Need(
        cpu_count=build.cpu_count,
        memory_mb=build.memory_mb,
        disk_size_mb=build.disk_size_mb,
        node_id=build.node_id,
    )
    overcommit = Overcommit(cpu=settings.CPU_OVERCOMMIT, memory=settings.MEMORY_OVERCOMMIT)
    by_id = {node.node_id: node for node in nodes}
    return [by_id[candidate.node_id] for candidate in rank_nodes(candidates, need, overcommit)]


def is_ready(node: Node, *, stale_before: datetime) -> bool:
    return (
        not node.is_lost
        and node.api_version == wire.API_VERSION
        and not node.is_draining
        and not node.drain_requested
        and not node.is_standby
        and node.last_heartbeat_at is not None
        and node.last_heartbeat_at >= stale_before
    )


def status_of(node: Node, *, now: datetime) -> str:
    """E2B's word for a node's state."""
    stale = now - timedelta(seconds=settings.NODE_STALE_AFTER_SECONDS)
    if node.last_heartbeat_at is None:
        return "connecting"
    is_foreign = node.api_version != wire.API_VERSION  # of a release we cannot talk to
    if node.is_lost or is_foreign or node.last_heartbeat_at < stale:
        return "unhealthy"
    if node.is_draining or node.drain_requested:
        return "draining"
    return "standby" if node.is_standby else "ready"
