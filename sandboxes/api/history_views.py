"""Logs and metrics of sandboxes and teams."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django.http import HttpResponse
from django.utils import timezone
from drf_spectacular.utils import OpenApiParameter, extend_schema

from accounts.auth import TeamAPIView, TeamRequest
from config import ids
from config.drf import answer, list_of, query_int, query_words
from config.errors import InvalidArgument, PermissionDenied
from sandboxes.access import parse_id
from sandboxes.api.serializers import (
    LogsAnswer,
    LogsV2Answer,
    MaxTeamMetricAnswer,
    MetricAnswer,
    MetricsBySandboxAnswer,
    TeamMetricAnswer,
)
from sandboxes.history import (
    LEVELS,
    MAX_LOGS,
    entry_json,
    from_unix,
    latest_metrics,
    line_json,
    log_entries,
    metrics_of,
)
from sandboxes.team_metrics import Point, checked_range, highest, point_json, points_of

READ = frozenset({"GET"})
MAX_MS = 10_413_792_000_000
MAX_BATCH = 100
START = OpenApiParameter("start", int)
END = OpenApiParameter("end", int)
LIMIT = OpenApiParameter("limit", int)


class SandboxLogs(TeamAPIView):
    """GET /sandboxes/{sandboxID}/logs"""

    allowed_when_blocked = READ

    @extend_schema(
        parameters=[START, LIMIT],
        responses={200: LogsAnswer},
        operation_id="getSandboxLogs",
        deprecated=True,
    )
    def get(self, request: TeamRequest, sandbox_id: str) -> HttpResponse:
        start = query_int(request, "start", default=None, minimum=0, maximum=MAX_MS)
        limit = query_int(request, "limit", default=MAX_LOGS, minimum=0, maximum=2**31 - 1)
        events = log_entries(
            request.team,
            parse_id(sandbox_id),
            since=None if start is None else from_millis(start),
            limit=min(MAX_LOGS if limit is None else limit, MAX_LOGS),
            now=timezone.now(),
        )
        return answer(
            {
                "logs": [line_json(event) for event in events],
                "logEntries": [entry_json(event) for event in events],
            }
        )


class SandboxLogsV2(TeamAPIView):
    """GET /v2/sandboxes/{sandboxID}/logs"""

    allowed_when_blocked = READ

    @extend_schema(
        parameters=[
            OpenApiParameter("cursor", int),
            LIMIT,
            OpenApiParameter("direction", str, enum=["forward", "backward"]),
            OpenApiParameter("level", str, enum=list(LEVELS)),
            OpenApiParameter("search", str),
        ],
        responses={200: LogsV2Answer},
        operation_id="getSandboxLogsV2",
    )
    def get(self, request: TeamRequest, sandbox_id: str) -> HttpResponse:
        params = request.query_params
        cursor = query_int(request, "cursor", default=None, minimum=0, maximum=MAX_MS)
        limit = query_int(request, "limit", default=MAX_LOGS, minimum=0, maximum=MAX_LOGS)
        direction = params.get("direction", "backward")
        if direction not in ("forward", "backward"):
            raise InvalidArgument("validation error: direction must be forward or backward")
        level = params.get("level")
        if level is not None and level not in LEVELS:
            raise InvalidArgument(f"validation error: level must be one of {', '.join(LEVELS)}")
        search = params.get("search", "")
        if len(search) > 256:
            raise InvalidArgument("validation error: search is longer than 256 characters")
        if "\x00" in search:
            raise InvalidArgument("validation error: search must not hold NUL characters")
        at = None if cursor is None else from_millis(cursor)
        is_forward = direction == "forward"
        events = log_entries(
            request.team,
            parse_id(sandbox_id),
            since=at if is_forward else None,
            until=None if is_forward else at,
            limit=MAX_LOGS if limit is None else limit,
            newest_first=not is_forward,
            level=level,
            search=search,
            now=timezone.now(),
        )
        return answer({"logs": [entry_json(event) for event in events]})


def from_millis(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds // 1000, UTC) + timedelta(
        milliseconds=milliseconds % 1000
    )


class SandboxMetrics(TeamAPIView):
    """GET /sandboxes/{sandboxID}/metrics"""

    allowed_when_blocked = READ

    @extend_schema(
        parameters=[START, END],
        responses={200: list_of(MetricAnswer)},
        operation_id="getSandboxMetrics",
    )
    def get(self, request: TeamRequest, sandbox_id: str) -> HttpResponse:
        start = query_int(request, "start", default=None, minimum=0, maximum=2**62)
        end = query_int(request, "end", default=None, minimum=0, maximum=2**62)
        samples = metrics_of(
            request.team,
            parse_id(sandbox_id),
            start=from_unix(start),
            end=from_unix(end),
            now=timezone.now(),
        )
        return answer(samples)


class SandboxesMetrics(TeamAPIView):
    """GET /sandboxes/metrics"""

    allowed_when_blocked = READ

    @extend_schema(
        parameters=[OpenApiParameter("sandbox_ids", str, required=True, many=True)],
        responses={200: MetricsBySandboxAnswer},
        operation_id="getSandboxesMetrics",
    )
    def get(self, request: TeamRequest) -> HttpResponse:
        wanted = query_words(request, "sandbox_ids")
        if not wanted:
            raise InvalidArgument("validation error: sandbox_ids is required")
        unique = list(dict.fromkeys(parse_id(raw) for raw in wanted))
        if len(unique) > MAX_BATCH:
            raise InvalidArgument(f"Too many sandboxes requested, maximum is {MAX_BATCH}")
        return answer({"sandboxes": latest_metrics(request.team, unique, now=timezone.now())})


class TeamMetrics(TeamAPIView):
    """GET /teams/{teamID}/metrics"""

    allowed_when_blocked = READ

    @extend_schema(
        parameters=[START, END],
        responses={200: list_of(TeamMetricAnswer)},
        operation_id="getTeamMetrics",
    )
    def get(self, request: TeamRequest, team_id: str) -> HttpResponse:
        return answer([point_json(point) for point in self.points(request, team_id)])

    def points(self, request: TeamRequest, team_id: str) -> list[Point]:
        if ids.parse_uuid(team_id) != request.team.public_id:
            raise PermissionDenied(
                f"You ({request.team.public_id}) are not authorized to access this team's"
                f" ({team_id[:64]}) metrics"
            )
        start = query_int(request, "start", default=None, minimum=0, maximum=2**62)
        end = query_int(request, "end", default=None, minimum=0, maximum=2**62)
        first, last = checked_range(start, end, now=timezone.now())
        return points_of(request.team, first=first, last=last)


class MaxTeamMetrics(TeamMetrics):
    """GET /teams/{teamID}/metrics/max"""

    @extend_schema(
        parameters=[
            START,
            END,
            OpenApiParameter(
                "metric", str, enum=["concurrent_sandboxes", "sandbox_start_rate"], required=True
            ),
        ],
        responses={200: MaxTeamMetricAnswer},
        operation_id="getMaxTeamMetrics",
    )
    def get(self, request: TeamRequest, team_id: str) -> HttpResponse:
        metric = request.query_params.get("metric")
        if metric not in ("concurrent_sandboxes", "sandbox_start_rate"):
            raise InvalidArgument(
                "validation error: metric must be concurrent_sandboxes or sandbox_start_rate"
            )
        return answer(highest(self.points(request, team_id), metric))
