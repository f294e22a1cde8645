from __future__ import annotations

import threading

import pytest
from django.db import connection
from django.utils import timezone

from billing.models import EffectiveLimits, UsageInterval
from billing.services.accounts import limits_for
from nodeagent import wire
from sandboxes.lifecycle import EndReason, State
from sandboxes.models import Node, Sandbox
from templates_app.models import Template
from tests.api import api_of, check_error
from tests.factories import make_build, make_node, make_template, start_agent
from tests.fakes.agent import BrokenAgent, SlowAgent, VanishingNode

pytestmark = pytest.mark.usefixtures("base")

ANSWER = {"templateID", "sandboxID", "clientID", "envdVersion", "alias"}


def create(api, path="/sandboxes", **body):
    return api.post(path, {"templateID": "base", **body})


def row(response) -> Sandbox:
    return Sandbox.objects.get(public_id=response.data["sandboxID"])


def nothing_was_started(agent=None) -> bool:
    if agent is not None and agent.sandboxes:
        return False
    return not Sandbox.objects.exclude(state=State.ENDED).exists() and not (
        UsageInterval.objects.filter(ended_ms=None).exists()
    )


def test_a_sandbox_is_running_when_the_answer_comes(api, agent, base):
    response = create(api, metadata={"a": "b"}, envVars={"X": "1"}, timeout=60)
    assert response.status_code == 201
    assert set(response.data) == ANSWER
    assert response.data["templateID"] == base.public_id
    sandbox = row(response)
    spec = agent.specs[sandbox.public_id]
    assert (sandbox.state, sandbox.was_warm) == (State.RUNNING, True)
    assert (spec.env_vars, spec.timeout_seconds) == ({"X": "1"}, 60.0)
    assert spec.envd_access_token is None
    assert UsageInterval.objects.get(sandbox_id=sandbox.public_id).ended_ms is None
    base.refresh_from_db()
    assert (base.spawn_count, base.last_spawned_at is not None) == (1, True)


def test_the_two_versions_have_their_own_defaults(api, agent):
    older, newer = row(create(api)), row(create(api, "/v2/sandboxes"))
    assert (older.timeout_seconds, older.is_secure) == (15, False)
    assert (newer.timeout_seconds, newer.is_secure) == (300, True)


def test_the_newer_version_is_always_secure(api, agent):
    response = create(api, "/v2/sandboxes", secure=False)
    token = response.data["envdAccessToken"]
    assert len(token) == 64
    assert agent.specs[response.data["sandboxID"]].envd_access_token == token


def test_the_deadline_runs_from_the_nodes_start(api, agent):
    sandbox = row(create(api, timeout=77))
    assert sandbox.started_at is not None
    assert (sandbox.end_at - sandbox.started_at).total_seconds() == pytest.approx(77, abs=1e-5)


def test_private_traffic_comes_with_a_token(api, agent):
    response = create(api, secure=True, network={"allowPublicTraffic": False})
    token = response.data["trafficAccessToken"]
    assert token not in (None, response.data["envdAccessToken"])
    spec = agent.specs[response.data["sandboxID"]]
    assert (spec.traffic_access_token, spec.network.allow_public_traffic) == (token, False)


def test_options_reach_the_node_and_are_shown(api, agent):
    response = create(
        api,
        autoPause=True,
        autoResume={"enabled": True},
        allow_internet_access=False,
        network={"allowOut": ["1.1.1.1"], "denyOut": ["0.0.0.0/0"]},
    )
    spec = agent.specs[response.data["sandboxID"]]
    assert (spec.on_timeout, spec.auto_resume) == (wire.OnTimeout.PAUSE, True)
    assert spec.network.allow_out == ["1.1.1.1"]
    assert spec.network.allow_internet_access is False
    shown = api.get(f"/sandboxes/{response.data['sandboxID']}").data
    assert shown["lifecycle"] == {"autoResume": True, "onTimeout": "pause"}
    assert shown["network"] == {"allowOut": ["1.1.1.1"], "denyOut": ["0.0.0.0/0"]}
    assert shown["allowInternetAccess"] is False


