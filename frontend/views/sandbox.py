"""One sandbox: overview, logs, monitoring, terminal, and its ports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import BadRequest
from django.db.models import Q, QuerySet
from django.http import HttpResponse, HttpResponseBase, JsonResponse
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET

from config.errors import AppError
from frontend.doors import door_of, port_url
from frontend.envd import EnvdError, Files
from frontend.pages import TeamRequest, render, team_page
from frontend.ports import listening_ports
from frontend.samples import thin
from frontend.views.sandboxes import rows_of
from sandboxes.access import access_any_sandbox
from sandboxes.lifecycle import RUNNING_STATES
from sandboxes.models import Sandbox, SandboxEvent, SandboxMetric
from templates_app.models import Template

LOG_PAGE = 500
DOWNLOAD_LINES = 100_000
CHART_POINTS = 400
PROC_NET = ("/proc/net/tcp", "/proc/net/tcp6")
PROC_NET_BYTES = 512 * 1024

TABS = (
    ("overview", "Overview", "info", "frontend:sandbox"),
    ("logs", "Logs", "scroll-text", "frontend:sandbox-logs"),
    ("monitoring", "Monitoring", "activity", "frontend:sandbox-monitoring"),
    ("terminal", "Terminal", "terminal", "frontend:sandbox-terminal"),
    ("files", "Files", "folder", "frontend:files"),
)
LEVEL_CHOICES = [
    ("", "Any level"),
    ("debug", "Debug"),
    ("info", "Info"),
    ("warn", "Warnings"),
    ("error", "Errors"),
]
RANGES = [("5m", "5 min"), ("30m", "30 min"), ("6h", "6 h"), ("all", "All")]
RANGE_LENGTHS = {
    "5m": timedelta(minutes=5),
    "30m": timedelta(minutes=30),
    "6h": timedelta(hours=6),
}
CHARTS = [
    {"key": "cpu", "title": "CPU", "unit": "percent"},
    {"key": "memory", "title": "Memory", "unit": "bytes"},
    {"key": "disk", "title": "Disk", "unit": "bytes"},
]

# kind of event: (title, icon)
EVENT_WORDS = {
    "created": ("Created", "plus"),
    "started": ("Started", "circle-play"),
    "paused": ("Paused", "snowflake"),
    "resumed": ("Resumed", "circle-play"),
    "ended": ("Ended", "circle-stop"),
    "deadline": ("Time limit changed", "timer"),
}


@dataclass(frozen=True, kw_only=True)
class Happening:
    """One lifecycle event in words."""

    pk: int
    at: datetime
    title: str
    icon: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class LogLine:
    pk: int
    at: datetime
    level: str
    text: str


def happening_of(event: SandboxEvent) -> Happening:
    title, icon = EVENT_WORDS.get(event.kind, (event.kind.replace("_", " ").capitalize(), "info"))
    return Happening(pk=event.pk, at=event.at, title=title, icon=icon, detail=_detail_of(event))


def _detail_of(event: SandboxEvent) -> str:
    if event.message:
        return event.message
    data = event.data or {}
    parts = []
    if event.kind == "ended" and data.get("reason"):
        parts.append(str(data["reason"]).replace("_", " "))
    if data.get("detail"):
        parts.append(str(data["detail"]))
    if event.kind == "started" and "warm" in data:
        parts.append("from the warm pool" if data["warm"] else "cold")
    if event.kind == "paused" and "memory" in data:
        parts.append("processes kept" if data["memory"] else "files only")
    return ", ".join(parts)


def log_line_of(event: SandboxEvent) -> LogLine:
    if event.kind == "log":
        text = event.message or str(event.data.get("message", ""))
    else:
        happening = happening_of(event)
        text = f"{happening.title}: {happening.detail}" if happening.detail else happening.title
    return LogLine(pk=event.pk, at=event.at, level=event.level or "info", text=text)


def page_context(request: TeamRequest, sandbox: Sandbox, tab: str) -> dict[str, Any]:
    """What the head and the tabs of every page of a sandbox show."""
    slug = request.team.slug
    return {
        "sandbox": sandbox,
        "row": rows_of([sandbox])[0],
        "tab": tab,
        "tabs": [
            {
                "key": key,
                "label": label,
                "icon": icon,
                "url": reverse(name, args=[slug, sandbox.public_id]),
            }
            for key, label, icon, name in TABS
        ],
    }


@require_GET
@team_page(nav="sandboxes")
def overview(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    sandbox = access_any_sandbox(request.team, sandbox_id)
    events = sandbox.events.exclude(kind="log").order_by("-at", "-pk")[:50]
    context = page_context(request, sandbox, "overview") | {
        "events": [happening_of(event) for event in events],
        "lived_seconds": _lived_seconds(sandbox),
        "snapshots": snapshots_of(sandbox),
    }
    return render(
        request,
        "frontend/sandbox_overview.html",
        context,
        partial="frontend/_sandbox_overview.html",
    )


def snapshots_of(sandbox: Sandbox) -> list[dict[str, Any]]:
    """Newest first."""
    templates = (
        Template.objects.filter(
            team=sandbox.team, source_sandbox_id=sandbox.public_id, deleted_at=None
        )
        .prefetch_related("aliases", "builds")
        .order_by("-updated_at")[:20]
    )
    found = []
    for template in templates:
        names = [str(alias) for alias in template.aliases.all()]
        builds = sorted(template.builds.all(), key=lambda build: build.created_at)
        found.append(
            {
                "name": names[0] if names else template.public_id,
                "at": template.updated_at,
                "size_bytes": builds[-1].size_bytes if builds else 0,
            }
        )
    return found


def _lived_seconds(sandbox: Sandbox) -> float | None:
    if sandbox.started_at is None or sandbox.ended_at is None:
        return None
    return (sandbox.ended_at - sandbox.started_at).total_seconds()


@require_GET
@team_page(nav="sandboxes")
def head(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    sandbox = access_any_sandbox(request.team, sandbox_id)
    tab = request.GET.get("tab", "overview")
    return render(request, "frontend/_sandbox_head.html", page_context(request, sandbox, tab))


@require_GET
@team_page(nav="sandboxes")
def ports(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    """What listens inside, read from the kernel's own table: no process is started for it."""
    sandbox = access_any_sandbox(request.team, sandbox_id)
    context: dict[str, Any] = {}
    try:
        with Files(door_of(sandbox, now=timezone.now())) as files:
            tables = [
                files.read(path, PROC_NET_BYTES).decode("ascii", "replace") for path in PROC_NET
            ]
    except (EnvdError, AppError):
        context["error"] = "The sandbox does not answer right now."
    else:
        found = []
        for number in sorted({port for table in tables for port in listening_ports(table)}):
            url = port_url(sandbox, number)
            found.append({"number": number, "url": url, "host": url.split("//", 1)[1].rstrip("/")})
        context["ports"] = found
    return render(request, "frontend/_ports.html", context)


