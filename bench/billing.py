"""Billing: what metering adds to a create, rating a million intervals, closing a month for a
thousand teams.

    .venv/bin/python bench/billing.py            on SQLite, in a directory of its own
    DATABASE_URL=postgresql://… .venv/bin/python bench/billing.py    in a database to be filled

Targets on 2 cores: metering adds at most 2 ms (p50) to a create.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
STATE = tempfile.TemporaryDirectory(prefix="sandlot-bench-")
os.environ["SANDLOT_STATE_DIR"] = STATE.name
os.environ["SANDLOT_LOG_LEVEL"] = "WARNING"
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

import django  # noqa: E402

django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import transaction  # noqa: E402

from accounts.models import Team  # noqa: E402
from billing.models import BillingAccount, Invoice, UsageEvent, UsageInterval  # noqa: E402
from billing.periods import to_ms  # noqa: E402
from billing.pricing import amount  # noqa: E402
from billing.services.accounts import account_of  # noqa: E402
from billing.services.invoices import close_due_periods  # noqa: E402
from billing.services.rollup import Billable, Key, rate, rate_table, roll_due  # noqa: E402
from billing.services.spend import may_start  # noqa: E402
from billing.services.usage import close_usage, open_usage  # noqa: E402

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR_MS = 3_600_000


def show(name: str, seconds: list[float]) -> None:
    seconds = sorted(seconds)
    p50, p95 = statistics.median(seconds), seconds[int(len(seconds) * 0.95)]
    print(f"{name:46} p50 {p50 * 1000:7.2f} ms   p95 {p95 * 1000:7.2f} ms")


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def bench_create(rounds: int) -> None:
    """The transaction of a create, with and without billing in it; the difference is what
    metering adds.
    """
    team = Team.objects.create(name="bench", slug=f"bench-{time.time_ns()}")
    account_of(team_id=team.pk, now=START)

    def bare(number: int) -> None:
        with transaction.atomic():
            Team.objects.filter(pk=team.pk).update(name=f"bench {number}")

    def asked(number: int) -> None:
        with transaction.atomic():
            Team.objects.filter(pk=team.pk).update(name=f"bench {number}")
            may_start(team.pk, milli_vcpu=2_000, memory_mib=512, concurrent=1, now=START)

    def metered(number: int) -> None:
        with transaction.atomic():
            Team.objects.filter(pk=team.pk).update(name=f"bench {number}")
            open_usage(
                team_id=team.pk,
                sandbox_id=f"b{team.pk}x{number}",
                milli_vcpu=2_000,
                memory_mib=512,
                now=START,
            )

    def ended(number: int) -> None:
        with transaction.atomic():
            Team.objects.filter(pk=team.pk).update(name=f"bench {number}")
            close_usage(
                sandbox_id=f"b{team.pk}x{number}", reason="killed", now=START + timedelta(hours=1)
            )

    times: dict[str, list[float]] = {}
    for number in range(rounds):
        for act in (bare, asked, metered, ended):  # interleaved: the machine's mood hits all alike
            times.setdefault(act.__name__, []).append(timed(lambda: act(number)))  # noqa: B023
    show("a transaction with one update", times["bare"])
    show("… that also asks may_start", times["asked"])
    show("… that also opens the meter", times["metered"])
    show("… that also closes the meter", times["ended"])
    base = statistics.median(times["bare"])
    added = statistics.median(times["asked"]) + statistics.median(times["metered"]) - 2 * base
    print(f"{'billing adds to a create (p50)':46}     {added * 1000:7.2f} ms")


def bench_rating(count: int) -> None:
    """Intervals of ten minutes, of a hundred sandboxes, into exact money."""
    team = Team.objects.create(name="bench", slug=f"bench-{time.time_ns()}")
    table = rate_table(account_of(team_id=team.pk, now=START))
    base = to_ms(START)
    intervals = (
        Billable(
            f"i{n % 100}",
            "running",
            base + n * 7_919,
            base + n * 7_919 + 600_000,
            0,
            2_000,
            512,
            0,
        )
        for n in range(count)
    )
    began = time.perf_counter()
    quantities: dict[Key, int] = rate(intervals, table, base, base + 30_000 * HOUR_MS)
    total = sum(amount(key[2], q, table.unit_prices[key[3]]) for key, q in quantities.items())
    seconds = time.perf_counter() - began
    pace = f"{seconds:.1f} s, {count / seconds:,.0f} a second"
    print(f"rating {count:,} intervals: {pace} (${total:,.2f})")


def bench_close(teams: int, sandboxes: int) -> None:
    """A month of some sandboxes per team: rolled up into hours, then closed into invoices."""
    stamp = time.time_ns()
    rows = Team.objects.bulk_create(
        [Team(name="bench", slug=f"close-{stamp}-{n}") for n in range(teams)]
    )
    for team in rows:
        account_of(team_id=team.pk, now=START)
    base = to_ms(START)
    for team in rows:
        events, intervals = [], []
        for number in range(sandboxes):
            name = f"c{team.pk}x{number}"
            started = base + number * (700 // sandboxes) * HOUR_MS
            shared = {"account_id": team.pk, "sandbox_id": name, "execution_id": name}
            event = UsageEvent(
                **shared, seq=1, kind="start", at_ms=started, received_ms=started, is_applied=True
            )
            events.append(event)
            intervals.append(
                UsageInterval(
                    **shared,
                    state="running",
                    started_ms=started,
                    run_started_ms=started,
                    ended_ms=started + 2 * HOUR_MS + 123_456,
                    confirmed_until_ms=started,
                    milli_vcpu=2_000,
                    memory_mib=512,
                    disk_mib=0,
                    size_milli_vcpu=2_000,
                    size_memory_mib=512,
                    open_event=event,
                )
            )
        UsageEvent.objects.bulk_create(events)
        UsageInterval.objects.bulk_create(intervals)
    end = START + timedelta(days=32)
    rolled = timed(lambda: roll_due(now=end))
    closed = timed(lambda: close_due_periods(now=end))
    issued = Invoice.objects.filter(
        account__in=BillingAccount.objects.filter(team__in=rows)
    ).count()
    print(f"rolling a month up for {teams:,} teams x {sandboxes} sandboxes: {rolled:.1f} s")
    print(f"closing that month: {closed:.1f} s, {issued:,} invoices")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--creates", type=int, default=400)
    parser.add_argument("--intervals", type=int, default=1_000_000)
    parser.add_argument("--teams", type=int, default=1_000)
    parser.add_argument("--sandboxes", type=int, default=20)
    given = parser.parse_args()
    call_command("migrate", interactive=False, verbosity=0)
    bench_create(given.creates)
    bench_rating(given.intervals)
    bench_close(given.teams, given.sandboxes)


if __name__ == "__main__":
    main()