def test_unknown_fields_and_null_options_are_ignored(api, agent):
    response = create(api, shiny=1, network=None, mcp=None, metadata=None, autoResume=None)
    assert response.status_code == 201
    shown = api.get(f"/sandboxes/{response.data['sandboxID']}").data
    assert {"metadata", "network", "allowInternetAccess"}.isdisjoint(shown)


@pytest.mark.parametrize("reference", ["base", "BASE", " base ", "base:default"])
def test_a_template_is_named_in_many_ways(api, agent, reference):
    assert create(api, templateID=reference).status_code == 201


def test_a_template_is_named_by_id_tag_and_build(api, agent, alice):
    template = make_template("mine", team=alice.team)
    tagged = make_build(template, tag="v2")
    for reference in (template.public_id, "alice/mine", "mine:v2", f"mine:{tagged.public_id}"):
        response = create(api, templateID=reference)
        assert response.data["templateID"] == template.public_id
        assert (row(response).build_id == tagged.pk) == (":" in reference)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"templateID": None}, 400, "validation error"),
        ({"templateID": "a b"}, 400, "Invalid template reference: invalid template ID"),
        ({"templateID": "nope"}, 404, "template 'nope' not found"),
        ({"templateID": "base:v9"}, 404, "tag 'v9' does not exist for template 'base'"),
        ({"timeout": 0}, 400, "Timeout must be greater than 0"),
        ({"timeout": -1}, 400, "validation error"),
        ({"timeout": 10**9}, 400, "Timeout cannot be greater than 24 hours"),
        ({"timeout": 10**12}, 400, "validation error"),
        ({"timeout": "60"}, 400, "validation error"),
        ({"timeout": 1.5}, 400, "validation error"),
        ({"timeout": True}, 400, "validation error"),
        ({"metadata": {"a": 1}}, 400, "validation error"),
        ({"metadata": []}, 400, "validation error"),
        ({"metadata": {"a": "\x00"}}, 400, "validation error"),
        ({"metadata": {"a": "\ud800"}}, 400, "validation error"),
        ({"metadata": {"a": "x" * 70_000}}, 400, "validation error"),
        ({"envVars": {"A=B": "x"}}, 400, "validation error"),
        ({"envVars": {"": "x"}}, 400, "validation error"),
        ({"autoResume": {}}, 400, "validation error"),
        ({"autoPauseMemory": False}, 400, "autoPauseMemory=false only applies when autoPause"),
        (
            {"autoPause": True, "autoPauseMemory": False, "autoResume": {"enabled": True}},
            400,
            "cannot be combined with autoResume",
        ),
        ({"network": {"allowPublicTraffic": False}}, 400, "unless you enable secure envd access"),
        ({"network": {"denyOut": ["x"]}}, 400, "invalid denied CIDR x"),
        ({"network": {"egressProxy": {"address": "a:1"}}}, 403, "network.egressProxy"),
        ({"network": {"rules": {"a.de": []}}}, 400, "transform rules are not available"),
        ({"iam": {"tokens": {"a": {}}}}, 400, "IAM workload tokens are not available"),
        ({"volumeMounts": [{"name": "v", "path": "/v"}]}, 400, "Volume mounts are not enabled"),
    ],
)
def test_a_bad_request_starts_nothing(api, agent, body, status, message):
    check_error(create(api, **body), status, message)
    assert nothing_was_started(agent)
    assert not Sandbox.objects.exists()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000, b"null"])
def test_a_body_that_is_no_object_is_refused(api, agent, body):
    response = api.post("/sandboxes", body)
    assert response.status_code == 400
    assert response.data["code"] == 400
    assert nothing_was_started(agent)