def matching_log(sandbox: Sandbox, *, q: str, level: str) -> QuerySet[SandboxEvent]:
    found = sandbox.events.all()
    if level:
        found = found.filter(level=level)
    if q:
        found = found.filter(Q(message__icontains=q) | Q(kind__icontains=q))
    return found


@require_GET
@team_page(nav="sandboxes")
def logs(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    sandbox = access_any_sandbox(request.team, sandbox_id)
    level = request.GET.get("level", "")
    level = level if level in dict(LEVEL_CHOICES) else ""
    q = request.GET.get("q", "").strip()[:200]
    found = matching_log(sandbox, q=q, level=level)
    before = request.GET.get("before", "")
    if before:
        if not before.isdecimal() or len(before) > 18:
            raise BadRequest("before must be a whole number")
        found = found.filter(pk__lt=int(before))
    newest = list(found.order_by("-pk")[: LOG_PAGE + 1])
    lines = [log_line_of(event) for event in reversed(newest[:LOG_PAGE])]
    context = page_context(request, sandbox, "logs") | {
        "lines": lines,
        "has_older": len(newest) > LOG_PAGE,
        "oldest": lines[0].pk if lines else 0,
        "filters": {"q": q, "level": level},
        "level_choices": LEVEL_CHOICES,
    }
    return render(request, "frontend/sandbox_logs.html", context, partial="frontend/_logs.html")


@require_GET
@team_page(nav="sandboxes")
def logs_download(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    sandbox = access_any_sandbox(request.team, sandbox_id)
    events = sandbox.events.order_by("pk")[:DOWNLOAD_LINES]
    body = "".join(_plain_lines(events))
    response = HttpResponse(body, content_type="text/plain; charset=utf-8")
    response.headers["Content-Disposition"] = f'attachment; filename="{sandbox.public_id}.log"'
    return response


def _plain_lines(events: QuerySet[SandboxEvent]) -> Iterator[str]:
    for event in events.iterator():
        line = log_line_of(event)
        yield f"{line.at.isoformat(timespec='milliseconds')} {line.level:<5} {line.text}\n"


@require_GET
@team_page(nav="sandboxes")
def monitoring(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    sandbox = access_any_sandbox(request.team, sandbox_id)
    chosen = request.GET.get("range", "30m")
    context = page_context(request, sandbox, "monitoring") | {
        "ranges": RANGES,
        "range": chosen if chosen in dict(RANGES) else "30m",
        "charts": CHARTS,
    }
    return render(request, "frontend/sandbox_monitoring.html", context)


@require_GET
@team_page(nav="sandboxes")
def metrics(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    """Samples as columns, thinned to what a chart can show, with the moments of its lifecycle."""
    sandbox = access_any_sandbox(request.team, sandbox_id)
    samples: QuerySet[SandboxMetric] = sandbox.metrics.order_by("at")
    length = RANGE_LENGTHS.get(request.GET.get("range", "30m"))
    if length is not None:
        samples = samples.filter(at__gte=(sandbox.ended_at or timezone.now()) - length)
    rows = samples.values_list("at", "cpu_used_pct", "mem_used", "disk_used")
    shown = thin(list(rows), CHART_POINTS)
    marks = sandbox.events.exclude(kind="log").order_by("at")[:100]
    return JsonResponse(
        {
            "at": [at.timestamp() for at, _, _, _ in shown],
            "cpu": [cpu for _, cpu, _, _ in shown],
            "memory": [memory for _, _, memory, _ in shown],
            "disk": [disk for _, _, _, disk in shown],
            "limits": {"cpu": 100, "memory": sandbox.memory_mb * 2**20, "disk": None},
            "marks": [
                {"at": event.at.timestamp(), "title": happening_of(event).title} for event in marks
            ],
        }
    )


@require_GET
@team_page(nav="sandboxes")
def terminal(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    sandbox = access_any_sandbox(request.team, sandbox_id)
    may_open = sandbox.state in RUNNING_STATES and request.can["open_terminal"]
    context = page_context(request, sandbox, "terminal") | {"may_open": may_open}
    return render(request, "frontend/sandbox_terminal.html", context)
