"""Giving template builds to nodes, and making true what no message made true."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from django.conf import settings

from config.errors import NotFound
from nodeagent import errors as agent_errors
from sandboxes.models import Node
from sandboxes.nodes import directory, is_ready, rank_nodes_for, release_connection
from templates_app.builds import INTERNAL, RegistryLogin, build_spec, fail_build
from templates_app.models import BuildStatus, TemplateBuild

logger = logging.getLogger(__name__)

# A node speaks of each of its builds every few seconds.
SILENT_AFTER = timedelta(seconds=15)
UNPLACED_AFTER = timedelta(minutes=10)
BATCH = 100


class NodeRunner:
    """The `templates_app.builds.BuildRunner` over our nodes."""

    def start(self, build: TemplateBuild, login: RegistryLogin | None, *, now: datetime) -> None:
        """Ask nodes, best first, until one takes it.

        With none, the build stays unplaced and `settle_builds` asks again; one that came with
        credentials ends instead, since they are not kept for a second try.
        """
        try:
            spec = build_spec(build, login)
        except NotFound as error:
            fail_build(build, error.message, step="base", now=now)
            return
        for node in _nodes_for(build, now=now):
            release_connection()
            try:
                directory.client_of(node).start_build(spec)
            except agent_errors.AgentError as error:
                logger.warning(
                    "A node did not take a build: %s", error, extra={"node_id": node.node_id}
                )
                continue
            TemplateBuild.objects.filter(pk=build.pk, status=BuildStatus.BUILDING).update(
                node_id=node.node_id, progress_at=now
            )
            return
        if login is not None:
            fail_build(build, INTERNAL, now=now)
            return
        TemplateBuild.objects.filter(pk=build.pk).update(progress_at=None)

    def cancel(self, build: TemplateBuild) -> None:
        node = Node.objects.filter(node_id=build.node_id, is_lost=False).first()
        if node is None:
            return
        try:
            directory.client_of(node).cancel_build(str(build.public_id))
        except agent_errors.AgentError as error:
            # The node learns it anyway: its next report is refused.
            logger.info("A build was not cancelled: %s", error, extra={"node_id": node.node_id})


def _nodes_for(build: TemplateBuild, *, now: datetime) -> list[Node]:
    """Those with room first; builds may wait on a full node, so the other ready ones follow."""
    ranked = rank_nodes_for(build, now=now)
    stale = now - timedelta(seconds=settings.NODE_STALE_AFTER_SECONDS)
    others = [
        node
        for node in Node.objects.filter(is_lost=False)
        if node not in ranked
        and is_ready(node, stale_before=stale)
        and build.node_id in ("", node.node_id)
    ]
    return [*ranked, *others]


def settle_builds(*, now: datetime) -> int:
    """Place what is unplaced; end what its node has forgotten. Returns how many moved."""
    building = TemplateBuild.objects.select_related("template__team").filter(
        status=BuildStatus.BUILDING, recipe__isnull=False
    )
    runner = NodeRunner()
    count = 0
    for build in building.filter(progress_at=None)[:BATCH]:
        if build.updated_at < now - UNPLACED_AFTER:
            count += fail_build(build, INTERNAL, now=now)
        else:
            runner.start(build, None, now=now)
            count += 1
    for build in building.filter(progress_at__lt=now - SILENT_AFTER)[:BATCH]:
        node = Node.objects.filter(node_id=build.node_id).first()
        if node is None or node.is_lost:
            count += fail_build(build, INTERNAL, now=now)
            continue
        try:
            directory.client_of(node).get_build(str(build.public_id))
        except agent_errors.NotFound:
            count += fail_build(build, INTERNAL, now=now)
        except agent_errors.AgentError as error:
            logger.info("A build's node is silent: %s", error, extra={"node_id": node.node_id})
    return count
