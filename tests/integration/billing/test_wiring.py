"""Sandboxes and their meters, through the API and a fake agent."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from billing.models import UsageInterval
from billing.services.spend import block_team, overdrawn_teams, set_spend_policy
from sandboxes.events import apply_heartbeat
from sandboxes.models import Sandbox
from sandboxes.overdrawn import stop_overdrawn
from tests import factories

pytestmark = pytest.mark.django_db


@pytest.fixture
def agent():
    agent = factories.start_agent()
    yield agent
    agent.close()


@pytest.fixture
def alice():
    factories.make_template("base")
    return factories.make_person("alice")


def create(client, person, expect=201):
    response = client.post(
        "/sandboxes",
        data={"templateID": "base", "timeout": 300, "metadata": {"job": "nightly"}},
        content_type="application/json",
        headers=person.headers,
    )
    assert response.status_code == expect, response.content
    return response.json()


def call(client, person, method, path, expect, **data):
    send = getattr(client, method)
    response = send(path, data=data, content_type="application/json", headers=person.headers)
    assert response.status_code == expect, response.content
    return response


def intervals(sandbox_id):
    rows = UsageInterval.objects.filter(sandbox_id=sandbox_id).order_by("started_ms", "pk")
    return [(row.state, row.ended_ms is None) for row in rows]


def test_the_meter_follows_a_sandbox_through_its_life(client, agent, alice):
    sandbox_id = create(client, alice)["sandboxID"]
    (row,) = UsageInterval.objects.all()
    assert row.labels == {"job": "nightly"}
    assert intervals(sandbox_id) == [("running", True)]
    call(client, alice, "post", f"/sandboxes/{sandbox_id}/pause", 204)
    assert intervals(sandbox_id) == [("running", False), ("paused", True)]
    call(client, alice, "post", f"/sandboxes/{sandbox_id}/connect", 201, timeout=60)
    call(client, alice, "delete", f"/sandboxes/{sandbox_id}", 204)
    assert intervals(sandbox_id) == [("running", False), ("paused", False), ("running", False)]


def test_a_nodes_clock_that_is_wrong_by_minutes_changes_no_bill(client, agent, alice, monkeypatch):
    for offset in (-200, 3_600):
        monkeypatch.setattr(agent, "clock", lambda at=offset: timezone.now().timestamp() + at)
        sandbox_id = create(client, alice)["sandboxID"]
        call(client, alice, "delete", f"/sandboxes/{sandbox_id}", 204)
        row = UsageInterval.objects.get(sandbox_id=sandbox_id)
        assert 0 <= row.ended_ms - row.started_ms < 5_000


def test_heartbeats_confirm_what_runs(client, agent, alice):
    create(client, alice)
    later = timezone.now() + timedelta(seconds=30)
    apply_heartbeat(agent.heartbeat(), now=later)
    row = UsageInterval.objects.get()
    assert row.confirmed_until_ms == int(later.timestamp() * 1000)


@pytest.mark.parametrize(
    ("action", "state"), [("pause_running", "paused"), ("kill_running", "ended")]
)
def test_a_team_past_its_limit_is_stopped_and_keeps_reading_and_deleting(
    client, agent, alice, action, state
):
    sandbox_id = create(client, alice)["sandboxID"]
    set_spend_policy(
        team_id=alice.team.pk,
        hard_limit_minor=0,
        alert_minor=None,
        action=action,
        now=timezone.now(),
    )
    assert stop_overdrawn(now=timezone.now()) == 1
    assert Sandbox.objects.get().state == state
    refused = create(client, alice, expect=403)
    assert refused["message"].startswith("team is blocked: billing limit reached")
    call(client, alice, "get", "/v2/sandboxes", 200)
    if state == "paused":
        call(client, alice, "post", f"/sandboxes/{sandbox_id}/connect", 403, timeout=60)
        call(client, alice, "delete", f"/sandboxes/{sandbox_id}", 204)
    set_spend_policy(
        team_id=alice.team.pk,
        hard_limit_minor=None,
        alert_minor=None,
        action=action,
        now=timezone.now(),
    )
    create(client, alice)


def test_a_blocked_team_is_stopped_again_until_it_obeys(client, agent, alice):
    create(client, alice)
    block_team(team_id=alice.team.pk, detail="abuse", now=timezone.now())
    assert len(overdrawn_teams()) == 1
    assert stop_overdrawn(now=timezone.now()) == 1
    assert stop_overdrawn(now=timezone.now()) == 0
