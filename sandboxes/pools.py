"""Which builds each node should keep warm. How many, beyond the floor given here, the node
decides.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.conf import settings
from django.core.cache import cache
from django.db.models import Q

from nodeagent import wire
from sandboxes.specs import pool_spec
from templates_app.models import BuildStatus, TemplateBuild, TemplateKind, TemplateTag
from templates_app.references import DEFAULT_TAG

RECENT = timedelta(minutes=15)
MAX_POOLS = 20
CACHE_SECONDS = 2  # heartbeats come at every event; pools change seldom


def wanted_pools(node_id: str, *, now: datetime) -> list[wire.PoolSpec]:
    """The platform's public templates always, and of the others those used or built lately."""
    key = f"pools:{node_id}"
    specs: list[wire.PoolSpec] | None = cache.get(key)
    if specs is None:
        specs = [
            pool_spec(build, size=size) for build, size in _builds(node_id, now=now) if size > 0
        ]
        cache.set(key, specs, CACHE_SECONDS)
    return specs


def _builds(node_id: str, *, now: datetime) -> list[tuple[TemplateBuild, int]]:
    newest: dict[int, TemplateBuild] = {}
    assignments = (
        TemplateTag.objects.select_related("build__template")
        .filter(
            Q(template__team=None)
            | Q(template__last_spawned_at__gte=now - RECENT)
            | Q(build__finished_at__gte=now - RECENT),
            Q(build__node_id="") | Q(build__node_id=node_id),
            tag=DEFAULT_TAG,
            template__deleted_at=None,
            template__kind=TemplateKind.TEMPLATE,
            build__status=BuildStatus.READY,
        )
        .order_by("pk")
    )
    for assignment in assignments:
        newest[assignment.template_id] = assignment.build
    builds = sorted(
        newest.values(), key=lambda build: (build.template.team_id is not None, -build.pk)
    )
    return [(build, _size(build)) for build in builds[:MAX_POOLS]]


def _size(build: TemplateBuild) -> int:
    if build.pool_size is not None:
        return build.pool_size
    is_untried = build.template.team_id is not None and build.template.last_spawned_at is None
    # One is ready for the first try; many templates are built and never used.
    return min(1, settings.DEFAULT_POOL_SIZE) if is_untried else settings.DEFAULT_POOL_SIZE
