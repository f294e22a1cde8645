"""Sandboxes: create, list, look, steer, end."""

from __future__ import annotations

from django.http import HttpResponse
from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, extend_schema

from accounts.auth import TeamAPIView, TeamRequest
from config.drf import answer, list_of, no_content, parse
from config.errors import InvalidArgument, Unavailable
from nodeagent import errors as agent_errors
from sandboxes import idempotency
from sandboxes.access import access_sandbox
from sandboxes.api.listing import (
    ListQuery,
    list_page,
    metadata_filter,
    parse_list_query,
    total_running,
)
from sandboxes.api.serializers import (
    ConnectInput,
    ConnectV2Input,
    CreateInput,
    ListedSandboxAnswer,
    PauseInput,
    RefreshInput,
    ResumeInput,
    SandboxAnswer,
    SandboxDetailAnswer,
    TimeoutInput,
    check_env,
    check_texts,
    detail_json,
    listed_json,
    sandbox_json,
)
from sandboxes.models import Sandbox
from sandboxes.network import NetworkUpdateInput, checked_egress, checked_network
from sandboxes.nodes import directory
from sandboxes.services import (
    CreateOptions,
    connect_sandbox,
    create_sandbox,
    kill_sandbox,
    pause_sandbox,
    refresh_sandbox,
    resume_sandbox,
    set_network,
    set_timeout,
)
from sandboxes.services.checks import check_iam, check_volume_mounts, checked_timeout
from templates_app.access import ResolvedTemplate, resolve_for_start

READ = frozenset({"GET"})
KILL = Sandbox.OnTimeout.KILL
PAUSE = Sandbox.OnTimeout.PAUSE


def create_options(
    request: TeamRequest, body: CreateInput, *, default_timeout: int, is_v2: bool
) -> CreateOptions:
    """The checks of a create, in the order clients rely on. Raises: InvalidArgument,
    PermissionDenied.
    """
    timeout_seconds = checked_timeout(
        request.team, default_timeout if body.timeout is None else body.timeout
    )
    auto_resume = body.autoResume is not None and body.autoResume.enabled
    if body.autoPauseMemory is False and not body.autoPause:
        raise InvalidArgument("autoPauseMemory=false only applies when autoPause is true.")
    if body.autoPauseMemory is False and auto_resume:
        raise InvalidArgument(
            "autoPauseMemory=false (filesystem-only auto-pause) cannot be combined with autoResume:"
            " traffic can only wake a sandbox that kept its memory."
        )
    is_secure = is_v2 or body.secure is True
    check_iam(body.iam)
    network = checked_network(body.network)
    if network and network.get("allowPublicTraffic") is False and not is_secure:
        raise InvalidArgument(
            "You cannot create a sandbox without public access unless you enable secure envd access"
            " via 'secure' flag."
        )
    check_volume_mounts(body.volumeMounts)
    if body.metadata is not None:
        check_texts(body.metadata, what="metadata", max_bytes=64 * 1024)
    return CreateOptions(
        timeout_seconds=timeout_seconds,
        on_timeout=PAUSE if body.autoPause else KILL,
        auto_pause_memory=body.autoPauseMemory is not False,
        auto_resume=auto_resume,
        is_secure=is_secure,
        allow_internet_access=body.allow_internet_access,
        network=network,
        metadata=body.metadata,
        env_vars=check_env(body.envVars),
    )


