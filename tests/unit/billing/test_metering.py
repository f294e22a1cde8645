from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.metering import Event, MeterState, Size, UsageKind, fold

SMALL = Size(milli_vcpu=2000, memory_mib=512, disk_mib=10240)
BIG = Size(milli_vcpu=4000, memory_mib=2048, disk_mib=10240)


def event(seq, kind, at, *, size=None, elapsed=None, received=None):
    return Event(
        seq=seq,
        kind=kind,
        at_ms=at,
        received_ms=at if received is None else received,
        size=size,
        elapsed_ms=elapsed,
    )


@st.composite
def lives(draw):
    """Events of one execution: a start, then anything, at any offset of the node's clock."""
    at, events = 1_000, [event(1, UsageKind.START, 1_000, size=SMALL)]
    kinds = st.sampled_from([k for k in UsageKind if k is not UsageKind.LOST])
    for seq in range(2, draw(st.integers(2, 9))):
        at += draw(st.integers(0, 10_000))
        events.append(
            event(
                seq,
                draw(kinds),
                at + draw(st.integers(-3_600_000, 3_600_000)),  # a clock that jumped
                size=draw(st.sampled_from([SMALL, BIG])),
                elapsed=draw(st.none() | st.integers(-5, 100_000)),
                received=at,
            )
        )
    return events


@given(lives(), st.randoms(), st.integers(0, 5))
def test_order_and_repeats_change_nothing(events, random, repeats):
    shuffled = events + [random.choice(events) for _ in range(repeats)]
    random.shuffle(shuffled)
    assert fold(shuffled) == fold(events)


@given(lives())
def test_intervals_never_overlap_run_backwards_or_reach_past_what_was_heard(events):
    intervals = fold(events)
    last_heard = max(e.received_ms for e in events)
    for interval in intervals[:-1]:
        assert interval.ended_ms is not None
    for interval in intervals:
        assert interval.started_ms <= (interval.ended_ms or last_heard) <= last_heard
    for one, other in pairwise(intervals):
        assert one.ended_ms <= other.started_ms


@given(lives())
def test_a_paused_sandbox_holds_disk_only(events):
    for interval in fold(events):
        billed = interval.size.billed_in(interval.state)
        if interval.state is MeterState.PAUSED:
            assert (billed.milli_vcpu, billed.memory_mib) == (0, 0)
        assert billed.disk_mib == interval.size.disk_mib


def test_events_after_a_gap_wait_for_it():
    events = [event(1, UsageKind.START, 0, size=SMALL), event(3, UsageKind.END, 90)]
    assert fold(events)[0].ended_ms is None
    assert fold([*events, event(2, UsageKind.PAUSE, 50)])[-1].ended_ms == 90


@given(st.integers(-3_600_000, 3_600_000))
def test_the_nodes_wall_clock_never_changes_a_duration(jump):
    start = event(1, UsageKind.START, 10_000, size=SMALL)
    end = event(2, UsageKind.END, 70_000 + jump, elapsed=60_000, received=71_000)
    (interval,) = fold([start, end])
    assert interval.ended_ms - interval.started_ms == 60_000


def test_elapsed_time_counts_from_the_start_or_resume_even_after_a_resize():
    events = [
        event(1, UsageKind.START, 0, size=SMALL),
        event(2, UsageKind.RESIZE, 400, size=BIG),
        event(3, UsageKind.END, 5, elapsed=1_000, received=1_200),
    ]
    assert [(i.started_ms, i.ended_ms) for i in fold(events)] == [(0, 400), (400, 1_000)]


def test_a_resize_meets_at_one_instant():
    events = [
        event(1, UsageKind.START, 0, size=SMALL),
        event(2, UsageKind.RESIZE, 400, size=BIG),
        event(3, UsageKind.RESIZE, 500, size=BIG),
    ]
    first, second = fold(events)
    assert first.ended_ms == second.started_ms == 400
    assert second.size == BIG


def test_an_interval_cannot_open_without_a_size():
    with pytest.raises(ValueError, match="no size"):
        fold([replace(event(1, UsageKind.START, 0), size=None)])
