"""The operator's view of the machines. Staff only; others see no sign of it."""

from __future__ import annotations

from django.db.models import Count, Q, Sum
from django.http import Http404, HttpResponseBase
from django.utils import timezone
from django.views.decorators.http import require_GET

from frontend.pages import TeamRequest, render, team_page
from sandboxes.lifecycle import ACTIVE
from sandboxes.models import Node
from sandboxes.nodes import status_of


@require_GET
@team_page(nav="nodes")
def node_list(request: TeamRequest) -> HttpResponseBase:
    if not request.user.is_staff:
        raise Http404("No such page.")
    active = Q(sandboxes__state__in=ACTIVE)
    nodes = Node.objects.annotate(
        sandbox_count=Count("sandboxes", filter=active),
        allocated_cpu=Sum("sandboxes__cpu_count", filter=active, default=0),
        allocated_memory_mb=Sum("sandboxes__memory_mb", filter=active, default=0),
    ).order_by("node_id")
    now = timezone.now()
    rows = [
        {
            "node": node,
            "status": status_of(node, now=now),
            "warm": sum(node.warm.values()),
            "memory_used_mb": max(0, node.memory_mb - node.memory_available_mb),
            "disk_used_mb": max(0, node.disk_total_mb - node.disk_available_mb),
        }
        for node in nodes
    ]
    return render(request, "frontend/nodes.html", {"rows": rows}, partial="frontend/_nodes.html")