def test_another_teams_private_template_is_not_found(other_api, agent, alice):
    template = make_template("mine", team=alice.team)
    for reference in (template.public_id, "alice/mine"):
        check_error(create(other_api, templateID=reference), 404, "not found")
    Template.objects.filter(pk=template.pk).update(is_public=True)
    assert create(other_api, templateID="alice/mine").status_code == 201


def test_a_template_without_a_ready_build_cannot_start(api, agent, alice):
    make_template("new", team=alice.team, is_ready=False)
    check_error(create(api, templateID="new"), 404, "tag 'default' does not exist")


def limit_to(team, count):
    limits_for(team.pk, now=timezone.now())
    EffectiveLimits.objects.filter(pk=team.pk).update(max_concurrent=count)


def test_the_team_runs_no_more_than_its_plan_allows(api, agent, alice):
    limit_to(alice.team, 2)
    first = create(api)
    create(api)
    response = create(api)
    check_error(response, 429, "you have reached the maximum number of concurrent E2B sandboxes")
    assert response.headers["Should-Retry"] == "false"
    api.delete(f"/sandboxes/{first.data['sandboxID']}")
    assert create(api).status_code == 201


def test_paused_sandboxes_take_no_place_in_the_plan(api, agent, alice):
    limit_to(alice.team, 1)
    first = create(api)
    api.post(f"/sandboxes/{first.data['sandboxID']}/pause")
    assert create(api).status_code == 201
    response = api.post(f"/sandboxes/{first.data['sandboxID']}/connect", {"timeout": 9})
    check_error(response, 429, "maximum number of concurrent")
    assert row(first).state == State.PAUSED


def test_without_a_node_there_is_no_capacity(api):
    response = create(api)
    check_error(response, 503, "Failed to place sandbox", "sandbox_capacity_unavailable")
    assert (response.headers["Should-Retry"], response.headers["Retry-After"]) == ("true", "1")
    assert not Sandbox.objects.exists()


@pytest.mark.parametrize(
    "fields", [{"is_lost": True}, {"is_draining": True}, {"drain_requested": True}]
)
def test_a_node_that_is_not_ready_takes_none(api, fields):
    make_node(**fields)
    check_error(create(api), 503, "not enough capacity")


def test_a_node_that_does_not_answer_leaves_a_reason(api):
    make_node("gone")
    check_error(create(api), 503, "Failed to place sandbox", "sandbox_capacity_unavailable")
    sandbox = Sandbox.objects.get()
    assert (sandbox.state, sandbox.end_reason) == (State.ENDED, EndReason.START_FAILED)
    assert "does not answer" in sandbox.end_detail
    assert nothing_was_started()


def test_the_next_node_is_tried(api):
    make_node("a-gone", memory_mb=2048)
    agent = start_agent("z-good")
    try:
        response = create(api)
        assert response.status_code == 201
        assert row(response).node.node_id == "z-good"
        assert Node.objects.get(node_id="a-gone").create_fails <= 1
    finally:
        agent.close()


@pytest.mark.parametrize(
    ("status", "error_code", "answered", "code"),
    [
        (500, "internal_server_error", 500, "sandbox_create_failed"),
        (400, "invalid_argument", 500, "sandbox_create_refused"),
        (504, "deadline_exceeded", 504, "sandbox_placement_timeout"),
        (507, "no_space", 503, "sandbox_capacity_unavailable"),
        (429, "quota_exceeded", 503, "sandbox_capacity_unavailable"),
    ],
)
def test_a_nodes_refusal_is_told_and_kept(api, status, error_code, answered, code):
    agent = start_agent(kind=BrokenAgent, status=status, error_code=error_code)
    try:
        response = create(api)
        check_error(response, answered, "Failed to place sandbox", code)
        assert response.headers["Should-Retry"] == ("true" if answered == 503 else "false")
        assert Sandbox.objects.get().end_detail == "the engine said no"
        assert nothing_was_started(agent)
    finally:
        agent.close()


