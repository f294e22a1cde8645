"""Instants in whole milliseconds, and billing periods. Pure; everything is UTC and half-open:
[start, end).
"""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
_MILLISECOND = timedelta(milliseconds=1)


def to_ms(instant: datetime) -> int:
    """Whole milliseconds since the epoch, rounded down in integers, so that neighbouring intervals
    always meet.
    """
    return (instant - EPOCH) // _MILLISECOND


def from_ms(milliseconds: int) -> datetime:
    return EPOCH + timedelta(milliseconds=milliseconds)


def hour_of(milliseconds: int) -> int:
    """Start of the UTC hour that holds the instant."""
    return milliseconds - milliseconds % HOUR_MS


def period_containing(at: datetime, *, anchor_day: int) -> tuple[datetime, datetime]:
    """The monthly period around `at`. An anchor past a month's end means its last day."""
    at = at.astimezone(UTC)
    start = _anchor(at.year, at.month, anchor_day)
    if at < start:
        year, month = _previous_month(at.year, at.month)
        start = _anchor(year, month, anchor_day)
    return start, next_period_start(start, anchor_day=anchor_day)


def next_period_start(start: datetime, *, anchor_day: int) -> datetime:
    year, month = (start.year + 1, 1) if start.month == 12 else (start.year, start.month + 1)
    return _anchor(year, month, anchor_day)


def _previous_month(year: int, month: int) -> tuple[int, int]:
    return (year - 1, 12) if month == 1 else (year, month - 1)


def _anchor(year: int, month: int, anchor_day: int) -> datetime:
    if not 1 <= anchor_day <= 31:
        raise ValueError(f"anchor day must be 1 to 31, not {anchor_day}")
    return datetime(year, month, min(anchor_day, monthrange(year, month)[1]), tzinfo=UTC)


def prorated_minor(fee_minor: int, *, start: datetime, end: datetime, since: datetime) -> int:
    """The part of a period's fee that falls after `since`, to the millisecond, rounded half up."""
    whole = to_ms(end) - to_ms(start)
    left = min(max(to_ms(end) - to_ms(since), 0), whole)
    return (2 * fee_minor * left + whole) // (2 * whole)
