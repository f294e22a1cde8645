from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from accounts.models import Membership, Role, Team, User
from billing.services.accounts import account_of, seed_plans
from billing.services.usage import close_usage, confirm_usage, open_usage

START = datetime(2026, 3, 10, 9, 30, tzinfo=UTC)
_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def plans(db, settings):
    settings.BILLING_DEFAULT_PLAN = "self-hosted"
    settings.STRIPE_SECRET_KEY = ""
    settings.BILLING_ENFORCEMENT = True
    seed_plans()


def make_team(name="alice", *, plan="self-hosted", now=START, settings=None):
    """A team with an owner and an open account."""
    number = next(_numbers)
    team = Team.objects.create(name=f"{name}'s team", slug=f"{name}-{number}")
    user = User.objects.create(email=f"{name}-{number}@example.com")
    Membership.objects.create(team=team, user=user, role=Role.OWNER)
    if settings is not None:
        settings.BILLING_DEFAULT_PLAN = plan
    account_of(team_id=team.pk, now=now)
    return team


@pytest.fixture
def team(plans, settings):
    return make_team(settings=settings)


@pytest.fixture
def hobby_team(plans, settings):
    return make_team("harry", plan="hobby", settings=settings)


@pytest.fixture
def pro_team(plans, settings):
    return make_team("paula", plan="pro", settings=settings)


def start(team, sandbox_id="isandbox", *, now=START, vcpu=2, memory=512, **extra):
    open_usage(
        team_id=team.pk,
        sandbox_id=sandbox_id,
        milli_vcpu=vcpu * 1000,
        memory_mib=memory,
        disk_mib=10_240,
        now=now,
        **extra,
    )


def run(team, sandbox_id="isandbox", *, now=START, hours=1.0, **extra):
    """One sandbox that ran for some hours."""
    start(team, sandbox_id, now=now, **extra)
    end = now + timedelta(hours=hours)
    confirm_usage(sandbox_ids=[sandbox_id], now=end)
    close_usage(sandbox_id=sandbox_id, reason="killed", now=end)