def test_a_node_that_vanishes_in_the_middle_keeps_no_sandbox(api):
    agent = start_agent(kind=VanishingNode)
    try:
        check_error(create(api), 503, "Failed to place sandbox")
        assert agent.called("POST", "/v1/sandboxes") == 1
        assert nothing_was_started(agent)
    finally:
        agent.close()


def test_a_warm_create_needs_few_statements(api, agent, django_assert_max_num_queries):
    create(api)
    with django_assert_max_num_queries(24):  # of which the meter takes eight
        create(api)


def test_the_same_idempotency_key_makes_one_sandbox(api, agent):
    first = api.post("/v2/sandboxes", {"templateID": "base"}, idempotency_key="k-1")
    again = api.post("/v2/sandboxes", {"templateID": "base"}, idempotency_key="k-1")
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.data == again.data
    assert Sandbox.objects.count() == 1


def test_an_idempotency_key_belongs_to_one_request(api, other_api, agent):
    api.post("/v2/sandboxes", {"templateID": "base"}, idempotency_key="k-1")
    response = api.post(
        "/v2/sandboxes", {"templateID": "base", "timeout": 9}, idempotency_key="k-1"
    )
    check_error(response, 422, "different request", "idempotency_request_mismatch")
    theirs = other_api.post("/v2/sandboxes", {"templateID": "base"}, idempotency_key="k-1")
    assert theirs.status_code == 201
    bad = api.post("/v2/sandboxes", {"templateID": "base"}, idempotency_key="Not This")
    check_error(bad, 400, "Idempotency-Key")


def test_a_failed_create_releases_its_idempotency_key(api):
    body = {"templateID": "base"}
    assert api.post("/v2/sandboxes", body, idempotency_key="k").status_code == 503
    agent = start_agent()
    try:
        assert api.post("/v2/sandboxes", body, idempotency_key="k").status_code == 201
    finally:
        agent.close()


@pytest.mark.django_db(transaction=True)
class TestAtTheSameTime:
    """Requests in threads of their own, each with its own connection."""

    def together(self, *works):
        results = [None] * len(works)

        def run(index, work):
            try:
                results[index] = work()
            finally:
                connection.close()

        threads = [
            threading.Thread(target=run, args=(index, work)) for index, work in enumerate(works)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return results

    def test_two_creates_cannot_share_the_last_place(self, alice, agent):
        limit_to(alice.team, 3)
        answers = self.together(*[lambda: create(api_of(alice)) for _ in range(6)])
        assert sorted(answer.status_code for answer in answers) == [201] * 3 + [429] * 3
        assert len(agent.sandboxes) == 3

    def test_a_replay_during_the_first_request_is_told_to_wait(self, alice):
        agent = start_agent(kind=SlowAgent, slow="/v1/sandboxes")
        body = {"templateID": "base"}
        answers = []

        def first():
            answers.append(api_of(alice).post("/v2/sandboxes", body, idempotency_key="k"))
            connection.close()

        thread = threading.Thread(target=first)
        thread.start()
        try:
            assert agent.is_waiting.wait(10)
            response = api_of(alice).post("/v2/sandboxes", body, idempotency_key="k")
            check_error(response, 409, "still running", "idempotency_in_progress")
            assert response.headers["Should-Retry"] == "true"
        finally:
            agent.go.set()
            thread.join(10)
            agent.close()
        assert answers[0].status_code == 201

    def test_a_kill_while_it_starts_leaves_nothing(self, alice):
        agent = start_agent(kind=SlowAgent, slow="/v1/sandboxes")
        answers = []

        def first():
            answers.append(create(api_of(alice)))
            connection.close()

        thread = threading.Thread(target=first)
        thread.start()
        try:
            assert agent.is_waiting.wait(10)
            from sandboxes.services import kill_sandbox

            kill_sandbox(sandbox=Sandbox.objects.get(), now=timezone.now())
        finally:
            agent.go.set()
            thread.join(10)
        check_error(answers[0], 409, "is being killed")
        assert nothing_was_started(agent)
        agent.close()
