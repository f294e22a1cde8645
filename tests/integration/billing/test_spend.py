from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest
from django.core import mail
from django.db import transaction

from accounts.models import Membership, Role, Team
from billing.errors import TeamBlocked
from billing.models import AccountBlock, BillingAccount, Notice, SpendAlert
from billing.models.accounts import StopAction
from billing.models.documents import GrantKind
from billing.money import to_minor
from billing.services.accounts import limits_for
from billing.services.credits import grant_credit
from billing.services.dunning import run_dunning
from billing.services.invoices import close_period
from billing.services.notices import mail_notices
from billing.services.payments import mark_paid
from billing.services.spend import (
    CHECK_INTERVAL,
    STOP_TIME,
    block_team,
    check_spend,
    may_start,
    overdrawn_teams,
    set_spend_policy,
    spend_of,
    sweep_spend,
    unblock_team,
)
from billing.services.usage import close_usage, confirm_usage, pause_usage
from config.errors import InvalidArgument, QuotaExceeded

from .conftest import START, make_team, start

DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def ask(team, *, now=START, vcpu=2, memory=512, concurrent=0, length=300):
    with transaction.atomic():
        return may_start(
            team.pk,
            milli_vcpu=vcpu * 1000,
            memory_mib=memory,
            concurrent=concurrent,
            length_seconds=length,
            now=now,
        )


def cap(team, minor, *, now=START, action=StopAction.PAUSE_RUNNING, alert=None):
    return set_spend_policy(
        team_id=team.pk, hard_limit_minor=minor, alert_minor=alert, action=action, now=now
    )


def alive(now, *ids):
    confirm_usage(sandbox_ids=ids or ["isandbox"], now=now)


def account(team):
    return BillingAccount.objects.get(pk=team.pk)


# --- Limits -----------------------------------------------------------------------------------


def test_concurrency_is_refused_in_e2bs_words(hobby_team):
    assert ask(hobby_team, concurrent=19).max_concurrent == 20
    with pytest.raises(QuotaExceeded) as caught:
        ask(hobby_team, concurrent=20)
    assert caught.value.message.startswith(
        "you have reached the maximum number of concurrent E2B sandboxes (20). If you need more"
    )


def test_running_meters_count_when_the_caller_does_not_say(hobby_team):
    for number in range(20):
        start(hobby_team, f"i{number}")
    with pytest.raises(QuotaExceeded):
        ask(hobby_team, concurrent=None)
    pause_usage(sandbox_id="i0", now=START + HOUR)
    ask(hobby_team, concurrent=None)


def test_too_big_or_too_long_names_limit_and_plan(hobby_team):
    with pytest.raises(InvalidArgument, match=r"16 vCPU is more than the 8 that the hobby plan"):
        ask(hobby_team, vcpu=16)
    with pytest.raises(InvalidArgument, match="16384 MiB of memory"):
        ask(hobby_team, memory=16_384)
    with pytest.raises(InvalidArgument, match="Timeout cannot be greater than 1 hours"):
        ask(hobby_team, length=3_601)


def test_limits_are_one_query(hobby_team, django_assert_num_queries):
    with django_assert_num_queries(1):
        limits_for(hobby_team.pk, now=START)


# --- Caps -------------------------------------------------------------------------------------


def test_a_cap_blocks_within_one_check_and_overshoots_by_no_more_than_it_says(team):
    cap(team, 2)  # $0.02; the sandbox costs $0.1089 an hour
    start(team)
    now = START
    while not overdrawn_teams():
        now += CHECK_INTERVAL
        alive(now)
        sweep_spend(now=now)
    (stop,) = overdrawn_teams()
    assert (stop.team_id, stop.action) == (team.pk, StopAction.PAUSE_RUNNING)
    stopped = now + STOP_TIME
    pause_usage(sandbox_id="isandbox", now=stopped)
    spend = spend_of(account(team), now=stopped + HOUR)
    burn = Decimal("0.1089") / 3600
    most = burn * int((CHECK_INTERVAL + STOP_TIME).total_seconds())
    assert Decimal("0.02") <= spend.total <= Decimal("0.02") + most


