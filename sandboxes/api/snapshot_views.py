"""Snapshots and forks."""

from __future__ import annotations

from django.db.models import Q
from django.http import HttpResponse
from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, extend_schema

from accounts.auth import TeamAPIView, TeamRequest
from config.drf import answer, decode_cursor, encode_cursor, list_of, parse, query_int
from config.errors import InvalidArgument
from sandboxes.access import access_sandbox, parse_id
from sandboxes.api.serializers import (
    ForkInput,
    ForkResult,
    SnapshotAnswer,
    SnapshotInput,
    sandbox_json,
)
from sandboxes.models import Sandbox
from sandboxes.services import fork_sandbox, snapshot_sandbox
from templates_app.models import TemplateKind, TemplateTag
from templates_app.references import DEFAULT_TAG, parse_reference


class SandboxSnapshots(TeamAPIView):
    """POST /sandboxes/{sandboxID}/snapshots"""

    @extend_schema(
        request=SnapshotInput, responses={201: SnapshotAnswer}, operation_id="createSnapshot"
    )
    def post(self, request: TeamRequest, sandbox_id: str) -> HttpResponse:
        body = parse(SnapshotInput, request.data)
        sandbox = access_sandbox(request.team, sandbox_id)
        template, _, reference = snapshot_sandbox(
            sandbox=sandbox,
            name=body.name,
            key=request.caller.key,
            user=request.caller.user,
            now=timezone.now(),
        )
        if reference is None:
            return answer(snapshot_json(template.public_id, None, DEFAULT_TAG), status=201)
        name = f"{request.team.slug}/{reference.name}"
        return answer(
            snapshot_json(template.public_id, name, reference.tag or DEFAULT_TAG), status=201
        )


def snapshot_json(template_id: str, name: str | None, tag: str) -> dict[str, object]:
    return {
        "snapshotID": f"{name or template_id}:{tag}",
        "names": [name] if name else [],
    }


class SnapshotList(TeamAPIView):
    """GET /snapshots"""

    allowed_when_blocked = frozenset({"GET"})

    @extend_schema(
        parameters=[
            OpenApiParameter("sandboxID", str),
            OpenApiParameter("name", str),
            OpenApiParameter("limit", int),
            OpenApiParameter("nextToken", str),
        ],
        responses={200: list_of(SnapshotAnswer)},
        operation_id="listSnapshots",
    )
    def get(self, request: TeamRequest) -> HttpResponse:
        """One entry per tag assignment that stands, newest first."""
        params = request.query_params
        limit = query_int(request, "limit", default=100, minimum=1, maximum=100) or 100
        found = (
            TemplateTag.objects.filter(
                template__team=request.team,
                template__kind=TemplateKind.SNAPSHOT,
                template__deleted_at=None,
            )
            .select_related("template", "build")
            .prefetch_related("template__aliases")
            .order_by("-created_at", "-pk")
        )
        if raw := params.get("sandboxID"):
            found = found.filter(template__source_sandbox_id=parse_id(raw))
        newest_only = False
        if raw := params.get("name"):
            try:
                reference = parse_reference(raw)
            except InvalidArgument as error:
                raise InvalidArgument(f"Invalid name: {error.message}") from error
            if reference.namespace not in (None, request.team.slug):
                return answer([])
            found = found.filter(
                Q(template__aliases__alias=reference.name) | Q(template__public_id=reference.name)
            ).distinct()
            if ":" in raw:
                found = found.filter(tag=reference.tag or DEFAULT_TAG)
            newest_only = True
        if token := params.get("nextToken"):
            at, key = decode_cursor(token)
            if not key.isascii() or not key.isdigit() or len(key) > 18:
                raise InvalidArgument("Invalid next token")
            found = found.filter(Q(created_at__lt=at) | Q(created_at=at, pk__lt=int(key)))
        page = list(found[:1] if newest_only else found[: limit + 1])
        headers = {}
        if len(page) > limit:
            page = page[:limit]
            headers["X-Next-Token"] = encode_cursor(page[-1].created_at, str(page[-1].pk))
        return answer([assignment_json(assignment) for assignment in page], headers=headers)


def assignment_json(assignment: TemplateTag) -> dict[str, object]:
    aliases = list(assignment.template.aliases.all())
    name = str(aliases[0]) if aliases else None
    return snapshot_json(assignment.template.public_id, name, assignment.tag)


class SandboxFork(TeamAPIView):
    """POST /sandboxes/{sandboxID}/fork"""

    @extend_schema(
        request=ForkInput,
        responses={201: list_of(ForkResult)},
        operation_id="forkSandbox",
    )
    def post(self, request: TeamRequest, sandbox_id: str) -> HttpResponse:
        body = parse(ForkInput, request.data)
        sandbox = access_sandbox(request.team, sandbox_id)
        forks = fork_sandbox(
            sandbox=sandbox,
            count=body.count,
            timeout_seconds=body.timeout,
            key=request.caller.key,
            user=request.caller.user,
            now=timezone.now(),
        )
        return answer(
            [
                {"sandbox": sandbox_json(fork)}
                if isinstance(fork, Sandbox)
                else {"error": fork.body()}
                for fork in forks
            ],
            status=201,
        )
