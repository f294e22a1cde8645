"""How many sandboxes a team ran at once, and how fast it started them. Pure but for one read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from accounts.models import Team
from billing.metering import MeterState
from billing.models import UsageInterval
from billing.periods import from_ms, to_ms
from config.drf import to_wire_time
from config.errors import InvalidArgument
from sandboxes.models import Sandbox

MAX_POINTS = 500
MIN_STEP_SECONDS = 30
MAX_RANGE = timedelta(days=31)
LAST_END = datetime(2299, 12, 31, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Point:
    at: datetime
    concurrent: int  # the most at one moment of the step
    start_rate: float  # starts per second, over the step


def checked_range(
    start: int | None, end: int | None, *, now: datetime
) -> tuple[datetime, datetime]:
    """Raises: InvalidArgument."""
    last_seconds = int(LAST_END.timestamp())
    if end is not None and end > last_seconds:
        raise InvalidArgument("end time cannot be after 2299-12-31")
    if start is not None and (start < 0 or start > last_seconds):
        raise InvalidArgument("start time is out of range")
    if end is not None and end < 0:
        raise InvalidArgument("end time is out of range")
    last = now if end is None else min(datetime.fromtimestamp(end, UTC), now)
    first = last - timedelta(days=7) if start is None else datetime.fromtimestamp(start, UTC)
    if first > last:
        if start is not None and (end is None or start <= end):
            first = last  # a range in the future: empty, not wrong
        else:
            raise InvalidArgument("start time cannot be after end time")
    return max(first, last - MAX_RANGE), last


def points_of(team: Team, *, first: datetime, last: datetime) -> list[Point]:
    spans = (
        UsageInterval.objects.filter(
            account_id=team.pk, state=MeterState.RUNNING, started_ms__lte=to_ms(last)
        )
        .exclude(ended_ms__lt=to_ms(first))
        .values_list("started_ms", "ended_ms")
    )
    starts = Sandbox.objects.filter(
        team=team, started_at__isnull=False, created_at__gte=first, created_at__lte=last
    ).values_list("created_at", flat=True)
    return sweep(
        [(from_ms(begun), None if ended is None else from_ms(ended)) for begun, ended in spans],
        list(starts),
        first=first,
        last=last,
    )


def sweep(
    spans: Sequence[tuple[datetime, datetime | None]],
    starts: Sequence[datetime],
    *,
    first: datetime,
    last: datetime,
) -> list[Point]:
    """spans: of running sandboxes, (begun, ended or None while it runs). All in any order."""
    step = max(MIN_STEP_SECONDS, int((last - first).total_seconds() / MAX_POINTS) + 1)
    count = int((last - first).total_seconds() // step) + 1
    started = Counter(int((at - first).total_seconds() // step) for at in starts)
    moves: list[tuple[float, int]] = []
    for begun, ended in spans:
        moves.append(((begun - first).total_seconds(), 1))
        if ended is not None:
            moves.append(((ended - first).total_seconds(), -1))
    moves.sort()
    points: list[Point] = []
    running = position = 0
    while position < len(moves) and moves[position][0] < 0:
        running += moves[position][1]
        position += 1
    for index in range(count):
        peak = running
        while position < len(moves) and moves[position][0] < (index + 1) * step:
            running += moves[position][1]
            peak = max(peak, running)
            position += 1
        points.append(
            Point(
                at=first + timedelta(seconds=index * step),
                concurrent=peak,
                start_rate=started[index] / step,
            )
        )
    return points


def point_json(point: Point) -> dict[str, Any]:
    return {
        "timestamp": to_wire_time(point.at),
        "timestampUnix": int(point.at.timestamp()),
        "concurrentSandboxes": point.concurrent,
        "sandboxStartRate": point.start_rate,
    }


def highest(points: Sequence[Point], metric: str) -> dict[str, Any]:
    """The highest point of `concurrent_sandboxes` or `sandbox_start_rate`."""

    def value_of(point: Point) -> float:
        return point.concurrent if metric == "concurrent_sandboxes" else point.start_rate

    best = max(points, key=value_of)
    return {
        "timestamp": to_wire_time(best.at),
        "timestampUnix": int(best.at.timestamp()),
        "value": value_of(best),
    }