def test_a_blocked_team_gets_a_403_with_its_reason(team):
    cap(team, 0)
    with pytest.raises(TeamBlocked) as caught:
        ask(team)
    body = caught.value.body()
    assert body["code"] == 403
    assert body["reason"] == "billing_limit"
    assert body["message"].startswith("team is blocked: billing limit reached")
    assert Team.objects.get(pk=team.pk).is_blocked


def test_raising_the_cap_unblocks_at_once(team):
    cap(team, 0)
    cap(team, 1_000)
    ask(team)
    assert not Team.objects.get(pk=team.pk).is_blocked
    assert overdrawn_teams() == []


def test_what_would_pass_the_cap_before_the_next_check_is_refused(team):
    cap(team, 100)
    start(team)
    almost = START + 9 * HOUR + timedelta(minutes=9)  # $0.9964
    alive(almost)
    check_spend(team_id=team.pk, now=almost)
    ask(team, now=almost)
    with pytest.raises(TeamBlocked):
        ask(team, now=almost, vcpu=8, memory=8_192)


@pytest.mark.parametrize("action", list(StopAction))
def test_the_owner_chooses_what_happens_to_running_sandboxes(team, action):
    cap(team, 0, action=action)
    stopping = [row.action for row in overdrawn_teams()]
    assert stopping == ([] if action == StopAction.BLOCK_NEW else [action])


def test_with_enforcement_off_nothing_is_refused_or_stopped(team, settings):
    settings.BILLING_ENFORCEMENT = False
    cap(team, 0)
    ask(team)
    assert overdrawn_teams() == []


@pytest.mark.parametrize(
    "bad", [{"minor": -1}, {"minor": 10**15}, {"minor": 5, "action": "explode"}]
)
def test_bad_policies_are_refused(team, bad):
    with pytest.raises(InvalidArgument):
        cap(team, **bad)


def test_each_threshold_is_told_once_per_period_and_policy(team):
    cap(team, 100, alert=30)
    start(team)
    for hours in (1, 3, 5, 5.1, 8, 9.5):
        now = START + timedelta(hours=hours)
        alive(now)
        for _ in range(2):
            check_spend(team_id=team.pk, now=now)
    fired = list(SpendAlert.objects.order_by("pk").values_list("threshold", flat=True))
    assert fired == ["alert", "50", "80", "90", "100"]
    assert Notice.objects.count() == 5
    cap(team, 100, now=START + 10 * HOUR)
    assert SpendAlert.objects.filter(policy_version=3).count() == 4


def test_notices_are_mailed_once_to_the_owners_or_the_billing_address(team):
    cap(team, 0, alert=0)
    mail_notices(now=START)
    mail_notices(now=START)
    assert len(mail.outbox) == 1
    assert mail.outbox[0].to[0].startswith("alice")
    BillingAccount.objects.update(billing_emails=["books@example.com"])
    cap(team, 0, alert=0)
    mail_notices(now=START)
    assert mail.outbox[1].to == ["books@example.com"]


# --- Credit -----------------------------------------------------------------------------------


def test_a_hobby_team_stops_when_its_credit_is_used_up_and_goes_on_with_more(hobby_team):
    for number in range(20):
        start(hobby_team, f"i{number}", vcpu=8, memory=8_192)
    now = START + 8 * HOUR + timedelta(minutes=15)  # 20 * $0.5328 an hour
    alive(now, *[f"i{number}" for number in range(20)])
    sweep_spend(now=now)
    assert overdrawn_teams() == []
    now += 2 * HOUR
    alive(now, *[f"i{number}" for number in range(20)])
    sweep_spend(now=now)
    assert overdrawn_teams()[0].reason == "credits_exhausted"
    with pytest.raises(TeamBlocked, match="credits exhausted"):
        ask(hobby_team, now=now)
    for number in range(20):
        close_usage(sandbox_id=f"i{number}", reason="out_of_credit", now=now)
    grant_credit(
        account=account(hobby_team),
        amount_minor=5_000,
        kind=GrantKind.MANUAL,
        source_key="sorry",
        now=now,
    )
    sweep_spend(now=now)
    ask(hobby_team, now=now)


