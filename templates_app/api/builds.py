"""Building templates: asking, uploading, starting, watching."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal

from django.http import HttpResponse
from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, extend_schema
from pydantic import BaseModel, Field

from accounts.auth import TEAM_OR_TOKEN, TeamAPIView, TeamRequest
from accounts.models import Team
from config.drf import Body, answer, parse, query_int, to_wire_time
from config.errors import InvalidArgument, NotFound
from templates_app.access import access_template
from templates_app.api.serializers import TemplateEntry, names_of, template_json
from templates_app.api.views import TemplateDetail, TemplateList, TemplateListV2
from templates_app.builds import (
    LEVEL_NAMES,
    Recipe,
    RegistryLogin,
    access_build,
    checked_resources,
    log_page,
    request_build,
    request_rebuild,
    start_build,
)
from templates_app.models import (
    BuildLogEntry,
    BuildStatus,
    LogLevel,
    Template,
    TemplateBuild,
    TemplateKind,
)
from templates_app.services import template_counts
from templates_app.steps import StepDict
from templates_app.uploads import UPLOAD_PATH, check_files_hash, is_present, note_use, upload_token

MAX_STEPS = 1000
READ = frozenset({"GET"})


class ResourceFields(Body):
    cpuCount: int | None = None
    memoryMB: int | None = None
    teamID: str | None = None


class RequestBuildInput(ResourceFields):
    name: str | None = None
    alias: str | None = None
    tags: list[str] | None = None
    minFreeDiskMb: int | None = None


class LegacyBuildInput(ResourceFields):
    dockerfile: str | None = None
    alias: str | None = None
    startCmd: str | None = None
    readyCmd: str | None = None


class StepInput(Body):
    type: str
    args: list[str] | None = None
    filesHash: str | None = None
    force: bool | None = None


class RegistryInput(Body):
    type: Literal["registry", "aws", "gcp"]
    username: str = ""
    password: str = Field(default="", repr=False)
    serviceAccountJson: str = Field(default="", repr=False)


class StartBuildInput(Body):
    fromImage: str | None = None
    fromTemplate: str | None = None
    fromImageRegistry: RegistryInput | None = None
    force: bool | None = None
    steps: list[StepInput] | None = None
    startCmd: str | None = None
    readyCmd: str | None = None


class RequestedBuild(BaseModel):
    templateID: str
    buildID: str
    public: bool
    names: list[str]
    tags: list[str]
    aliases: list[str]


class ArchiveUpload(BaseModel):
    present: bool
    url: str


class LogEntry(BaseModel):
    timestamp: str
    message: str
    level: str
    step: str | None = None


class BuildReason(BaseModel):
    message: str
    step: str | None = None
    logEntries: list[LogEntry]


class BuildStatusEntry(BaseModel):
    templateID: str
    buildID: str
    status: str
    logs: list[str]
    logEntries: list[LogEntry]
    reason: BuildReason | None = None


class BuildLogs(BaseModel):
    logs: list[LogEntry]


class BuildRequests(TeamAPIView):
    """POST /v3/templates"""

    schemes = TEAM_OR_TOKEN

    @extend_schema(
        request=RequestBuildInput, responses={202: RequestedBuild}, operation_id="requestBuild"
    )
    def post(self, request: TeamRequest) -> HttpResponse:
        body = parse(RequestBuildInput, request.data)
        name = body.name or body.alias
        if not name or not name.strip():
            raise InvalidArgument("Name is required")
        check_team_field(request.team, body.teamID)
        build, tags = _requested(request, name, body.tags or [], body, body.minFreeDiskMb)
        template = build.template
        return answer(
            {
                "templateID": template.public_id,
                "buildID": str(build.public_id),
                "public": template.is_public,
                "names": names_of(template),
                "tags": tags,
                "aliases": [alias.alias for alias in template.aliases.all()],
            },
            status=202,
        )


def check_team_field(team: Team, given: str | None) -> None:
    if given and given.lower() != str(team.public_id):
        raise InvalidArgument("Team ID param mismatch with the API key")


def _requested(
    request: TeamRequest,
    name: str,
    tags: list[str],
    body: ResourceFields,
    min_free_disk_mb: int | None = None,
) -> tuple[TemplateBuild, list[str]]:
    now = timezone.now()
    resources = checked_resources(
        request.team,
        cpu_count=body.cpuCount,
        memory_mb=body.memoryMB,
        min_free_disk_mb=min_free_disk_mb,
        now=now,
    )
    return request_build(
        team=request.team,
        name=name,
        tags=tags,
        resources=resources,
        now=now,
        key=request.caller.key,
        user=request.caller.user,
    )


class TemplateListV2AndRequest(TemplateListV2):
    """GET, POST /v2/templates"""

    @extend_schema(
        request=LegacyBuildInput, responses={202: TemplateEntry}, operation_id="requestBuildV2"
    )
    def post(self, request: TeamRequest) -> HttpResponse:
        """As older clients ask: a name, no tags."""
        body = parse(LegacyBuildInput, request.data)
        if not body.alias:
            raise InvalidArgument("validation error: alias is required")
        check_team_field(request.team, body.teamID)
        build, _ = _requested(request, body.alias, [], body)
        return answer(_legacy_json(build), status=202)


class TemplateListAndRequest(TemplateList):
    """GET, POST /templates"""

    @extend_schema(
        request=LegacyBuildInput, responses={202: TemplateEntry}, operation_id="requestBuildV1"
    )
    def post(self, request: TeamRequest) -> HttpResponse:
        """A template whose image the caller meant to push by itself; it waits for a start."""
        body = parse(LegacyBuildInput, request.data)
        check_team_field(request.team, body.teamID)
        if not body.alias:
            raise InvalidArgument("alias is required: templates are built from a name")
        build, _ = _requested(request, body.alias, [], body)
        return answer(_legacy_json(build), status=202)


class TemplateDetailAndRebuild(TemplateDetail):
    """GET, POST, PATCH, DELETE /templates/{templateID}"""

    @extend_schema(
        request=LegacyBuildInput, responses={202: TemplateEntry}, operation_id="rebuildTemplate"
    )
    def post(self, request: TeamRequest, reference: str) -> HttpResponse:
        template = access_template(request.team, reference, to_change=True)
        body = parse(LegacyBuildInput, request.data)
        now = timezone.now()
        resources = checked_resources(
            request.team,
            cpu_count=body.cpuCount,
            memory_mb=body.memoryMB,
            min_free_disk_mb=None,
            now=now,
        )
        build = request_rebuild(
            team=request.team,
            template=template,
            resources=resources,
            now=now,
            key=request.caller.key,
        )
        return answer(_legacy_json(build), status=202)


def _legacy_json(build: TemplateBuild) -> dict[str, Any]:
    template = build.template
    body = template_json(template, template_counts([template])[template.pk])
    return {**body, "buildID": str(build.public_id)}


def own_template_by_id(team: Team, template_id: str) -> Template:
    """By id only. Raises: NotFound, also for another team's."""
    template = Template.objects.filter(
        public_id=template_id, deleted_at=None, kind=TemplateKind.TEMPLATE
    ).first()
    if template is None or template.team_id != team.pk:
        raise NotFound(f"template '{template_id}' not found")
    return template


