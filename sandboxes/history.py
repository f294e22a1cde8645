"""What is known of a sandbox's past: log lines and usage samples."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import F, Func, IntegerField, Max, QuerySet, TextField, Value

from accounts.models import Team
from config.drf import to_wire_time
from config.errors import InvalidArgument
from sandboxes.models import Sandbox, SandboxEvent, SandboxMetric

LEVELS = ("debug", "info", "warn", "error")
LOG_WINDOW = timedelta(days=7)
MAX_LOGS = 1000
SAMPLE_MAX_AGE = timedelta(seconds=60)
FAR_FUTURE_SECONDS = 10_413_792_000  # the year 2300; datetimes end at 9999

# (range up to, width of a bucket), in seconds
BUCKETS = (
    (3600, 5),
    (6 * 3600, 30),
    (12 * 3600, 60),
    (24 * 3600, 120),
    (7 * 86400, 300),
)
WIDEST_BUCKET = 900


class Position(Func):
    """Where `needle` is in `haystack`, by case, on both databases; 0 when nowhere."""

    function = "STRPOS"
    arity = 2
    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return super().as_sql(compiler, connection, function="INSTR", **context)


def log_entries(
    team: Team,
    sandbox_id: str,
    *,
    now: datetime,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = MAX_LOGS,
    newest_first: bool = False,
    level: str | None = None,
    search: str = "",
) -> list[SandboxEvent]:
    """Log lines of the last seven days; none for a sandbox that is unknown or another team's."""
    events: QuerySet[SandboxEvent] = SandboxEvent.objects.filter(
        sandbox__team=team, sandbox__public_id=sandbox_id, at__gte=now - LOG_WINDOW
    )
    if since is not None:
        events = events.filter(at__gte=since)
    if until is not None:
        events = events.filter(at__lte=until)
    if level is not None:
        events = events.filter(level__in=LEVELS[LEVELS.index(level) :])
    if search:
        found_at = Position(F("message"), Value(search, output_field=TextField()))
        events = events.alias(found_at=found_at).filter(found_at__gt=0)
    order = ("-at", "-pk") if newest_first else ("at", "pk")
    return list(events.order_by(*order)[:limit])


def entry_json(event: SandboxEvent) -> dict[str, Any]:
    fields = {str(name): _text(value) for name, value in (event.data or {}).items()}
    return {
        "timestamp": to_wire_time(event.at),
        "level": event.level,
        "message": event.message,
        "fields": {"event": event.kind, **fields},
    }


def line_json(event: SandboxEvent) -> dict[str, Any]:
    """The older shape: a line that is itself JSON."""
    entry = entry_json(event)
    logger = entry["fields"].pop("event")
    line = {
        "level": event.level,
        "message": event.message,
        "logger": "process" if logger == "log" else "sandbox",
        **entry["fields"],
    }
    return {"timestamp": entry["timestamp"], "line": json.dumps(line)}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# --- Metrics ---------------------------------------------------------------------------------


def from_unix(seconds: int | None) -> datetime | None:
    """Raises: InvalidArgument for an instant no sandbox can have."""
    if seconds is None:
        return None
    if not 0 <= seconds <= FAR_FUTURE_SECONDS:
        raise InvalidArgument("Invalid time range for metrics")
    return datetime.fromtimestamp(seconds, UTC)


def bucket_seconds(span: timedelta) -> int:
    """How wide the points of a chart over `span` are."""
    seconds = span.total_seconds()
    return next((width for limit, width in BUCKETS if seconds < limit), WIDEST_BUCKET)


def metrics_of(
    team: Team, sandbox_id: str, *, start: datetime | None, end: datetime | None, now: datetime
) -> list[dict[str, Any]]:
    """Samples in the range, oldest first; by default over the whole life.

    Raises: InvalidArgument when the range ends before it begins.
    """
    if start is not None and end is not None and start > end:
        raise InvalidArgument("Invalid time range for metrics")
    sandbox = Sandbox.objects.filter(team=team, public_id=sandbox_id).first()
    if sandbox is None:
        return []
    first = start or sandbox.created_at
    last = end or sandbox.ended_at or now
    # An end in whole seconds would cut off the sample of that very second.
    samples = SandboxMetric.objects.filter(
        sandbox=sandbox, at__gte=first, at__lt=last + timedelta(seconds=1)
    ).order_by("at")
    return [metric_json(sample) for sample in thinned(samples, bucket_seconds(last - first))]


def thinned(samples: Iterable[SandboxMetric], width: int) -> list[SandboxMetric]:
    """The last sample of each bucket of `width` seconds. Samples: oldest first."""
    by_bucket: dict[int, SandboxMetric] = {}
    for sample in samples:
        by_bucket[int(sample.at.timestamp()) // width] = sample
    return list(by_bucket.values())


def latest_metrics(team: Team, sandbox_ids: list[str], *, now: datetime) -> dict[str, Any]:
    """The newest sample of each sandbox that has one and was measured lately."""
    newest = (
        SandboxMetric.objects.filter(
            sandbox__team=team, sandbox__public_id__in=sandbox_ids, at__gte=now - SAMPLE_MAX_AGE
        )
        .values("sandbox_id")
        .annotate(newest=Max("pk"))
        .values_list("newest", flat=True)
    )
    samples = SandboxMetric.objects.filter(pk__in=list(newest)).select_related("sandbox")
    return {sample.sandbox.public_id: metric_json(sample) for sample in samples}


def metric_json(sample: SandboxMetric) -> dict[str, Any]:
    return {
        "timestamp": to_wire_time(sample.at),
        "timestampUnix": int(sample.at.timestamp()),
        "cpuCount": sample.cpu_count,
        "cpuUsedPct": sample.cpu_used_pct,
        "memUsed": sample.mem_used,
        "memTotal": sample.mem_total,
        "memCache": sample.mem_cache,
        "diskUsed": sample.disk_used,
        "diskTotal": sample.disk_total,
    }
