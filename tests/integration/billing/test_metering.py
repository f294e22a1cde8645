from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction

from billing.models import UsageEvent, UsageInterval
from billing.periods import to_ms
from billing.services.usage import (
    close_usage,
    confirm_usage,
    find_usage,
    lose_usage,
    open_usage,
    pause_usage,
    resize_usage,
    resume_usage,
)

from .conftest import START, run, start

MINUTE = timedelta(minutes=1)


def intervals(sandbox_id="isandbox"):
    """(state, started, ended) in seconds since START."""
    base = to_ms(START)
    rows = UsageInterval.objects.filter(sandbox_id=sandbox_id).order_by("started_ms", "pk")
    return [
        (
            row.state,
            (row.started_ms - base) / 1000,
            None if row.ended_ms is None else (row.ended_ms - base) / 1000,
        )
        for row in rows
    ]


def test_a_life_with_a_pause_leaves_three_intervals_that_meet(team):
    start(team)
    pause_usage(sandbox_id="isandbox", now=START + MINUTE)
    resume_usage(sandbox_id="isandbox", now=START + 3 * MINUTE)
    close_usage(sandbox_id="isandbox", reason="killed", now=START + 5 * MINUTE)
    assert intervals() == [("running", 0, 60), ("paused", 60, 180), ("running", 180, 300)]
    paused = UsageInterval.objects.get(state="paused")
    assert (paused.milli_vcpu, paused.memory_mib, paused.disk_mib) == (0, 0, 10_240)


def test_repeated_calls_change_nothing(team):
    for _ in range(2):
        open_usage(
            team_id=team.pk, sandbox_id="isandbox", milli_vcpu=1, memory_mib=1, now=START, seq=1
        )
    for minutes in (1, 2):
        pause_usage(sandbox_id="isandbox", now=START + minutes * MINUTE)
    for minutes in (3, 4):
        close_usage(sandbox_id="isandbox", reason="killed", now=START + minutes * MINUTE)
    assert intervals() == [("running", 0, 60), ("paused", 60, 180)]


def test_numbered_reports_may_come_in_any_order(team):
    numbered = {"sandbox_id": "isandbox", "execution_id": "exec-1"}
    close_usage(**numbered, seq=3, reason="exited", at=START + 2 * MINUTE, now=START + 9 * MINUTE)
    pause_usage(**numbered, seq=2, at=START + MINUTE, now=START + 9 * MINUTE)
    assert intervals() == []
    open_usage(
        team_id=team.pk,
        milli_vcpu=1000,
        memory_mib=512,
        seq=1,
        started_at=START,
        now=START + 9 * MINUTE,
        **numbered,
    )
    assert intervals() == [("running", 0, 60), ("paused", 60, 120)]
    assert not UsageEvent.objects.filter(is_applied=False).exists()


def test_a_failed_start_costs_nothing(team):
    close_usage(sandbox_id="inever", reason="start_failed", now=START)
    assert not UsageEvent.objects.exists()


def test_an_end_the_node_saw_lasts_as_long_as_the_node_measured(team):
    start(team)
    hour_ahead = START + timedelta(hours=1, minutes=2)  # the node's clock is wrong
    close_usage(
        sandbox_id="isandbox",
        reason="exited",
        at=hour_ahead,
        ran_for=timedelta(seconds=90),
        now=START + 2 * MINUTE,
    )
    assert intervals() == [("running", 0, 90)]


def test_nothing_is_billed_past_the_moment_we_heard_of_it_or_before_the_start(team):
    start(team)
    start(team, "iother")
    close_usage(
        sandbox_id="isandbox", reason="x", at=START + timedelta(hours=5), now=START + MINUTE
    )
    close_usage(sandbox_id="iother", reason="x", at=START - MINUTE, now=START + MINUTE)
    assert intervals() == [("running", 0, 60)]
    assert intervals("iother") == [("running", 0, 0)]


def test_a_lost_node_stops_the_bill_at_the_last_proof_of_life(team):
    start(team)
    confirm_usage(sandbox_ids=["isandbox"], now=START + MINUTE)
    lose_usage(sandbox_ids=["isandbox"], now=START + 3 * MINUTE)
    assert intervals() == [("running", 0, 60)]
    close_usage(sandbox_id="isandbox", reason="killed", now=START + 5 * MINUTE)
    assert intervals() == [("running", 0, 60)]


@pytest.mark.parametrize(("is_proven", "gap_ends"), [(True, 60), (False, 240)])
def test_a_sandbox_found_again_bills_the_gap_only_with_proof(team, is_proven, gap_ends):
    start(team)
    confirm_usage(sandbox_ids=["isandbox"], now=START + MINUTE)
    lose_usage(sandbox_ids=["isandbox"], now=START + 3 * MINUTE)
    find_usage(sandbox_id="isandbox", is_proven=is_proven, now=START + 4 * MINUTE)
    close_usage(sandbox_id="isandbox", reason="killed", now=START + 5 * MINUTE)
    assert intervals() == [("running", 0, 60), ("running", gap_ends, 300)]


def test_a_resize_changes_size_at_one_instant(team):
    start(team)
    resize_usage(
        sandbox_id="isandbox", milli_vcpu=4000, memory_mib=1024, disk_mib=1, now=START + MINUTE
    )
    assert intervals() == [("running", 0, 60), ("running", 60, None)]
    assert UsageInterval.objects.get(ended_ms=None).milli_vcpu == 4000


def test_state_and_meter_roll_back_together(team):
    with transaction.atomic():
        start(team)
        transaction.set_rollback(True)  # the sandbox's own change failed
    assert not UsageInterval.objects.exists()
    assert not UsageEvent.objects.exists()


def test_the_database_refuses_to_edit_what_is_closed(team):
    run(team)
    for change in ({"ended_ms": 5}, {"milli_vcpu": 1}, {"account_id": team.pk + 1}):
        with pytest.raises(IntegrityError, match="not edited"), transaction.atomic():
            UsageInterval.objects.update(**change)
    with pytest.raises(IntegrityError, match="not edited"), transaction.atomic():
        UsageEvent.objects.update(at_ms=1)


def test_the_database_refuses_two_open_intervals_of_one_sandbox(team):
    start(team)
    row = UsageInterval.objects.get()
    row.pk = None
    with pytest.raises(IntegrityError), transaction.atomic():
        row.save(force_insert=True)


def test_the_database_refuses_overlapping_intervals(team):
    if connection.vendor != "postgresql":
        pytest.skip("exclusion constraints are PostgreSQL's")
    run(team)
    row = UsageInterval.objects.get()
    row.pk, row.open_event = None, UsageEvent.objects.get(kind="end")
    row.started_ms += 1
    with pytest.raises(IntegrityError, match="overlap"), transaction.atomic():
        row.save(force_insert=True)


def test_confirming_never_goes_back(team):
    start(team)
    confirm_usage(sandbox_ids=["isandbox"], now=START + 2 * MINUTE)
    confirm_usage(sandbox_ids=["isandbox"], now=START + MINUTE)
    assert UsageInterval.objects.get().confirmed_until_ms == to_ms(START + 2 * MINUTE)