class TemplateFiles(TeamAPIView):
    """GET /templates/{templateID}/files/{hash}"""

    schemes = TEAM_OR_TOKEN

    @extend_schema(responses={201: ArchiveUpload}, operation_id="getTemplateUpload")
    def get(self, request: TeamRequest, template_id: str, files_hash: str) -> HttpResponse:
        check_files_hash(files_hash)
        own_template_by_id(request.team, template_id)
        present = is_present(request.team, files_hash)
        if present:
            note_use(request.team, files_hash, now=timezone.now())
        # The host that led here leads here again; which one it is, only the client knows.
        path = UPLOAD_PATH + upload_token(request.team, files_hash)
        return answer({"present": present, "url": request.build_absolute_uri(path)}, status=201)


class BuildStart(TeamAPIView):
    """POST /v2/templates/{templateID}/builds/{buildID}"""

    schemes = TEAM_OR_TOKEN

    @extend_schema(request=StartBuildInput, responses={202: None}, operation_id="startBuild")
    def post(self, request: TeamRequest, template_id: str, build_id: str) -> HttpResponse:
        build = _startable(request.team, template_id, build_id)
        body = parse(StartBuildInput, request.data)
        steps = body.steps or []
        if len(steps) > MAX_STEPS:
            raise InvalidArgument(f"validation error: steps: at most {MAX_STEPS} are allowed")
        start_build(
            build=build,
            recipe=Recipe(
                from_image=(body.fromImage or "").strip(),
                from_template=(body.fromTemplate or "").strip(),
                steps=[_step(step) for step in steps],
                start_cmd=body.startCmd or "",
                ready_cmd=body.readyCmd or "",
                force=bool(body.force),
            ),
            login=_login(body.fromImageRegistry),
            now=timezone.now(),
        )
        return HttpResponse(status=202)


def _startable(team: Team, template_id: str, build_id: str) -> TemplateBuild:
    try:
        return access_build(team, template_id, build_id)
    except InvalidArgument as error:
        if "not found" in error.message:
            raise NotFound(error.message) from error
        raise InvalidArgument(f"Invalid build ID: {build_id}") from error


def _step(step: StepInput) -> StepDict:
    if step.filesHash:
        check_files_hash(step.filesHash)
    return {
        "type": step.type,
        "args": step.args or [],
        "filesHash": step.filesHash or "",
        "force": bool(step.force),
    }


