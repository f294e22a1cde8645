"""Steering a sandbox through the API: look, deadline, pause, resume, network, kill."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from billing.models import UsageInterval
from nodeagent import wire
from sandboxes.lifecycle import EndReason, State
from sandboxes.models import Sandbox
from tests.api import api_of, check_error
from tests.factories import adopt, make_node, make_sandbox, make_template, start_agent
from tests.fakes.agent import BrokenAgent, SlowAgent, VanishingNode

LISTED = {
    "templateID",
    "sandboxID",
    "clientID",
    "startedAt",
    "endAt",
    "cpuCount",
    "memoryMB",
    "diskSizeMB",
    "state",
    "envdVersion",
    "volumeMounts",
}
# Every operation on one sandbox: method, path after its id, body.
OPERATIONS = [
    ("GET", "", None),
    ("DELETE", "", None),
    ("POST", "/timeout", {"timeout": 60}),
    ("POST", "/refreshes", {"duration": 60}),
    ("POST", "/connect", {"timeout": 60}),
    ("POST", "/resume", {}),
    ("POST", "/pause", {}),
    ("PUT", "/network", {}),
    ("POST", "/snapshots", {}),
    ("POST", "/fork", {}),
]


@pytest.fixture
def sandbox(alice, base, agent):
    """Running, and its node knows it."""
    made = make_sandbox(alice.team, template=base)
    adopt(agent, made)
    return made


def path(sandbox, verb=""):
    return f"/sandboxes/{sandbox.public_id}{verb}"


def state_of(sandbox) -> str:
    sandbox.refresh_from_db()
    return sandbox.state


# --- Whose it is -----------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "verb", "body"), OPERATIONS)
def test_charlie_finds_nothing_and_changes_nothing(other_api, sandbox, agent, method, verb, body):
    before = Sandbox.objects.values().get(pk=sandbox.pk)
    response = other_api.call(method, path(sandbox, verb), body)
    check_error(response, 404, f"Sandbox \"{sandbox.public_id}\" doesn't exist or you don't have")
    assert Sandbox.objects.values().get(pk=sandbox.pk) == before
    assert agent.calls == []


def test_charlie_connects_to_nothing_by_the_newer_route(other_api, sandbox):
    response = other_api.post(f"/v2/sandboxes/{sandbox.public_id}/connect")
    check_error(response, 404, "doesn't exist")


@pytest.mark.parametrize(("method", "verb", "body"), OPERATIONS)
@pytest.mark.parametrize("sandbox_id", ["a-b-c", "UPPER", "i.x", "%2e%2e"])
def test_what_cannot_be_an_id_is_refused(api, method, verb, body, sandbox_id):
    check_error(api.call(method, f"/sandboxes/{sandbox_id}{verb}", body), 400, "Invalid sandbox ID")


@pytest.mark.parametrize(("method", "verb", "body"), OPERATIONS)
def test_one_past_its_deadline_is_gone_before_its_node_says_so(api, sandbox, method, verb, body):
    Sandbox.objects.filter(pk=sandbox.pk).update(end_at=timezone.now())
    check_error(api.call(method, path(sandbox, verb), body), 404, "doesn't exist")
    assert api.get("/v2/sandboxes").data == []


@pytest.mark.parametrize("state", [State.STARTING, State.KILLING, State.ENDED])
def test_one_that_is_not_there_yet_or_any_more_is_not_found(api, alice, base, state):
    made = make_sandbox(alice.team, template=base, state=state)
    check_error(api.get(path(made)), 404, "doesn't exist")


def test_an_unknown_method_is_refused_in_shape(api, sandbox):
    check_error(api.put(path(sandbox)), 405, "method not allowed")


# --- Look ------------------------------------------------------------------------------------


def test_details_are_as_clients_expect(api, sandbox):
    body = api.get(path(sandbox)).data
    assert set(body) == LISTED | {"lifecycle", "envdAccessToken"}
    assert body["state"] == "running"
    assert body["lifecycle"] == {"autoResume": False, "onTimeout": "kill"}
    assert body["volumeMounts"] == []


def test_an_older_id_with_a_client_id_is_understood(api, sandbox):
    assert api.get(f"{path(sandbox)}-6532622b").data["sandboxID"] == sandbox.public_id


def test_looking_twice_shows_the_same_instants(api, sandbox):
    first, second = api.get(path(sandbox)).data, api.get(path(sandbox)).data
    assert first == second


def test_details_cost_two_queries(api, sandbox, django_assert_num_queries):
    api.get(path(sandbox))
    with django_assert_num_queries(2):
        api.get(path(sandbox))


# --- Kill ------------------------------------------------------------------------------------


def test_a_killed_sandbox_is_gone_everywhere(api, sandbox, agent):
    assert api.delete(path(sandbox)).status_code == 204
    assert agent.sandboxes == {}
    assert state_of(sandbox) == State.ENDED
    assert sandbox.end_reason == EndReason.KILLED
    check_error(api.delete(path(sandbox)), 404, "doesn't exist")
    check_error(api.get(path(sandbox)), 404, "doesn't exist")


def test_killing_stops_the_meter(api, agent, base):
    made = api.post("/sandboxes", {"templateID": "base"}).data["sandboxID"]
    api.delete(f"/sandboxes/{made}")
    assert UsageInterval.objects.get(sandbox_id=made).ended_ms is not None


def test_a_paused_sandbox_can_be_killed(api, sandbox, agent):
    api.post(path(sandbox, "/pause"))
    assert api.delete(path(sandbox)).status_code == 204
    assert agent.sandboxes == {}


def test_one_that_its_node_lost_can_be_killed(api, sandbox, agent):
    agent.sandboxes.clear()
    assert api.delete(path(sandbox)).status_code == 204
    assert state_of(sandbox) == State.ENDED


def test_a_node_that_does_not_answer_is_told_later(api, alice, base):
    made = make_sandbox(alice.team, template=base, node=make_node())
    response = api.delete(path(made))
    check_error(response, 503, "Error killing sandbox")
    assert response.headers["Should-Retry"] == "false"
    assert state_of(made) == State.KILLING
    check_error(api.get(path(made)), 404, "doesn't exist")


# --- Deadline --------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [10, 600])
def test_a_timeout_counts_from_now_both_ways(api, sandbox, agent, seconds):
    before = timezone.now()
    assert api.post(path(sandbox, "/timeout"), {"timeout": seconds}).status_code == 204
    sandbox.refresh_from_db()
    left = (sandbox.end_at - before).total_seconds()
    assert left == pytest.approx(seconds, abs=5)
    assert agent.sandboxes[sandbox.public_id].end_at == sandbox.end_at.timestamp()


def test_a_timeout_of_zero_ends_it_now(api, sandbox):
    assert api.post(path(sandbox, "/timeout"), {"timeout": 0}).status_code == 204
    check_error(api.get(path(sandbox)), 404, "doesn't exist")


def test_a_timeout_stops_at_the_longest_run(api, sandbox):
    api.post(path(sandbox, "/timeout"), {"timeout": 10**9})
    sandbox.refresh_from_db()
    assert sandbox.end_at - sandbox.started_at == timedelta(seconds=sandbox.max_length_seconds)


def test_one_past_its_longest_run_gets_no_more_time(api, sandbox):
    Sandbox.objects.filter(pk=sandbox.pk).update(started_at=timezone.now() - timedelta(days=2))
    response = api.post(path(sandbox, "/timeout"), {"timeout": 10})
    check_error(response, 400, "Max instance length exceeded")


@pytest.mark.parametrize("body", [None, {}, {"timeout": -1}, {"timeout": "5"}, {"timeout": 2**31}])
def test_a_bad_timeout_changes_nothing(api, sandbox, agent, body):
    check_error(api.post(path(sandbox, "/timeout"), body), 400, "validation error")
    assert agent.calls == []


@pytest.mark.parametrize(
    ("state", "status"), [(State.PAUSED, 404), (State.PAUSING, 409), (State.RESUMING, 404)]
)
def test_only_a_running_sandbox_has_a_timeout(api, alice, base, state, status):
    made = make_sandbox(alice.team, template=base, state=state)
    assert api.post(path(made, "/timeout"), {"timeout": 9}).status_code == status


def test_a_node_that_does_not_answer_leaves_the_deadline(api, alice, base):
    made = make_sandbox(alice.team, template=base, node=make_node())
    check_error(api.post(path(made, "/timeout"), {"timeout": 9}), 503, "not answering")
    before = made.end_at
    made.refresh_from_db()
    assert made.end_at == before


def test_a_refresh_only_extends(api, sandbox, agent):
    before = sandbox.end_at
    assert api.post(path(sandbox, "/refreshes"), {"duration": 10}).status_code == 204
    sandbox.refresh_from_db()
    assert sandbox.end_at == before
    api.post(path(sandbox, "/refreshes"), {"duration": 3600})
    sandbox.refresh_from_db()
    assert sandbox.end_at > before
    check_error(api.post(path(sandbox, "/refreshes"), {"duration": 3601}), 400, "validation")


# --- Connect ---------------------------------------------------------------------------------


def test_connecting_extends_and_never_shortens(api, sandbox, agent):
    shown = api.get(path(sandbox)).data["endAt"]
    response = api.post(path(sandbox, "/connect"), {"timeout": 10})
    assert (response.status_code, response.data["sandboxID"]) == (200, sandbox.public_id)
    assert api.get(path(sandbox)).data["endAt"] == shown
    assert agent.calls == []
    api.post(path(sandbox, "/connect"), {"timeout": 600})
    assert api.get(path(sandbox)).data["endAt"] > shown


def test_the_newer_connect_needs_no_body(api, sandbox):
    assert api.post(f"/v2/sandboxes/{sandbox.public_id}/connect").status_code == 200
    check_error(api.post(path(sandbox, "/connect")), 400, "timeout: Field required")


def test_connecting_resumes_a_paused_one(api, sandbox, agent):
    token = api.get(path(sandbox)).data["envdAccessToken"]
    api.post(path(sandbox, "/pause"))
    response = api.post(path(sandbox, "/connect"), {"timeout": 60})
    assert (response.status_code, response.data["envdAccessToken"]) == (201, token)
    assert state_of(sandbox) == State.RUNNING
    left = (sandbox.end_at - sandbox.started_at).total_seconds()
    assert left == pytest.approx(60, abs=0.001)


def test_connecting_beyond_the_plan_is_refused(api, sandbox):
    response = api.post(path(sandbox, "/connect"), {"timeout": 10**8})
    check_error(response, 400, "Timeout cannot be greater than 24 hours")


def test_connecting_to_one_its_node_lost_says_so_and_settles(api, sandbox, agent):
    agent.sandboxes.clear()
    check_error(api.post(path(sandbox, "/connect"), {"timeout": 600}), 404, "doesn't exist")
    assert state_of(sandbox) == State.ENDED
    assert sandbox.end_reason == EndReason.EXITED


def test_a_node_that_cannot_resume_leaves_it_paused(api, alice, base):
    agent = start_agent(kind=BrokenAgent, broken=("/resume",), status=409, error_code="conflict")
    made = make_sandbox(alice.team, template=base, state=State.PAUSED)
    adopt(agent, made)
    try:
        check_error(api.post(path(made, "/connect"), {"timeout": 9}), 500, "the engine said no")
        assert state_of(made) == State.PAUSED
    finally:
        agent.close()


def test_the_older_resume(api, sandbox, agent):
    check_error(api.post(path(sandbox, "/resume"), {}), 409, "is already running")
    api.post(path(sandbox, "/pause"))
    response = api.post(path(sandbox, "/resume"), {"autoPause": True})
    assert response.status_code == 201
    assert (state_of(sandbox), sandbox.on_timeout) == (State.RUNNING, "pause")


# --- Pause -----------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [True, False, None])
def test_pausing_is_shown_at_once(api, sandbox, agent, memory):
    body = {} if memory is None else {"memory": memory}
    assert api.post(path(sandbox, "/pause"), body).status_code == 204
    shown = api.get(path(sandbox)).data
    assert shown["state"] == "paused"
    assert shown["pauseMode"] == ("filesystem" if memory is False else "full")
    assert shown["endAt"] > shown["startedAt"]
    assert api.get("/v2/sandboxes?state=running").data == []
    assert len(api.get("/v2/sandboxes?state=paused").data) == 1


def test_pausing_stops_the_meter_of_cpu_and_memory(api, agent, base):
    made = api.post("/sandboxes", {"templateID": "base"}).data["sandboxID"]
    api.post(f"/sandboxes/{made}/pause")
    kinds = list(UsageInterval.objects.filter(sandbox_id=made).values_list("state", "ended_ms"))
    assert [kind for kind, ended in kinds if ended is None] == ["paused"]


def test_pausing_twice_is_a_conflict(api, sandbox):
    api.post(path(sandbox, "/pause"))
    check_error(api.post(path(sandbox, "/pause")), 409, "is already paused")


def test_a_node_that_refuses_to_pause_leaves_it_running(api, alice, base):
    agent = start_agent(kind=BrokenAgent, broken=("/pause",), status=409, error_code="conflict")
    made = make_sandbox(alice.team, template=base)
    adopt(agent, made)
    try:
        check_error(api.post(path(made, "/pause")), 500, "Error pausing sandbox")
        assert state_of(made) == State.RUNNING
    finally:
        agent.close()


def test_a_pause_whose_answer_is_lost_is_settled_by_the_node(api, alice, base):
    from sandboxes.events import apply_heartbeat

    agent = start_agent(kind=VanishingNode, vanishing=("/pause",))
    made = make_sandbox(alice.team, template=base)
    adopt(agent, made)
    try:
        check_error(api.post(path(made, "/pause")), 503, "Error pausing sandbox")
        assert state_of(made) == State.PAUSING
        apply_heartbeat(agent.heartbeat(), now=timezone.now())
        assert state_of(made) == State.PAUSED
    finally:
        agent.close()


def test_an_auto_pause_under_way_is_shown_as_paused(api, sandbox):
    Sandbox.objects.filter(pk=sandbox.pk).update(on_timeout="pause", end_at=timezone.now())
    assert api.get(path(sandbox)).data["state"] == "paused"
    assert api.get("/v2/sandboxes?state=running").data == []
    assert len(api.get("/v2/sandboxes?state=paused").data) == 1


def test_connecting_during_an_auto_pause_resumes(api, sandbox, agent):
    Sandbox.objects.filter(pk=sandbox.pk).update(on_timeout="pause", end_at=timezone.now())
    assert api.post(path(sandbox, "/connect"), {"timeout": 60}).status_code == 201
    assert state_of(sandbox) == State.RUNNING


# --- Network ---------------------------------------------------------------------------------


def test_a_network_update_replaces_the_egress_part_only(api, agent, base):
    made = api.post(
        "/v2/sandboxes",
        {
            "templateID": "base",
            "network": {"allowPublicTraffic": False, "denyOut": ["8.8.8.8"]},
            "allow_internet_access": False,
        },
    ).data["sandboxID"]
    url = f"/sandboxes/{made}"
    assert api.put(f"{url}/network", {"denyOut": ["1.1.1.1"]}).status_code == 204
    shown = api.get(url).data
    assert shown["network"] == {"allowPublicTraffic": False, "denyOut": ["1.1.1.1"]}
    assert "allowInternetAccess" not in shown
    sent = agent.networks[made]
    assert (sent.deny_out, sent.allow_public_traffic) == (["1.1.1.1"], False)
    api.put(f"{url}/network", {})
    assert api.get(url).data["network"] == {"allowPublicTraffic": False}


def test_a_bad_network_update_changes_nothing(api, sandbox, agent):
    check_error(api.put(path(sandbox, "/network"), {"denyOut": ["x"]}), 400, "invalid denied CIDR")
    proxy = {"egressProxy": {"address": "a:1"}}
    check_error(api.put(path(sandbox, "/network"), proxy), 403, "Egress proxy (egressProxy)")
    assert agent.calls == []


# --- At the same time ------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
class TestAtTheSameTime:
    @pytest.fixture
    def slow(self, alice, base):
        def start(verb: str, state: State = State.RUNNING):
            agent = start_agent(kind=SlowAgent, slow=verb)
            made = make_sandbox(alice.team, template=base, state=state)
            adopt(agent, made)
            agents.append(agent)
            return agent, made

        agents: list[SlowAgent] = []
        yield start
        for agent in agents:
            agent.go.set()
            agent.close()

    def in_thread(self, answers, work):
        def run():
            try:
                answers.append(work())
            finally:
                connection.close()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def race(self, agent, first, second):
        """`second` begins while the node works on `first`."""
        answers: list = []
        threads = [self.in_thread(answers, first)]
        assert agent.is_waiting.wait(10)
        threads.append(self.in_thread(answers, second))
        time.sleep(0.1)  # long enough to find the row in transition; either order is right
        agent.go.set()
        for thread in threads:
            thread.join(20)
        return sorted(answer.status_code for answer in answers)

    def test_two_pauses_both_succeed(self, alice, slow):
        agent, made = slow("/pause")
        api = api_of(alice)
        pause = lambda: api.post(path(made, "/pause"))  # noqa: E731
        assert self.race(agent, pause, pause) == [204, 204]
        assert agent.called("POST", "/pause") == 1

    def test_two_connects_both_get_a_running_sandbox(self, alice, slow):
        agent, made = slow("/resume", State.PAUSED)
        api = api_of(alice)
        connect = lambda: api.post(path(made, "/connect"), {"timeout": 60})  # noqa: E731
        assert self.race(agent, connect, connect) == [200, 201]
        assert state_of(made) == State.RUNNING

    def test_a_connect_waits_for_a_pause_and_resumes(self, alice, slow):
        agent, made = slow("/pause")
        api = api_of(alice)
        codes = self.race(
            agent,
            lambda: api.post(path(made, "/pause")),
            lambda: api.post(path(made, "/connect"), {"timeout": 60}),
        )
        assert codes == [201, 204]
        assert state_of(made) == State.RUNNING

    def test_kill_wins_over_a_pause(self, alice, slow):
        agent, made = slow("/pause")
        api = api_of(alice)
        answers: list = []
        thread = self.in_thread(answers, lambda: api.post(path(made, "/pause")))
        assert agent.is_waiting.wait(10)
        assert api.delete(path(made)).status_code == 204
        agent.go.set()
        thread.join(20)
        assert answers[0].status_code == 404
        assert state_of(made) == State.ENDED
        assert agent.sandboxes == {}

    def test_two_kills_both_succeed(self, alice, base, agent):
        made = make_sandbox(alice.team, template=base)
        adopt(agent, made)
        api = api_of(alice)
        answers: list = []
        threads = [self.in_thread(answers, lambda: api.delete(path(made))) for _ in range(4)]
        for thread in threads:
            thread.join(20)
        # Who comes after the end finds nothing; who came during it has joined it.
        assert {answer.status_code for answer in answers} <= {204, 404}
        assert 204 in {answer.status_code for answer in answers}
        assert agent.called("DELETE", made.public_id) == 1


def test_no_transaction_is_open_while_a_node_works(alice, base, transactional_db):
    agent = start_agent(kind=SlowAgent, slow="/pause")
    made = make_sandbox(alice.team, template=base)
    adopt(agent, made)
    answers: list = []

    def run():
        answers.append(api_of(alice).post(path(made, "/pause")))
        connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert agent.is_waiting.wait(10)
        # With a transaction open over there, this write would wait for it and fail.
        make_template("written-meanwhile")
    finally:
        agent.go.set()
        thread.join(10)
        agent.close()
    assert answers[0].status_code == 204
    assert wire.NodeSandboxState.PAUSED in {state.state for state in agent.sandboxes.values()}
