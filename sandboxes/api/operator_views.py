"""Nodes, and what the operator may do to a team's sandboxes."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from django.core.cache import cache
from django.db.models import Count, Q
from django.http import HttpResponse
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from pydantic import BaseModel

from accounts.access import access_team_as_operator
from accounts.auth import AdminAPIView, TeamRequest
from config import ids
from config.drf import Body, answer, list_of, no_content, parse, to_wire_time
from config.errors import AppError, Conflict, NotFound
from sandboxes.lifecycle import ACTIVE, RUNNING_STATES, State
from sandboxes.models import Node, Sandbox
from sandboxes.nodes import status_of
from sandboxes.services import kill_sandbox

COUNTS_CACHE_SECONDS = 5


class NodeStatusInput(Body):
    status: Literal["ready", "draining", "connecting", "unhealthy", "standby"]


class KillAnswer(BaseModel):
    killedCount: int
    failedCount: int


def access_node(node_id: str) -> Node:
    node: Node | None = _counted().filter(node_id=node_id).first()
    if node is None:
        raise NotFound("Node not found")
    return node


def _counted() -> Any:
    running = Q(sandboxes__state__in=RUNNING_STATES)
    return Node.objects.annotate(
        sandbox_count=Count("sandboxes", filter=running),
        starting_count=Count("sandboxes", filter=Q(sandboxes__state=State.STARTING)),
    ).order_by("node_id")


class NodeList(AdminAPIView):
    """GET /nodes"""

    @extend_schema(responses={200: list_of(dict[str, Any], "NodeList")}, operation_id="listNodes")
    def get(self, request: TeamRequest) -> HttpResponse:
        now = timezone.now()
        return answer(
            [
                {**node_json(node, now=now), "sandboxStartingCount": node.starting_count}
                for node in _counted()
            ]
        )


class NodeDetail(AdminAPIView):
    """GET, POST /nodes/{nodeID}"""

    @extend_schema(responses={200: dict[str, Any]}, operation_id="getNode")
    def get(self, request: TeamRequest, node_id: str) -> HttpResponse:
        return answer(node_json(access_node(node_id), now=timezone.now()))

    @extend_schema(request=NodeStatusInput, responses={204: None}, operation_id="changeNodeStatus")
    def post(self, request: TeamRequest, node_id: str) -> HttpResponse:
        node = access_node(node_id)
        body = parse(NodeStatusInput, request.data)
        now = timezone.now()
        if body.status in ("connecting", "unhealthy"):
            raise Conflict(f"a node becomes {body.status} by itself, not by request")
        Node.objects.filter(pk=node.pk).update(
            drain_requested=body.status == "draining",
            is_standby=body.status == "standby",
            status_changed_at=now,
        )
        return no_content()


def node_json(node: Any, *, now: datetime) -> dict[str, Any]:
    used_mb = max(node.memory_mb - node.memory_available_mb, 0)
    allocated = Sandbox.objects.filter(node=node, state__in=ACTIVE).values_list(
        "cpu_count", "memory_mb"
    )
    disk_used_mb = max(node.disk_total_mb - node.disk_available_mb, 0)
    return {
        "id": node.node_id,
        "serviceInstanceID": node.node_id,
        "clusterID": ids.ZERO_UUID,
        "version": node.version,
        "commit": node.version,
        "status": status_of(node, now=now),
        "statusChangedAt": to_wire_time(node.status_changed_at),
        "sandboxCount": node.sandbox_count,
        "createSuccesses": Sandbox.objects.filter(node=node, started_at__isnull=False).count(),
        "createFails": node.create_fails,
        "machineInfo": {
            "cpuFamily": "",
            "cpuModel": "",
            "cpuModelName": "",
            "cpuArchitecture": "",
        },
        "metrics": {
            "allocatedCPU": sum(cpu for cpu, _ in allocated),
            "allocatedMemoryBytes": sum(memory for _, memory in allocated) * 1024 * 1024,
            "cpuCount": node.cpu_count,
            "cpuPercent": 0,
            "memoryTotalBytes": node.memory_mb * 1024 * 1024,
            "memoryUsedBytes": used_mb * 1024 * 1024,
            "hugePagesTotal": 0,
            "hugePagesUsed": 0,
            "hugePagesReserved": 0,
            "hugePageSizeBytes": 0,
            "disks": [
                {
                    "mountPoint": "/var/lib/docker",
                    "device": "",
                    "filesystemType": node.storage_driver,
                    "usedBytes": disk_used_mb * 1024 * 1024,
                    "totalBytes": node.disk_total_mb * 1024 * 1024,
                }
            ],
        },
    }


class AdminKillSandboxes(AdminAPIView):
    """POST /admin/teams/{teamID}/sandboxes/kill"""

    @extend_schema(request=None, responses={200: KillAnswer}, operation_id="adminKillTeamSandboxes")
    def post(self, request: TeamRequest, team_id: str) -> HttpResponse:
        team = access_team_as_operator(team_id)
        killed = failed = 0
        sandboxes = Sandbox.objects.filter(team=team).exclude(state=State.ENDED)
        for sandbox in sandboxes.select_related("node", "template"):
            try:
                kill_sandbox(sandbox=sandbox, now=timezone.now())
                killed += 1
            except AppError:
                failed += 1
        return answer({"killedCount": killed, "failedCount": failed})


class RunningCounts(AdminAPIView):
    """GET /admin/sandboxes/running-counts"""

    @extend_schema(responses={200: dict[str, int]}, operation_id="adminRunningCounts")
    def get(self, request: TeamRequest) -> HttpResponse:
        counts = cache.get("running-counts")
        if counts is None:
            rows = (
                Sandbox.objects.filter(state__in=RUNNING_STATES)
                .values_list("team__public_id")
                .annotate(count=Count("pk"))
            )
            counts = {str(team_id): count for team_id, count in rows}
            cache.set("running-counts", counts, COUNTS_CACHE_SECONDS)
        return answer(counts)