class SandboxList(TeamAPIView):
    """GET, POST /sandboxes"""

    allowed_when_blocked = READ
    is_v2 = False
    default_timeout = 15

    @extend_schema(
        parameters=[OpenApiParameter("metadata", str)],
        responses={200: list_of(ListedSandboxAnswer)},
        operation_id="listSandboxes",
        deprecated=True,
    )
    def get(self, request: TeamRequest) -> HttpResponse:
        now = timezone.now()
        found = (
            Sandbox.objects.shown_running(now)
            .filter(team=request.team)
            .with_metadata(metadata_filter(request.query_params.get("metadata")))
            .select_related("template")
            .order_by("-started_at", "public_id")
        )
        return answer([listed_json(sandbox, now=now) for sandbox in found[:5000]])

    @extend_schema(
        request=CreateInput, responses={201: SandboxAnswer}, operation_id="createSandbox"
    )
    def post(self, request: TeamRequest) -> HttpResponse:
        body = parse(CreateInput, request.data)
        return self.create(request, body)

    def create(self, request: TeamRequest, body: CreateInput) -> HttpResponse:
        resolved: ResolvedTemplate = resolve_for_start(request.team, body.templateID)
        options = create_options(
            request, body, default_timeout=self.default_timeout, is_v2=self.is_v2
        )
        sandbox = create_sandbox(
            team=request.team,
            resolved=resolved,
            options=options,
            now=timezone.now(),
            key=request.caller.key,
            user=request.caller.user,
        )
        return answer(sandbox_json(sandbox), status=201)


class SandboxListV2(SandboxList):
    """GET, POST /v2/sandboxes"""

    is_v2 = True
    default_timeout = 300

    @extend_schema(
        parameters=[
            OpenApiParameter("metadata", str),
            OpenApiParameter("state", str, many=True),
            OpenApiParameter("order", str, enum=["asc", "desc"]),
            OpenApiParameter("startedAfter", str),
            OpenApiParameter("template", str),
            OpenApiParameter("limit", int),
            OpenApiParameter("nextToken", str),
        ],
        responses={200: list_of(ListedSandboxAnswer)},
        operation_id="listSandboxesV2",
        deprecated=False,
    )
    def get(self, request: TeamRequest) -> HttpResponse:
        now = timezone.now()
        query: ListQuery = parse_list_query(request)
        page, next_token = list_page(request.team, query, now=now)
        headers = {"X-Next-Token": next_token} if next_token else {}
        if "running" in query.states:
            headers["X-Total-Running"] = str(total_running(request.team, query, now=now))
        return answer([listed_json(sandbox, now=now) for sandbox in page], headers=headers)

    @extend_schema(
        request=CreateInput, responses={201: SandboxAnswer}, operation_id="createSandboxV2"
    )
    def post(self, request: TeamRequest) -> HttpResponse:
        key = request.META.get("HTTP_IDEMPOTENCY_KEY")
        body = parse(CreateInput, request.data)
        if key is None:
            return self.create(request, body)
        return idempotency.once(
            team=request.team,
            key=key,
            request_body=request.data,
            work=lambda: self.create(request, body),
            now=timezone.now(),
        )


class SandboxDetail(TeamAPIView):
    """GET, DELETE /sandboxes/{sandboxID}"""

    allowed_when_blocked = frozenset({"GET", "DELETE"})

    @extend_schema(responses={200: SandboxDetailAnswer}, operation_id="getSandbox")
    def get(self, request: TeamRequest, sandbox_id: str) -> HttpResponse:
        now = timezone.now()
        sandbox = access_sandbox(request.team, sandbox_id, now=now)
        return answer(detail_json(sandbox, now=now))

    @extend_schema(responses={204: None}, operation_id="killSandbox")
    def delete(self, request: TeamRequest, sandbox_id: str) -> HttpResponse:
        sandbox = access_sandbox(request.team, sandbox_id)
        kill_sandbox(sandbox=sandbox, now=timezone.now())
        return no_content()


class SandboxTimeout(TeamAPIView):
    """POST /sandboxes/{sandboxID}/timeout"""

    @extend_schema(request=TimeoutInput, responses={204: None}, operation_id="setSandboxTimeout")
    def post(self, request: TeamRequest, sandbox_id: str) -> HttpResponse:
        body = parse(TimeoutInput, request.data)
        sandbox = access_sandbox(request.team, sandbox_id)
        set_timeout(sandbox=sandbox, timeout_seconds=body.timeout, now=timezone.now())
        return no_content()


class SandboxRefresh(TeamAPIView):
    """POST /sandboxes/{sandboxID}/refreshes"""

    @extend_schema(request=RefreshInput, responses={204: None}, operation_id="refreshSandbox")
    def post(self, request: TeamRequest, sandbox_id: str) -> HttpResponse:
        body = parse(RefreshInput, request.data)
        sandbox = access_sandbox(request.team, sandbox_id)
        refresh_sandbox(sandbox=sandbox, duration_seconds=body.duration, now=timezone.now())
        return no_content()


