"""Billing under every kind of trouble: whatever happens, the books keep their laws and equal an
independent model.
"""

from __future__ import annotations

import itertools
import os
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from django.db import transaction
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from billing.invariants import broken_laws
from billing.metering import Event, Size, UsageKind, fold
from billing.models import BillingAccount, Invoice, InvoiceLine, UsageInterval
from billing.models.documents import GrantKind
from billing.periods import to_ms
from billing.pricing import Resource
from billing.services.credits import expire_credits, grant_credit, void_grant
from billing.services.dunning import run_dunning
from billing.services.invoices import close_due_periods, unbilled_total
from billing.services.payments import (
    credit_invoice,
    mark_paid,
    void_invoice,
)
from billing.services.plans import change_plan, change_price
from billing.services.reports import usage_over_time
from billing.services.rollup import roll_due
from billing.services.spend import set_spend_policy, sweep_spend
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
from config.errors import AppError

from .conftest import make_team
from .model import TrueSandbox, Truth

EXAMPLES = int(os.environ.get("BILLING_EXAMPLES", "12"))
START = datetime(2026, 1, 28, 22, 17, 3, 123456, tzinfo=UTC)
SIZES = [(1, 128), (2, 512), (4, 2048), (8, 8192)]
HEALTH = list(HealthCheck)
# Shrinking replays hundreds of lives in a database; ask for it when there is something to shrink.
PHASES = [Phase.explicit, Phase.generate] + (
    [Phase.shrink] if os.environ.get("BILLING_SHRINK") else []
)
_serial = itertools.count(1)