def test_a_payment_method_replaces_credit(hobby_team):
    BillingAccount.objects.update(has_payment_method=True)
    start(hobby_team, vcpu=8, memory=8_192)
    alive(START + 20 * DAY)
    check_spend(team_id=hobby_team.pk, now=START + 20 * DAY)
    ask(hobby_team)


def test_a_person_gets_one_trial_however_many_teams_they_found(hobby_team, settings):
    settings.BILLING_DEFAULT_PLAN = "hobby"
    owner = hobby_team.memberships.get().user
    second = Team.objects.create(name="second", slug="second-team")
    Membership.objects.create(team=second, user=owner, role=Role.OWNER)
    with pytest.raises(TeamBlocked, match="credits exhausted"):
        ask(second)
    ask(hobby_team)


def test_a_new_period_begins_with_the_whole_limit(pro_team):
    cap(pro_team, 5)
    start(pro_team)
    now = START + HOUR
    alive(now)
    sweep_spend(now=now)
    close_usage(sandbox_id="isandbox", reason="out_of_credit", now=now)
    with pytest.raises(TeamBlocked):
        ask(pro_team, now=now)
    close_period(team_id=pro_team.pk, now=START + 32 * DAY)
    ask(pro_team, now=START + 32 * DAY)


# --- By hand, and dunning ---------------------------------------------------------------------


def test_the_operator_suspends_and_restores_a_team(team):
    block_team(team_id=team.pk, detail="abuse", now=START)
    with pytest.raises(TeamBlocked, match="suspended"):
        ask(team)
    assert overdrawn_teams()[0].action == StopAction.PAUSE_RUNNING
    unblock_team(team_id=team.pk, now=START)
    ask(team)


def test_several_reasons_hold_together_and_the_gravest_is_told(team):
    cap(team, 0)
    block_team(team_id=team.pk, detail="abuse", now=START)
    assert limits_for(team.pk, now=START).block_reason == "banned"
    unblock_team(team_id=team.pk, now=START)
    assert limits_for(team.pk, now=START).block_reason == "billing_limit"


def test_an_unpaid_invoice_reminds_blocks_pauses_and_cancels_in_turn(pro_team):
    close_period(team_id=pro_team.pk, now=START + 32 * DAY)
    due = account(pro_team).invoices.get().due_at

    def state(days):
        run_dunning(now=due + timedelta(days=days))
        limits = limits_for(pro_team.pk, now=due)
        return limits.block_reason, len(overdrawn_teams()), limits.plan_code

    assert state(-1) == ("", 0, "pro")
    assert state(0) == ("", 0, "pro")
    assert state(7) == ("payment_failed", 0, "pro")
    assert state(14) == ("payment_failed", 1, "pro")
    assert state(30) == ("payment_failed", 1, "pro")
    assert state(30) == ("payment_failed", 1, "pro")
    assert Notice.objects.filter(key__startswith="dunning").count() == 4


def test_paying_unblocks_at_once(pro_team):
    close_period(team_id=pro_team.pk, now=START + 32 * DAY)
    invoice = account(pro_team).invoices.get()
    late = invoice.due_at + timedelta(days=20)
    run_dunning(now=late)
    mark_paid(invoice=invoice, actor="operator", now=late)
    ask(pro_team, now=late)
    assert overdrawn_teams() == []
    assert not AccountBlock.objects.filter(cleared_at=None).exists()


def test_another_teams_spend_is_its_own(team, settings):
    other = make_team("bob", settings=settings)
    start(team)
    alive(START + HOUR)
    assert spend_of(account(other), now=START + HOUR).total == 0
    assert to_minor(spend_of(account(team), now=START + HOUR).total, "USD") == 11
