"""What nodes and the worker tell the web process. Plain views: these are the busiest routes."""

from __future__ import annotations

import hmac
import json
import logging
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from config.drf import answer, no_content
from config.middleware import json_error
from nodeagent import wire
from sandboxes import live
from sandboxes.events import apply_heartbeat, note_other_version
from sandboxes.lifecycle import LISTED
from sandboxes.models import Sandbox
from sandboxes.nodes import is_token_of

logger = logging.getLogger(__name__)


@csrf_exempt
@require_POST
def node_heartbeat(request: HttpRequest) -> HttpResponse:
    """POST /internal/nodes/heartbeat"""
    token = _bearer(request)
    try:
        raw = json.loads(request.body)
        if _is_of_another_version(raw, token):
            return json_error(
                409, f"this control plane speaks agent API version {wire.API_VERSION}"
            )
        heartbeat = wire.decode(wire.Heartbeat, raw)
    except (ValueError, TypeError, RecursionError) as error:
        # Whoever has no token learns nothing of what is expected.
        return json_error(400, f"not a heartbeat: {error}") if token else _refused()
    if not is_token_of(heartbeat.node.node_id, token):
        return _refused()
    reply = apply_heartbeat(heartbeat, now=timezone.now())
    return answer(wire.encode(reply))


@require_GET
def sandbox_node(request: HttpRequest, sandbox_id: str) -> HttpResponse:
    """GET /internal/sandboxes/{sandboxID}/node: where a gateway forwards what is not its own."""
    if not is_token_of(request.headers.get("Sandlot-Node", ""), _bearer(request)):
        return _refused()
    place = (
        Sandbox.objects.filter(public_id=sandbox_id, state__in=LISTED, node__is_lost=False)
        .values_list("node__node_id", "node__gateway_url")
        .first()
    )
    if place is None:
        return json_error(404, "no node has this sandbox")
    return answer({"nodeID": place[0], "gatewayURL": place[1]})


def _is_of_another_version(raw: Any, token: str) -> bool:
    """Seen before the rest is read, which another version may write in another way.

    The node gets no new sandboxes, but those it runs are not given up for lost.
    """
    status = raw.get("node") if isinstance(raw, dict) else None
    if not isinstance(status, dict):
        return False
    node_id, version = status.get("node_id"), status.get("api_version")
    if not isinstance(node_id, str) or not isinstance(version, int):
        return False
    if version == wire.API_VERSION or not is_token_of(node_id, token):
        return False
    logger.warning(
        "A node speaks version %d of the agent API, we speak %d.",
        version,
        wire.API_VERSION,
        extra={"node_id": node_id},
    )
    note_other_version(node_id, version, now=timezone.now())
    return True


@csrf_exempt
@require_POST
def live_hints(request: HttpRequest) -> HttpResponse:
    """POST /internal/live: the worker's hints, when no channel layer is shared."""
    if not hmac.compare_digest(_bearer(request).encode(), settings.INTERNAL_TOKEN.encode()):
        return _refused()
    try:
        hints: dict[str, Any] = json.loads(request.body)
        for team_id, topics in hints.items():
            live.publish(int(team_id), topics=tuple(str(topic) for topic in topics))
    except (ValueError, TypeError, AttributeError):
        return json_error(400, "not a set of hints")
    return no_content()


def _bearer(request: HttpRequest) -> str:
    scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _refused() -> HttpResponse:
    return json_error(401, "the token is not this node's")