class SandboxConnect(TeamAPIView):
    """POST /sandboxes/{sandboxID}/connect"""

    @extend_schema(
        request=ConnectInput,
        responses={200: SandboxAnswer, 201: SandboxAnswer},
        operation_id="connectSandbox",
    )
    def post(self, request: TeamRequest, sandbox_id: str) -> HttpResponse:
        return self.connect(request, sandbox_id, parse(ConnectInput, request.data))

    def connect(
        self, request: TeamRequest, sandbox_id: str, body: ConnectInput | ConnectV2Input
    ) -> HttpResponse:
        sandbox = access_sandbox(request.team, sandbox_id)
        was_resumed = connect_sandbox(
            sandbox=sandbox,
            timeout_seconds=body.timeout,
            keeps_memory=body.memory is not False,
            now=timezone.now(),
        )
        return answer(sandbox_json(sandbox), status=201 if was_resumed else 200)


class SandboxConnectV2(SandboxConnect):
    """POST /v2/sandboxes/{sandboxID}/connect"""

    @extend_schema(
        request=ConnectV2Input,
        responses={200: SandboxAnswer, 201: SandboxAnswer},
        operation_id="connectSandboxV2",
    )
    def post(self, request: TeamRequest, sandbox_id: str) -> HttpResponse:
        return self.connect(request, sandbox_id, parse(ConnectV2Input, request.data))


class SandboxResume(TeamAPIView):
    """POST /sandboxes/{sandboxID}/resume"""

    @extend_schema(
        request=ResumeInput,
        responses={201: SandboxAnswer},
        operation_id="resumeSandbox",
        deprecated=True,
    )
    def post(self, request: TeamRequest, sandbox_id: str) -> HttpResponse:
        body = parse(ResumeInput, request.data)
        sandbox = access_sandbox(request.team, sandbox_id)
        on_timeout = None if body.autoPause is None else (PAUSE if body.autoPause else KILL)
        resume_sandbox(
            sandbox=sandbox,
            timeout_seconds=checked_timeout(request.team, body.timeout),
            keeps_memory=body.memory is not False,
            on_timeout=on_timeout,
            now=timezone.now(),
        )
        return answer(sandbox_json(sandbox), status=201)


class SandboxPause(TeamAPIView):
    """POST /sandboxes/{sandboxID}/pause"""

    @extend_schema(request=PauseInput, responses={204: None}, operation_id="pauseSandbox")
    def post(self, request: TeamRequest, sandbox_id: str) -> HttpResponse:
        body = parse(PauseInput, request.data)
        sandbox = access_sandbox(request.team, sandbox_id)
        if body.requireHealthyGuest:
            _check_answers(sandbox)
        pause_sandbox(sandbox=sandbox, keeps_memory=body.memory is not False, now=timezone.now())
        return no_content()


def _check_answers(sandbox: Sandbox) -> None:
    """Raises: Unavailable, and the sandbox goes on."""
    try:
        directory.client_for(sandbox).get_sandbox(sandbox.public_id)
    except agent_errors.AgentError as error:
        raise Unavailable(
            f"Error pausing sandbox: sandbox '{sandbox.public_id}' is not answering"
        ) from error


class SandboxNetwork(TeamAPIView):
    """PUT /sandboxes/{sandboxID}/network"""

    @extend_schema(
        request=NetworkUpdateInput, responses={204: None}, operation_id="updateSandboxNetwork"
    )
    def put(self, request: TeamRequest, sandbox_id: str) -> HttpResponse:
        body = parse(NetworkUpdateInput, request.data)
        egress = checked_egress(body, proxy_name="egressProxy")
        sandbox = access_sandbox(request.team, sandbox_id)
        set_network(
            sandbox=sandbox,
            egress=egress,
            allow_internet_access=body.allow_internet_access,
            now=timezone.now(),
        )
        return no_content()
