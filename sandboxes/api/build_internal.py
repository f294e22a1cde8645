"""What nodes tell of their builds, and the archives they ask for."""

from __future__ import annotations

import json

from django.http import FileResponse, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from accounts.models import Team
from config import ids
from config.drf import no_content
from config.errors import InvalidArgument
from config.middleware import json_error
from nodeagent import wire
from sandboxes.nodes import is_token_of
from templates_app.builds import record_progress
from templates_app.models import BuildStatus, TemplateBuild
from templates_app.uploads import archive_path, note_use


@csrf_exempt
@require_POST
def build_progress(request: HttpRequest, build_id: str) -> HttpResponse:
    """POST /internal/builds/{id}/progress. 404 tells the node that nobody waits for the build."""
    node_id = _node_of(request)
    if node_id is None:
        return _refused()
    try:
        progress = wire.decode(wire.BuildProgress, json.loads(request.body))
    except (ValueError, TypeError, RecursionError) as error:
        return json_error(400, f"not a build's progress: {error}")
    parsed = ids.parse_uuid(build_id)
    build = TemplateBuild.objects.filter(public_id=parsed).first() if parsed else None
    if build is None or progress.node_id != node_id:
        return json_error(404, "no such build")
    if build.status != BuildStatus.BUILDING:
        # Its own end, said twice because our answer was lost, is no news either.
        return json_error(404, "the build has ended")
    record_progress(build=build, progress=progress, now=timezone.now())
    return no_content()


@csrf_exempt
@require_GET
def build_archive(request: HttpRequest, team_id: str, files_hash: str) -> HttpResponseBase:
    """GET /internal/archives/{team}/{hash}: only while a build of that team is under way."""
    if _node_of(request) is None:
        return _refused()
    parsed = ids.parse_uuid(team_id)
    team = Team.objects.filter(public_id=parsed).first() if parsed else None
    is_building = (
        team is not None
        and TemplateBuild.objects.filter(template__team=team, status=BuildStatus.BUILDING).exists()
    )
    try:
        if team is None or not is_building:
            return json_error(404, "no such archive")
        file = archive_path(team.pk, files_hash).open("rb")
    except (OSError, InvalidArgument):
        return json_error(404, "no such archive")
    note_use(team, files_hash, now=timezone.now())
    return FileResponse(file, content_type="application/octet-stream")


def _node_of(request: HttpRequest) -> str | None:
    scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
    node_id = str(request.META.get("HTTP_X_NODE_ID", ""))
    if scheme.lower() != "bearer" or not node_id or not is_token_of(node_id, token.strip()):
        return None
    return node_id


def _refused() -> HttpResponse:
    return json_error(401, "the token is not this node's")