def _login(registry: RegistryInput | None) -> RegistryLogin | None:
    """Raises: InvalidArgument for what cannot be used here."""
    if registry is None:
        return None
    if registry.type == "gcp":
        try:
            json.loads(registry.serviceAccountJson)
        except ValueError as error:
            raise InvalidArgument("validation error: serviceAccountJson is not JSON") from error
        return RegistryLogin(username="_json_key", password=registry.serviceAccountJson)
    if registry.type == "aws":
        raise InvalidArgument(
            "AWS credentials are not supported here: get a token with `aws ecr"
            " get-login-password` and give it as a registry password for the user AWS"
        )
    return RegistryLogin(username=registry.username, password=registry.password)


class LegacyBuildStart(TeamAPIView):
    """POST /templates/{templateID}/builds/{buildID}: expects an image pushed to a registry."""

    schemes = TEAM_OR_TOKEN

    @extend_schema(responses={400: None}, operation_id="startBuildV1")
    def post(self, request: TeamRequest, template_id: str, build_id: str) -> HttpResponse:
        access_build(request.team, template_id, build_id)
        raise InvalidArgument(
            "Building from a pushed image is no longer supported; please update your CLI"
        )


class BuildStatusDetail(TeamAPIView):
    """GET /templates/{templateID}/builds/{buildID}/status. Polled every 200 ms by each build."""

    schemes = TEAM_OR_TOKEN
    allowed_when_blocked = READ

    @extend_schema(
        parameters=[
            OpenApiParameter("logsOffset", int),
            OpenApiParameter("limit", int),
            OpenApiParameter("level", str),
        ],
        responses={200: BuildStatusEntry},
        operation_id="getBuildStatus",
    )
    def get(self, request: TeamRequest, template_id: str, build_id: str) -> HttpResponse:
        offset = query_int(request, "logsOffset", default=0, minimum=0, maximum=2**31 - 1) or 0
        limit = query_int(request, "limit", default=100, minimum=0, maximum=100)
        level = _level(request)
        build = access_build(request.team, template_id, build_id)
        # The row was read before its lines: a build seen as ended has all of them.
        entries = log_page(build, offset=offset, limit=100 if limit is None else limit,
                           least_level=level)  # fmt: skip
        body: dict[str, Any] = {
            "templateID": build.template.public_id,
            "buildID": str(build.public_id),
            "status": build.status,
            "logs": [],
            "logEntries": [log_json(entry) for entry in entries],
        }
        if build.status == BuildStatus.ERROR:
            body["reason"] = _reason(build)
        return answer(body)


def _reason(build: TemplateBuild) -> dict[str, Any]:
    reason: dict[str, Any] = {"message": build.error_message or "Build failed", "logEntries": []}
    if build.error_step:
        reason["step"] = build.error_step
        entries = build.log.filter(level__gte=LogLevel.WARN, step=build.error_step)
        reason["logEntries"] = [log_json(entry) for entry in entries.order_by("number")[:100]]
    return reason


def _level(request: TeamRequest) -> LogLevel:
    raw = request.query_params.get("level")
    if raw is None:
        return LogLevel.DEBUG
    for value, name in LEVEL_NAMES.items():
        if name == raw:
            return value
    raise InvalidArgument("validation error: level must be debug, info, warn or error")


def log_json(entry: BuildLogEntry) -> dict[str, Any]:
    body = {
        "timestamp": to_wire_time(entry.at),
        "message": entry.message,
        "level": LEVEL_NAMES[LogLevel(entry.level)],
    }
    if entry.step:
        body["step"] = entry.step
    return body


class BuildLogList(TeamAPIView):
    """GET /templates/{templateID}/builds/{buildID}/logs"""

    schemes = TEAM_OR_TOKEN
    allowed_when_blocked = READ

    @extend_schema(
        parameters=[
            OpenApiParameter("cursor", int, description="Unix milliseconds"),
            OpenApiParameter("limit", int),
            OpenApiParameter("direction", str),
            OpenApiParameter("level", str),
            OpenApiParameter("source", str),
        ],
        responses={200: BuildLogs},
        operation_id="getBuildLogs",
    )
    def get(self, request: TeamRequest, template_id: str, build_id: str) -> HttpResponse:
        limit = query_int(request, "limit", default=100, minimum=0, maximum=100)
        cursor = query_int(request, "cursor", default=None, minimum=0, maximum=2**53)
        direction = request.query_params.get("direction", "forward")
        if direction not in ("forward", "backward"):
            raise InvalidArgument("validation error: direction must be forward or backward")
        build = access_build(request.team, template_id, build_id)
        entries = build.log.filter(level__gte=_level(request))
        is_forward = direction == "forward"
        if cursor is not None:
            at = datetime.fromtimestamp(cursor / 1000, UTC)
            entries = entries.filter(at__gte=at) if is_forward else entries.filter(at__lte=at)
        entries = entries.order_by("number" if is_forward else "-number")
        page = entries[: 100 if limit is None else limit]
        return answer({"logs": [log_json(entry) for entry in page]})
