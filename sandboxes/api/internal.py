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
from sandboxes.events import apply_heartbeat
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
        heartbeat = wire.decode(wire.Heartbeat, json.loads(request.body))
    except (ValueError, TypeError, RecursionError) as error:
        # Whoever has no token learns nothing of what is expected.
        return json_error(400, f"not a heartbeat: {error}") if token else _refused()
    if not is_token_of(heartbeat.node.node_id, token):
        return _refused()
    if heartbeat.node.api_version != wire.API_VERSION:
        logger.warning(
            "A node speaks version %d of the agent API, we speak %d.",
            heartbeat.node.api_version,
            wire.API_VERSION,
            extra={"node_id": heartbeat.node.node_id},
        )
        return json_error(409, f"this control plane speaks agent API version {wire.API_VERSION}")
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