class Books(RuleBasedStateMachine):
    """Two teams, any number of sandboxes, one clock."""

    @initialize()
    def begin(self):
        self.savepoint = transaction.atomic()
        self.savepoint.__enter__()
        self.now = START
        self.truth = Truth()
        self.teams = [make_team(f"law{next(_serial)}", now=START) for _ in range(2)]
        change_plan(team_id=self.teams[0].pk, code="hobby", now=START, is_operator=True)
        change_plan(team_id=self.teams[1].pk, code="pro", now=START, is_operator=True)
        self.issued = {}

    def teardown(self):
        if not hasattr(self, "savepoint"):
            return
        try:
            self.finish()
        finally:
            transaction.set_rollback(True)
            self.savepoint.__exit__(None, None, None)

    # --- Tools --------------------------------------------------------------------------------

    @property
    def ms(self):
        return to_ms(self.now)

    def twice(self, crash, act):
        """Do it; with `crash`, first lose the transaction at its commit, like a dying process."""
        if crash:
            with transaction.atomic():
                act()
                transaction.set_rollback(True)
        with transaction.atomic():
            act()
        if crash:
            with transaction.atomic():
                act()  # and the caller, unsure, repeats it

    def pick(self, data, *states):
        ids = [k for k, s in self.truth.sandboxes.items() if s.state in states]
        return data.draw(st.sampled_from(ids)) if ids else None

    def some(self, *states):
        return any(s.state in states for s in self.truth.sandboxes.values())

    # --- Life ---------------------------------------------------------------------------------

    @rule(team=st.integers(0, 1), size=st.sampled_from(SIZES), crash=st.booleans())
    def create(self, team, size, crash):
        sandbox_id = f"i{next(_serial)}"
        row = TrueSandbox(self.teams[team].pk, *size)
        self.truth.sandboxes[sandbox_id] = row
        self.twice(
            crash,
            lambda: open_usage(
                team_id=row.team,
                sandbox_id=sandbox_id,
                milli_vcpu=size[0] * 1000,
                memory_mib=size[1],
                execution_id=sandbox_id,
                seq=1,
                now=self.now,
            ),
        )
        row.run(self.ms)

    @precondition(lambda self: self.some("running"))
    @rule(data=st.data(), crash=st.booleans())
    def pause(self, data, crash):
        sandbox_id = self.pick(data, "running")
        self.twice(crash, lambda: pause_usage(sandbox_id=sandbox_id, now=self.now))
        self.truth.sandboxes[sandbox_id].stop(self.ms, "paused")

    @precondition(lambda self: self.some("paused"))
    @rule(data=st.data(), crash=st.booleans())
    def resume(self, data, crash):
        sandbox_id = self.pick(data, "paused")
        self.twice(crash, lambda: resume_usage(sandbox_id=sandbox_id, now=self.now))
        self.truth.sandboxes[sandbox_id].run(self.ms)

    @precondition(lambda self: self.some("running"))
    @rule(data=st.data(), size=st.sampled_from(SIZES), crash=st.booleans())
    def resize(self, data, size, crash):
        sandbox_id = self.pick(data, "running")
        row = self.truth.sandboxes[sandbox_id]
        self.twice(
            crash,
            lambda: resize_usage(
                sandbox_id=sandbox_id,
                milli_vcpu=size[0] * 1000,
                memory_mib=size[1],
                disk_mib=0,
                now=self.now,
            ),
        )
        row.stop(self.ms, "running")
        row.vcpu, row.memory = size
        row.run(self.ms)

    @precondition(lambda self: self.some("running", "paused"))
    @rule(data=st.data(), crash=st.booleans(), jump=st.integers(-3_600, 3_600))
    def end(self, data, crash, jump):
        """A kill, or an end the node saw, told with a wall clock that may be an hour off."""
        sandbox_id = self.pick(data, "running", "paused")
        row = self.truth.sandboxes[sandbox_id]
        ran_for, at = None, None
        if row.state == "running" and jump:
            interval = UsageInterval.objects.get(sandbox_id=sandbox_id, ended_ms=None)
            ran_for = timedelta(milliseconds=self.ms - interval.run_started_ms)
            at = self.now + timedelta(seconds=jump)
        self.twice(
            crash,
            lambda: close_usage(
                sandbox_id=sandbox_id, reason="killed", now=self.now, at=at, ran_for=ran_for
            ),
        )
        row.stop(self.ms, "ended")

    @precondition(lambda self: self.some("running"))
    @rule(data=st.data(), crash=st.booleans())
    def lose(self, data, crash):
        sandbox_id = self.pick(data, "running")
        row = self.truth.sandboxes[sandbox_id]
        self.twice(crash, lambda: lose_usage(sandbox_ids=[sandbox_id], now=self.now))
        row.stop(row.proof, "lost")

    @precondition(lambda self: self.some("lost"))
    @rule(data=st.data(), is_proven=st.booleans(), crash=st.booleans())
    def find(self, data, is_proven, crash):
        sandbox_id = self.pick(data, "lost")
        row = self.truth.sandboxes[sandbox_id]
        self.twice(
            crash,
            lambda: find_usage(sandbox_id=sandbox_id, is_proven=is_proven, now=self.now),
        )
        row.run(row.last_end() if is_proven else self.ms)
        row.proof = self.ms

    # --- Time ---------------------------------------------------------------------------------

    @rule(
        seconds=st.sampled_from([0.0, 0.001, 7.5, 900.0, 3_600.0, 86_400.0, 20 * 86_400.0]),
        is_heard=st.booleans(),
    )
    def pass_time(self, seconds, is_heard):
        self.now += timedelta(seconds=seconds)
        if is_heard:
            alive = [k for k, s in self.truth.sandboxes.items() if s.state == "running"]
            confirm_usage(sandbox_ids=alive, now=self.now)
            for sandbox_id in alive:
                self.truth.sandboxes[sandbox_id].proof = self.ms

    @rule(crash=st.booleans())
    def tick(self, crash):
        """What the scheduler does, at an odd moment, perhaps twice."""
        self.twice(crash, lambda: (roll_due(now=self.now), sweep_spend(now=self.now)))

    @rule(crash=st.booleans())
    def close(self, crash):
        self.twice(
            crash,
            lambda: (
                expire_credits(now=self.now),
                close_due_periods(now=self.now),
                run_dunning(now=self.now),
            ),
        )

    # --- Money --------------------------------------------------------------------------------

    @rule(factor=st.sampled_from([1, 2, 5]))
    def reprice(self, factor):
        try:
            change_price(
                resource=Resource.VCPU,
                unit_price=Decimal("0.000014") * factor,
                from_at=self.now + timedelta(milliseconds=1),
                now=self.now,
            )
        except AppError:
            return
        self.truth.factors.append((self.ms + 1, Fraction(factor)))

    @rule(team=st.integers(0, 1), amount=st.integers(1, 5_000), days=st.none() | st.integers(1, 40))
    def grant(self, team, amount, days):
        grant_credit(
            account=self.account(team),
            amount_minor=amount,
            kind=GrantKind.PROMO,
            source_key=f"promo{next(_serial)}",
            expires_at=self.now + timedelta(days=days) if days else None,
            now=self.now,
        )

    @rule(team=st.integers(0, 1))
    def withdraw_grant(self, team):
        if grant := self.account(team).grants.order_by("pk").first():
            void_grant(grant=grant, now=self.now)

    @rule(team=st.integers(0, 1), code=st.sampled_from(["hobby", "pro", "enterprise"]))
    def choose(self, team, code):
        try:
            change_plan(team_id=self.teams[team].pk, code=code, now=self.now)
        except AppError:
            return

    @rule(team=st.integers(0, 1), limit=st.none() | st.integers(0, 500))
    def cap(self, team, limit):
        set_spend_policy(
            team_id=self.teams[team].pk,
            hard_limit_minor=limit,
            alert_minor=None,
            action="pause_running",
            now=self.now,
        )

    @rule(what=st.sampled_from(["pay", "void", "credit"]), crash=st.booleans())
    def settle(self, what, crash):
        invoice = Invoice.objects.filter(status="open").order_by("pk").first()
        if invoice is None:
            return
        key = f"k{next(_serial)}"

        def act():
            fresh = Invoice.objects.get(pk=invoice.pk)
            try:
                if what == "pay":
                    mark_paid(invoice=fresh, actor="law", now=self.now)
                elif what == "void":
                    void_invoice(invoice=fresh, reason="", actor="law", now=self.now)
                else:
                    half = max(fresh.total_minor // 2, 1)
                    credit_invoice(
                        invoice=fresh, amount_minor=half, reason="", key=key, now=self.now
                    )
            except AppError:
                return

        self.twice(crash, act)

    # --- Laws ---------------------------------------------------------------------------------

    def account(self, team):
        return BillingAccount.objects.get(pk=self.teams[team].pk)

    @invariant()
    def issued_invoices_stay_as_they_are(self):
        if not hasattr(self, "issued"):
            return
        columns = ("pk", "number", "subtotal_minor", "credits_minor", "total_minor", "snapshot")
        for pk, *rest in Invoice.objects.values_list(*columns):
            assert self.issued.setdefault(pk, rest) == rest

    @invariant()
    def running_time_is_the_models(self):
        for sandbox_id in getattr(self, "truth", Truth()).sandboxes:
            rows = UsageInterval.objects.filter(sandbox_id=sandbox_id, state="running")
            spans = rows.values_list("started_ms", "ended_ms")
            total = sum((self.ms if end is None else end) - start for start, end in spans)
            assert total == self.truth.running_ms(sandbox_id, self.ms)

    def finish(self):
        """End everything, let all be rolled up and billed, and compare every team to the model."""
        for sandbox_id, row in self.truth.sandboxes.items():
            if row.state != "ended":
                close_usage(sandbox_id=sandbox_id, reason="killed", now=self.now)
                row.stop(self.ms, "ended")
        later = self.now + timedelta(hours=3)
        roll_due(now=later)
        self.compare(later)
        for month in range(1, 3):
            close_due_periods(now=later + timedelta(days=32 * month))
        self.compare(later + timedelta(days=70))

    def compare(self, now):
        assert broken_laws(now=now) == []
        for team in range(2):
            account = self.account(team)
            lines = InvoiceLine.objects.filter(
                invoice__account=account, kind__in=["usage", "adjustment"]
            )
            billed = sum((line.exact_amount for line in lines), Decimal(0))
            total = Fraction(billed) + Fraction(unbilled_total(account))
            assert total == self.truth.cost(account.pk, self.ms)
            span = {"start": START - timedelta(hours=1), "end": self.now + timedelta(hours=1)}
            if span["end"] - span["start"] < timedelta(days=390):
                for zone in ("UTC", "Asia/Kathmandu"):
                    buckets = usage_over_time(account, now=now, zone=zone, **span)
                    shown = sum((b.used.cost for b in buckets), Decimal(0))
                    assert Fraction(shown) == self.truth.cost(account.pk, self.ms)


def test_the_books_keep_their_laws_under_any_trouble(plans):
    run_state_machine_as_test(
        Books,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            phases=PHASES,
            suppress_health_check=HEALTH,
        ),
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_books_keep_their_laws_for_long(plans):
    run_state_machine_as_test(
        Books,
        settings=settings(
            max_examples=EXAMPLES * 20,
            stateful_step_count=60,
            deadline=None,
            phases=PHASES,
            suppress_health_check=HEALTH,
        ),
    )


@settings(max_examples=25, deadline=None, suppress_health_check=HEALTH)
@given(data=st.data())
def test_numbered_reports_in_any_order_give_the_intervals_of_the_fold(plans, data):
    with transaction.atomic():
        team = make_team("order")
        now, base = START, to_ms(START)
        kinds = ["pause", "resume", "end"]
        told = [("start", 0)]
        at = 0
        for _ in range(data.draw(st.integers(0, 6))):
            at += data.draw(st.integers(0, 5_000))
            told.append((data.draw(st.sampled_from(kinds)), at))
        heard = base + at + 1_000
        size = Size(milli_vcpu=2000, memory_mib=512, disk_mib=0)
        expected = fold(
            Event(
                seq=seq,
                kind=UsageKind(kind),
                at_ms=base + offset,
                received_ms=heard,
                size=size if kind == "start" else None,
            )
            for seq, (kind, offset) in enumerate(told, start=1)
        )
        order = data.draw(st.permutations(range(len(told))))
        repeats = data.draw(st.lists(st.sampled_from(range(len(told))), max_size=4))
        now = START + timedelta(milliseconds=at + 1_000)
        name = f"i{next(_serial)}"
        for index in [*order, *repeats]:
            kind, offset = told[index]
            when = START + timedelta(milliseconds=offset)
            numbered = {"sandbox_id": name, "execution_id": name, "seq": index + 1, "now": now}
            if kind == "start":
                open_usage(
                    team_id=team.pk,
                    milli_vcpu=2000,
                    memory_mib=512,
                    started_at=when,
                    **numbered,
                )
            elif kind == "pause":
                pause_usage(at=when, **numbered)
            elif kind == "resume":
                resume_usage(at=when, **numbered)
            else:
                close_usage(at=when, reason="x", **numbered)
        rows = UsageInterval.objects.filter(sandbox_id=name).order_by("started_ms", "pk")
        found = [(row.state, row.started_ms, row.ended_ms) for row in rows]
        assert found == [(i.state, i.started_ms, i.ended_ms) for i in expected]
        transaction.set_rollback(True)


# --- The soak: an hour of a busy cloud -----------------------------------------------------------


def soak(sandboxes, seed):
    """An hour with faults; returns our total and the model's."""
    rng = random.Random(seed)
    teams = [make_team(f"soak{n}-{seed}", now=START) for n in range(5)]
    truth, clock = Truth(), START
    for step in range(sandboxes * 6):
        clock = START + timedelta(seconds=3_600 * step / (sandboxes * 6))
        ms = to_ms(clock)
        alive = [k for k, s in truth.sandboxes.items() if s.state == "running"]
        dice = rng.random()
        if len(truth.sandboxes) < sandboxes and (dice < 0.3 or not alive):
            _start_one(truth, rng, teams, clock)
            continue
        name = rng.choice(list(truth.sandboxes))
        row = truth.sandboxes[name]
        act, after = _act(rng, row, name, clock, ms)
        if act is None:
            continue
        if rng.random() < 0.15:  # the process dies at the commit
            with transaction.atomic():
                act()
                transaction.set_rollback(True)
        for _ in range(1 + (rng.random() < 0.15)):  # and some calls are made twice
            with transaction.atomic():
                act()
        after()
        if step % 50 == 0:
            heard = [k for k in alive if rng.random() > 0.05]
            confirm_usage(sandbox_ids=heard, now=clock)
            for key in heard:
                if truth.sandboxes[key].state == "running":
                    truth.sandboxes[key].proof = ms
    for name, row in truth.sandboxes.items():
        close_usage(sandbox_id=name, reason="killed", now=clock)
        row.stop(to_ms(clock), "ended")
    roll_due(now=clock + timedelta(hours=2))
    close_due_periods(now=clock + timedelta(days=40))
    ours = Fraction(0)
    for team in teams:
        account = BillingAccount.objects.get(pk=team.pk)
        lines = InvoiceLine.objects.filter(invoice__account=account, kind="usage")
        ours += sum((Fraction(line.exact_amount) for line in lines), Fraction(0))
        ours += Fraction(unbilled_total(account))
    return ours, sum(truth.cost(team.pk, to_ms(clock)) for team in teams)


def _start_one(truth, rng, teams, clock):
    name, size = f"i{next(_serial)}", rng.choice(SIZES)
    row = TrueSandbox(rng.choice(teams).pk, *size)
    truth.sandboxes[name] = row
    for _ in range(1 + (rng.random() < 0.1)):
        with transaction.atomic():
            open_usage(
                team_id=row.team,
                sandbox_id=name,
                milli_vcpu=size[0] * 1000,
                memory_mib=size[1],
                execution_id=name,
                seq=1,
                now=clock,
            )
    row.run(to_ms(clock))


def _act(rng, row, name, clock, ms):
    """A thing that may happen to a sandbox in its state, and what it does to the model."""
    if row.state == "running":
        dice = rng.random()
        if dice < 0.45:
            return lambda: pause_usage(sandbox_id=name, now=clock), lambda: row.stop(ms, "paused")
        if dice < 0.6:
            lose = lambda: lose_usage(sandbox_ids=[name], now=clock)  # noqa: E731
            return lose, lambda: row.stop(row.proof, "lost")
        skew = timedelta(seconds=rng.uniform(-3_600, 3_600))
        began = row.stretches[-1].start
        if UsageInterval.objects.get(sandbox_id=name, ended_ms=None).run_started_ms != began:
            return None, None  # found again: the node's duration counts from its first start
        ran_for = timedelta(milliseconds=ms - began)
        close = lambda: close_usage(  # noqa: E731
            sandbox_id=name, reason="exited", now=clock, at=clock + skew, ran_for=ran_for
        )
        return close, lambda: row.stop(ms, "ended")
    if row.state == "paused":
        return lambda: resume_usage(sandbox_id=name, now=clock), lambda: row.run(ms)
    if row.state == "lost":
        proven = rng.random() < 0.5
        find = lambda: find_usage(sandbox_id=name, is_proven=proven, now=clock)  # noqa: E731

        def found():
            row.run(row.last_end() if proven else ms)
            row.proof = ms

        return find, found
    return None, None


def test_a_small_soak_equals_the_model_to_the_last_digit(plans):
    ours, theirs = soak(sandboxes=60, seed=1)
    assert ours == theirs > 0
    assert broken_laws(now=START + timedelta(days=41)) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_hour_of_a_thousand_sandboxes_equals_the_model_to_the_last_digit(plans):
    ours, theirs = soak(sandboxes=1_000, seed=2)
    assert ours == theirs > 0
    assert broken_laws(now=START + timedelta(days=41)) == []
