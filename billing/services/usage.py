"""The meter: called by the sandboxes app inside the transaction that changes a sandbox's state.

What to call where (all keyword-only; `now` is `timezone.now()` of the same transaction):

    sandbox became running (create, fork)     open_usage(team_id=…, sandbox_id=…, milli_vcpu=…, …)
    pause accepted                            pause_usage(sandbox_id=…, now=…)
    resumed (connect, resume, auto-resume)    resume_usage(sandbox_id=…, now=…)
    kill accepted, or it ended by itself      close_usage(sandbox_id=…, reason=…, now=…, ran_for=…)
    heartbeat of a node                       confirm_usage(sandbox_ids=…, now=…)
    node silent for too long                  lose_usage(sandbox_ids=…, now=…)
    it came back and the container lived on   find_usage(sandbox_id=…, is_proven=…, now=…)

A failed start opens nothing, so it costs nothing; a warm container is no customer's until
`open_usage`. Billing ends when the kill or pause is *accepted*: pass no `ran_for` then. When the
node tells of an end it saw itself, pass `ran_for`: how long the sandbox ran since it started or
resumed, both ends on the node's clock; an offset of that clock then cancels out.

Calls are idempotent. Who holds the sandbox's row may leave `seq` out, and gets the next number; who
relays numbered reports passes `execution_id` and `seq`: repeats change nothing, a number that is
ahead waits for those before it. Each call joins the caller's transaction, so state and meter are
committed together or not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError, connection, transaction
from django.db.models import Max

from billing.metering import (
    Change,
    Event,
    Interval,
    Meter,
    MeterState,
    Size,
    UsageKind,
    change_for,
)
from billing.models import BillingAccount, DirtyHour, UsageEvent, UsageInterval
from billing.periods import HOUR_MS, from_ms, hour_of, to_ms
from billing.services.accounts import ensure_account

log = logging.getLogger(__name__)

# What describes a sandbox and travels from interval to interval.
_FACTS = (
    "account_id",
    "sandbox_id",
    "execution_id",
    "template_id",
    "api_key_id",
    "node_id",
    "labels",
)


def open_usage(
    *,
    team_id: int,
    sandbox_id: str,
    milli_vcpu: int,
    memory_mib: int,
    now: datetime,
    disk_mib: int = 0,
    template_id: str = "",
    api_key_id: str = "",
    node_id: str = "",
    labels: dict[str, str] | None = None,
    started_at: datetime | None = None,
    execution_id: str = "",
    seq: int | None = None,
) -> None:
    """Start the meter of a sandbox that became usable. `started_at`: on the control plane's clock,
    default `now`.
    """
    facts = {
        "account_id": team_id,
        "sandbox_id": sandbox_id,
        "execution_id": execution_id or sandbox_id,
        "template_id": template_id,
        "api_key_id": api_key_id,
        "node_id": node_id,
        "labels": labels or {},
    }
    event = Event(
        seq=0,
        kind=UsageKind.START,
        at_ms=to_ms(started_at or now),
        received_ms=to_ms(now),
        size=Size(milli_vcpu=milli_vcpu, memory_mib=memory_mib, disk_mib=disk_mib),
    )
    _record(sandbox_id=sandbox_id, event=event, seq=seq, execution_id=execution_id, facts=facts)


def pause_usage(
    *,
    sandbox_id: str,
    now: datetime,
    at: datetime | None = None,
    ran_for: timedelta | None = None,
    execution_id: str = "",
    seq: int | None = None,
) -> None:
    """Stop charging vCPU and memory; disk goes on where it has a price."""
    event = _event(UsageKind.PAUSE, now=now, at=at, ran_for=ran_for, reason="paused")
    _record(sandbox_id=sandbox_id, event=event, seq=seq, execution_id=execution_id)


def resume_usage(
    *,
    sandbox_id: str,
    now: datetime,
    at: datetime | None = None,
    node_id: str = "",
    execution_id: str = "",
    seq: int | None = None,
) -> None:
    event = _event(UsageKind.RESUME, now=now, at=at, reason="resumed")
    facts = {"node_id": node_id} if node_id else {}
    _record(sandbox_id=sandbox_id, event=event, seq=seq, execution_id=execution_id, facts=facts)


def resize_usage(
    *,
    sandbox_id: str,
    milli_vcpu: int,
    memory_mib: int,
    disk_mib: int,
    now: datetime,
    execution_id: str = "",
    seq: int | None = None,
) -> None:
    size = Size(milli_vcpu=milli_vcpu, memory_mib=memory_mib, disk_mib=disk_mib)
    event = _event(UsageKind.RESIZE, now=now, reason="resized", size=size)
    _record(sandbox_id=sandbox_id, event=event, seq=seq, execution_id=execution_id)


def close_usage(
    *,
    sandbox_id: str,
    reason: str,
    now: datetime,
    at: datetime | None = None,
    ran_for: timedelta | None = None,
    execution_id: str = "",
    seq: int | None = None,
) -> None:
    """End the meter of a sandbox. Closing one that has ended, or never began, changes nothing."""
    event = _event(UsageKind.END, now=now, at=at, ran_for=ran_for, reason=reason)
    _record(sandbox_id=sandbox_id, event=event, seq=seq, execution_id=execution_id)


def confirm_usage(*, sandbox_ids: Iterable[str], now: datetime) -> None:
    """Note that a node just named these sandboxes as alive. Open intervals are billed up to this
    proof.
    """
    ids, now_ms = list(sandbox_ids), to_ms(now)
    for start in range(0, len(ids), 500):
        UsageInterval.objects.filter(
            sandbox_id__in=ids[start : start + 500],
            ended_ms__isnull=True,
            confirmed_until_ms__lt=now_ms,
        ).update(confirmed_until_ms=now_ms)


def lose_usage(*, sandbox_ids: Iterable[str], now: datetime, reason: str = "node_lost") -> None:
    """Close the meters of sandboxes whose node is silent, at their last proof of life: doubt
    favours the customer.
    """
    for sandbox_id in sandbox_ids:
        _record(
            sandbox_id=sandbox_id,
            event=_event(UsageKind.LOST, now=now, reason=reason),
            seq=None,
            execution_id="",
        )


def find_usage(*, sandbox_id: str, is_proven: bool, now: datetime) -> None:
    """Go on metering a lost sandbox that lived on. `is_proven`: the node's own clock shows it ran
    all along, so the gap is billed as well; else metering starts again now.
    """
    event = _event(UsageKind.FOUND, now=now, reason="found")
    _record(sandbox_id=sandbox_id, event=event, seq=None, execution_id="", is_gap_billed=is_proven)


def running_count(team_id: int) -> int:
    return UsageInterval.objects.filter(
        account_id=team_id, ended_ms__isnull=True, state=MeterState.RUNNING
    ).count()


def _event(
    kind: UsageKind,
    *,
    now: datetime,
    reason: str,
    at: datetime | None = None,
    ran_for: timedelta | None = None,
    size: Size | None = None,
) -> Event:
    elapsed_ms = None if ran_for is None else ran_for // timedelta(milliseconds=1)
    return Event(
        seq=0,
        kind=kind,
        at_ms=to_ms(at or now),
        received_ms=to_ms(now),
        elapsed_ms=elapsed_ms,
        size=size,
        reason=reason[:40],
    )


def _record(
    *,
    sandbox_id: str,
    event: Event,
    seq: int | None,
    execution_id: str,
    facts: dict[str, Any] | None = None,
    is_gap_billed: bool = False,
) -> None:
    facts = facts or {}
    with transaction.atomic(savepoint=False):
        last = _last_interval(sandbox_id)
        if last is None and event.kind is not UsageKind.START and seq is None:
            return  # never metered: it failed to start
        known = {name: getattr(last, name) for name in _FACTS} if last else {}
        facts = {**known, **facts}
        if execution_id:
            facts["execution_id"] = execution_id
        facts.setdefault("sandbox_id", sandbox_id)
        event = _fixed_instant(event, last, is_gap_billed)
        facts.setdefault("execution_id", sandbox_id)
        if seq is not None:
            _in_order(event, seq, last, facts)
            return
        # What the control plane concludes by itself is numbered apart from what a node reports.
        own = event.kind in (UsageKind.LOST, UsageKind.FOUND)
        numbered = f"{facts['execution_id']}~cp" if own else facts["execution_id"]
        expected = _next_seq(numbered, is_fresh=last is None)
        _store_and_apply(event, expected, last, facts, numbered=numbered)


def _in_order(event: Event, seq: int, last: UsageInterval | None, facts: dict[str, Any]) -> None:
    """Apply a numbered event if it is the next one, then whatever waited for it; else keep it."""
    execution_id = facts["execution_id"]
    expected = _next_seq(execution_id, is_fresh=False)
    if seq > expected:
        _hold(event, seq, facts)
    if seq != expected:
        return
    if not _store_and_apply(event, seq, last, facts, is_relayed=True):
        return
    while True:
        held = UsageEvent.objects.filter(
            execution_id=execution_id, seq=expected + 1, is_applied=False
        ).first()
        if held is None:
            return
        expected += 1
        _apply(_event_of(held), held, _last_interval(facts["sandbox_id"]), _facts_of(held, facts))
        UsageEvent.objects.filter(pk=held.pk).update(is_applied=True)


def _store_and_apply(
    event: Event,
    seq: int,
    last: UsageInterval | None,
    facts: dict[str, Any],
    *,
    numbered: str = "",
    is_relayed: bool = False,
) -> bool:
    """False when another transaction stored this number first; it also applied it."""
    row = _row(event, seq, facts, is_applied=True)
    row.execution_id = numbered or row.execution_id
    if event.kind is UsageKind.START:
        ensure_account(team_id=facts["account_id"], now=from_ms(event.received_ms))
    if event.kind is UsageKind.START and is_relayed:  # the same report may come twice at once
        try:
            with transaction.atomic():
                row.save(force_insert=True)
        except IntegrityError:
            if UsageEvent.objects.filter(execution_id=row.execution_id, seq=seq).exists():
                return False
            raise
    else:
        row.save(force_insert=True)
    _apply(event, row, last, facts)
    return True


def _hold(event: Event, seq: int, facts: dict[str, Any]) -> None:
    UsageEvent.objects.bulk_create(
        [_row(event, seq, facts, is_applied=False)], ignore_conflicts=True
    )


def _apply(
    event: Event, row: UsageEvent, last: UsageInterval | None, facts: dict[str, Any]
) -> None:
    change = change_for(_meter(last), event)
    if change.close_ms is not None:
        assert last is not None
        UsageInterval.objects.filter(pk=last.pk).update(
            ended_ms=change.close_ms, close_event=row, close_reason=event.reason
        )
    if change.opens is not None:
        _open_interval(change.opens, row, event, facts)
    _mark_dirty(facts["account_id"], change, event.received_ms)


def _open_interval(opens: Interval, row: UsageEvent, event: Event, facts: dict[str, Any]) -> None:
    billed = opens.size.billed_in(opens.state)
    UsageInterval.objects.create(
        **{name: facts[name] for name in _FACTS},
        state=opens.state,
        started_ms=opens.started_ms,
        run_started_ms=opens.run_started_ms,
        confirmed_until_ms=max(opens.started_ms, event.received_ms),
        milli_vcpu=billed.milli_vcpu,
        memory_mib=billed.memory_mib,
        disk_mib=billed.disk_mib,
        size_milli_vcpu=opens.size.milli_vcpu,
        size_memory_mib=opens.size.memory_mib,
        open_event=row,
    )


def _mark_dirty(account_id: int, change: Change, received_ms: int) -> None:
    """Have hours computed again that were rolled up before this fact came."""
    touched = [change.close_ms] if change.close_ms is not None else []
    touched += [change.opens.started_ms] if change.opens else []
    if not touched or min(touched) >= hour_of(received_ms):
        return
    rolled = BillingAccount.objects.values_list("rolled_until_ms", flat=True).get(pk=account_id)
    hours: Sequence[int] = range(hour_of(min(touched)), rolled, HOUR_MS)
    DirtyHour.objects.bulk_create(
        [DirtyHour(account_id=account_id, hour_ms=hour) for hour in hours], ignore_conflicts=True
    )


def _last_interval(sandbox_id: str) -> UsageInterval | None:
    rows = UsageInterval.objects.filter(sandbox_id=sandbox_id).order_by("-started_ms", "-pk")
    if connection.features.has_select_for_update:
        rows = rows.select_for_update()
    return rows.first()


def _next_seq(execution_id: str, *, is_fresh: bool) -> int:
    if is_fresh:
        return 1
    applied = UsageEvent.objects.filter(execution_id=execution_id, is_applied=True)
    return int(applied.aggregate(top=Max("seq"))["top"] or 0) + 1


def _meter(last: UsageInterval | None) -> Meter:
    if last is None:
        return Meter()
    size = Size(
        milli_vcpu=last.size_milli_vcpu, memory_mib=last.size_memory_mib, disk_mib=last.disk_mib
    )
    if last.ended_ms is not None:
        return Meter(
            last_end_ms=last.ended_ms, last_size=size, last_run_started_ms=last.run_started_ms
        )
    return Meter(
        open=Interval(
            state=MeterState(last.state),
            started_ms=last.started_ms,
            ended_ms=None,
            run_started_ms=last.run_started_ms,
            size=size,
        )
    )


def _fixed_instant(event: Event, last: UsageInterval | None, is_gap_billed: bool) -> Event:
    """LOST and FOUND take their instant from what we knew; it is written into the event, so a
    replay agrees.
    """
    at_ms = event.at_ms
    if event.kind is UsageKind.LOST and last is not None:
        at_ms = last.confirmed_until_ms
    if event.kind is UsageKind.FOUND and is_gap_billed and last is not None and last.ended_ms:
        at_ms = last.ended_ms
    return replace(event, at_ms=at_ms)


def _row(event: Event, seq: int, facts: dict[str, Any], *, is_applied: bool) -> UsageEvent:
    size = event.size
    return UsageEvent(
        **{name: facts[name] for name in _FACTS if name in facts},
        seq=seq,
        kind=event.kind,
        at_ms=event.at_ms,
        received_ms=event.received_ms,
        elapsed_ms=event.elapsed_ms,
        milli_vcpu=size.milli_vcpu if size else None,
        memory_mib=size.memory_mib if size else None,
        disk_mib=size.disk_mib if size else None,
        reason=event.reason,
        is_applied=is_applied,
    )


def _event_of(row: UsageEvent) -> Event:
    size = None
    if row.milli_vcpu is not None and row.memory_mib is not None:
        size = Size(
            milli_vcpu=row.milli_vcpu, memory_mib=row.memory_mib, disk_mib=row.disk_mib or 0
        )
    return Event(
        seq=row.seq,
        kind=UsageKind(row.kind),
        at_ms=row.at_ms,
        received_ms=row.received_ms,
        elapsed_ms=row.elapsed_ms,
        size=size,
        reason=row.reason,
    )


def _facts_of(row: UsageEvent, facts: dict[str, Any]) -> dict[str, Any]:
    own = {name: getattr(row, name) for name in _FACTS}
    return {**facts, **{name: value for name, value in own.items() if value}}
