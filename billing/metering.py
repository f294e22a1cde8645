"""From usage events to billable intervals. Pure: the same events give the same intervals, however
they arrive.

Events of one execution are numbered from 1 without gaps. A later number is held until the ones
before it are there, a number seen before changes nothing. Every boundary is one integer of
milliseconds on the control plane's clock, clamped so that intervals never overlap, never run
backwards and never reach past the moment we heard of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum


class UsageKind(StrEnum):
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    RESIZE = "resize"
    END = "end"
    LOST = "lost"  # its node is silent: the bill stops at the last proof of life
    FOUND = "found"  # its node came back and it had lived on


class MeterState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a sandbox was given. Billing is on allocated size, whatever it used."""

    milli_vcpu: int
    memory_mib: int
    disk_mib: int

    def billed_in(self, state: MeterState) -> Size:
        """A paused sandbox holds disk only."""
        if state is MeterState.PAUSED:
            return replace(self, milli_vcpu=0, memory_mib=0)
        return self


@dataclass(frozen=True, kw_only=True)
class Event:
    """`elapsed_ms`: since the sandbox last started or resumed, by its node's clock. It beats
    `at_ms`, because one clock measured both ends; `at_ms` is a plain instant of the control plane.
    """

    seq: int
    kind: UsageKind
    at_ms: int
    received_ms: int
    elapsed_ms: int | None = None
    size: Size | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Interval:
    state: MeterState
    started_ms: int
    ended_ms: int | None
    run_started_ms: int  # when it last started or resumed; a resize or a lost node does not move it
    size: Size  # as allocated; `size.billed_in(state)` is what is charged
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Meter:
    """Where one sandbox's meter stands: the interval that is open, else when and with what size the
    last one ended.
    """

    open: Interval | None = None
    last_end_ms: int | None = None
    last_size: Size | None = None
    last_run_started_ms: int | None = None


@dataclass(frozen=True, kw_only=True)
class Change:
    """What an event does to the intervals: close the open one at `close_ms`, then perhaps open
    another.
    """

    close_ms: int | None = None
    opens: Interval | None = None


NOTHING = Change()


def change_for(meter: Meter, event: Event) -> Change:
    """What one event does. Events that repeat what is already so do nothing."""
    running = meter.open is not None and meter.open.state is MeterState.RUNNING
    match event.kind:
        case UsageKind.END | UsageKind.LOST:
            return NOTHING if meter.open is None else Change(close_ms=_instant(meter, event))
        case UsageKind.PAUSE:
            if meter.open is None or not running:
                return NOTHING
            return _switch(meter, event, MeterState.PAUSED)
        case UsageKind.RESUME | UsageKind.FOUND:
            return NOTHING if running else _switch(meter, event, MeterState.RUNNING)
        case UsageKind.RESIZE:
            if meter.open is None or event.size in (None, meter.open.size):
                return NOTHING
            return _switch(meter, event, meter.open.state)
        case UsageKind.START:
            return _switch(meter, event, MeterState.RUNNING)


def apply(meter: Meter, change: Change) -> Meter:
    if change.opens is not None:
        return Meter(open=change.opens)
    if change.close_ms is not None:
        assert meter.open is not None
        return Meter(
            last_end_ms=change.close_ms,
            last_size=meter.open.size,
            last_run_started_ms=meter.open.run_started_ms,
        )
    return meter


def fold(events: Iterable[Event]) -> list[Interval]:
    """All intervals of one execution, from events in any order, with duplicates and gaps."""
    first_by_seq: dict[int, Event] = {}
    for event in events:
        first_by_seq.setdefault(event.seq, event)
    meter, intervals, expected = Meter(), list[Interval](), 1
    while (event := first_by_seq.get(expected)) is not None:  # type: ignore[assignment]
        change = change_for(meter, event)
        if change.close_ms is not None and meter.open is not None:
            intervals.append(replace(meter.open, ended_ms=change.close_ms, reason=event.reason))
        meter = apply(meter, change)
        expected += 1
    return intervals + ([meter.open] if meter.open else [])


def _switch(meter: Meter, event: Event, state: MeterState) -> Change:
    size = event.size or (meter.open.size if meter.open else meter.last_size)
    if size is None:
        raise ValueError(f"{event.kind} event {event.seq} opens an interval and tells no size")
    at = _instant(meter, event)
    run_started_ms = at
    if event.kind in (UsageKind.RESIZE, UsageKind.PAUSE) and meter.open:
        run_started_ms = meter.open.run_started_ms
    elif event.kind is UsageKind.FOUND and meter.last_run_started_ms is not None:
        run_started_ms = meter.last_run_started_ms
    return Change(
        close_ms=at if meter.open else None,
        opens=Interval(
            state=state, started_ms=at, ended_ms=None, run_started_ms=run_started_ms, size=size
        ),
    )


def _instant(meter: Meter, event: Event) -> int:
    began = meter.open.started_ms if meter.open else meter.last_end_ms
    at = event.at_ms
    if event.elapsed_ms is not None and meter.open is not None:
        at = meter.open.run_started_ms + max(event.elapsed_ms, 0)
    at = min(at, event.received_ms)
    return at if began is None else max(at, began)
