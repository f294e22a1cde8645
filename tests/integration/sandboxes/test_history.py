"""Logs, metrics, snapshots, forks and the operator's routes."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from urllib.parse import quote

import pytest
from django.utils import timezone

from sandboxes import reconcile
from sandboxes.lifecycle import State
from sandboxes.models import Sandbox, SandboxEvent, SandboxMetric
from templates_app.models import TemplateBuild
from tests.api import Api, check_error
from tests.factories import adopt, make_node, make_sandbox, start_agent
from tests.fakes.agent import BrokenAgent

LATER = timedelta(hours=1)


@pytest.fixture
def sandbox(alice, base, agent):
    made = make_sandbox(alice.team, template=base)
    adopt(agent, made)
    return made


@pytest.fixture
def now():
    return timezone.now()


@pytest.fixture
def lines(sandbox, now):
    levels = ["debug", "info", "warn", "error"]
    return [
        SandboxEvent.objects.create(
            sandbox=sandbox,
            at=now - timedelta(seconds=10 - index),
            kind="log",
            level=level,
            message=f"Line {index}",
            data={"pid": 7},
        )
        for index, level in enumerate(levels)
    ]


def messages(entries):
    return [entry["message"] for entry in entries]


def test_the_older_logs_are_lines_of_json_oldest_first(api, sandbox, lines):
    body = api.get(f"/sandboxes/{sandbox.public_id}/logs").data
    parsed = [json.loads(entry["line"]) for entry in body["logs"]]
    assert messages(parsed) == ["Line 0", "Line 1", "Line 2", "Line 3"]
    assert parsed[3] == {"level": "error", "message": "Line 3", "logger": "process", "pid": "7"}
    assert messages(body["logEntries"]) == messages(parsed)


def test_older_logs_go_on_from_an_instant(api, sandbox, lines):
    start = int(lines[2].at.timestamp() * 1000)
    body = api.get(f"/sandboxes/{sandbox.public_id}/logs?start={start}&limit=1").data
    assert messages(body["logEntries"]) == ["Line 2"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", [3, 2, 1, 0]),
        ("?direction=forward", [0, 1, 2, 3]),
        ("?limit=2", [3, 2]),
        ("?limit=0", []),
        ("?level=warn", [3, 2]),
        ("?search=Line+1", [1]),
        ("?search=line", []),
        ("?search=%25", []),
    ],
)
def test_logs_are_filtered(api, sandbox, lines, query, found):
    body = api.get(f"/v2/sandboxes/{sandbox.public_id}/logs{query}").data
    assert messages(body["logs"]) == [f"Line {index}" for index in found]


@pytest.mark.parametrize(
    "query", ["limit=1001", "limit=-1", "direction=up", "level=loud", "cursor=x", "search=%00"]
)
def test_a_bad_log_query_is_refused(api, sandbox, query):
    assert api.get(f"/v2/sandboxes/{sandbox.public_id}/logs?{query}").status_code == 400
    assert api.get(f"/v2/sandboxes/{sandbox.public_id}/logs?search={'x' * 257}").status_code == 400


@pytest.fixture
def samples(sandbox, now):
    return [
        SandboxMetric.objects.create(
            sandbox=sandbox,
            at=now - timedelta(seconds=30 - index * 5),
            cpu_count=2,
            cpu_used_pct=index,
            mem_used=1,
            mem_total=2,
            mem_cache=3,
            disk_used=4,
            disk_total=5,
        )
        for index in range(3)
    ]


def test_metrics_are_complete_and_ascending(api, sandbox, samples, now):
    Sandbox.objects.filter(pk=sandbox.pk).update(created_at=now - timedelta(minutes=1))
    body = api.get(f"/sandboxes/{sandbox.public_id}/metrics").data
    assert [metric["cpuUsedPct"] for metric in body] == [0, 1, 2]
    assert set(body[0]) == {
        "timestamp",
        "timestampUnix",
        "cpuCount",
        "cpuUsedPct",
        "memUsed",
        "memTotal",
        "memCache",
        "diskUsed",
        "diskTotal",
    }


def test_a_range_holds_only_what_lies_in_it(api, sandbox, samples, now):
    path = f"/sandboxes/{sandbox.public_id}/metrics"
    unix = int(now.timestamp())
    assert len(api.get(f"{path}?start={unix - 60}&end={unix}").data) == 3
    assert api.get(f"{path}?start={unix - 3600}&end={unix - 1800}").data == []
    check_error(api.get(f"{path}?start=20&end=10"), 400, "Invalid time range for metrics")
    check_error(api.get(f"{path}?start={10**15}"), 400, "Invalid time range for metrics")
    assert api.get(f"{path}?start=-1").status_code == 400


def test_the_latest_of_many(api, sandbox, samples):
    body = api.get(f"/sandboxes/metrics?sandbox_ids={sandbox.public_id},iunknown").data
    assert list(body["sandboxes"]) == [sandbox.public_id]
    assert body["sandboxes"][sandbox.public_id]["cpuUsedPct"] == 2
    many = ",".join(f"i{number}" for number in range(101))
    check_error(api.get(f"/sandboxes/metrics?sandbox_ids={many}"), 400, "maximum is 100")
    check_error(api.get("/sandboxes/metrics"), 400, "sandbox_ids is required")


def test_charlie_gets_no_logs_and_no_metrics(other_api, alice, sandbox, lines, samples):
    path = f"/sandboxes/{sandbox.public_id}"
    assert other_api.get(f"{path}/logs").data == {"logs": [], "logEntries": []}
    assert other_api.get(f"/v2{path}/logs").data == {"logs": []}
    assert other_api.get(f"{path}/metrics").data == []
    ids = sandbox.public_id
    assert other_api.get(f"/sandboxes/metrics?sandbox_ids={ids}").data == {"sandboxes": {}}
    team = f"/teams/{alice.team.public_id}/metrics"
    check_error(other_api.get(team), 403, "are not authorized to access this team's")


def test_team_metrics_count_what_runs(api, alice, agent, base):
    for _ in range(2):
        api.post("/sandboxes", {"templateID": "base"})
    path = f"/teams/{alice.team.public_id}/metrics"
    start = int(timezone.now().timestamp()) - 60
    points = api.get(f"{path}?start={start}").data
    assert max(point["concurrentSandboxes"] for point in points) == 2
    highest = api.get(f"{path}/max?metric=concurrent_sandboxes&start={start}").data
    assert highest["value"] == 2
    check_error(api.get(f"{path}?start=20&end=10"), 400, "start time cannot be after end time")
    check_error(api.get(f"{path}/max?metric=x"), 400, "metric must be")


# --- Snapshots -------------------------------------------------------------------------------


def snapshot(api, sandbox, **body):
    return api.post(f"/sandboxes/{sandbox.public_id}/snapshots", body)


def test_a_snapshot_is_listed_found_and_started(api, agent, sandbox):
    made = snapshot(api, sandbox, name="My-Snap_1")
    assert made.status_code == 201
    assert made.data == {"snapshotID": "alice/my-snap_1:default", "names": ["alice/my-snap_1"]}
    for query in (
        "",
        f"?sandboxID={sandbox.public_id}",
        "?name=my-snap_1",
        "?name=alice/my-snap_1",
    ):
        assert api.get(f"/snapshots{query}").data == [made.data]
    assert api.get("/snapshots?name=unknown").data == []
    assert api.get("/snapshots?sandboxID=iother").data == []
    started = api.post("/sandboxes", {"templateID": made.data["snapshotID"]})
    assert started.status_code == 201
    spec = agent.specs[started.data["sandboxID"]]
    assert spec.image in agent.images
    assert api.get("/templates").data == []
    sandbox.refresh_from_db()
    assert sandbox.state == State.RUNNING


def test_an_unnamed_snapshot_has_an_id_of_its_own(api, sandbox):
    made = snapshot(api, sandbox).data
    assert made["names"] == []
    template_id, tag = made["snapshotID"].split(":")
    assert (len(template_id), tag) == (20, "default")


def test_the_same_name_again_is_a_new_build(api, sandbox):
    snapshot(api, sandbox, name="snap")
    second = snapshot(api, sandbox, name="alice/snap:v2").data
    assert second["snapshotID"] == "alice/snap:v2"
    assert [entry["snapshotID"] for entry in api.get("/snapshots").data] == [
        "alice/snap:v2",
        "alice/snap:default",
    ]
    assert [entry["snapshotID"] for entry in api.get("/snapshots?name=snap").data] == [
        "alice/snap:v2"
    ]
    assert api.get("/snapshots?name=snap:default").data[0]["snapshotID"] == "alice/snap:default"


def test_snapshots_come_in_pages(api, sandbox):
    made = [snapshot(api, sandbox).data["snapshotID"] for _ in range(3)]
    first = api.get("/snapshots?limit=2")
    rest = api.get(f"/snapshots?limit=2&nextToken={first.headers['X-Next-Token']}")
    assert [entry["snapshotID"] for entry in first.data + rest.data] == made[::-1]
    assert "X-Next-Token" not in rest.headers
    assert api.get("/snapshots?nextToken=x").status_code == 400


def test_a_deleted_snapshot_gives_its_disk_back_once_unused(api, agent, sandbox):
    snapshot_id = snapshot(api, sandbox, name="snap").data["snapshotID"]
    child = api.post("/sandboxes", {"templateID": snapshot_id}).data["sandboxID"]
    path = f"/templates/{quote(snapshot_id, safe='')}"
    check_error(api.delete(path), 400, "running sandboxes using it")
    api.delete(f"/sandboxes/{child}")
    assert api.delete(path).status_code == 204
    assert api.delete(path).status_code == 404
    assert api.get("/snapshots").data == []
    assert reconcile.remove_unused_images(now=timezone.now() + LATER) == 1
    assert agent.images == set()
    assert reconcile.remove_unused_images(now=timezone.now() + LATER) == 0


def test_charlie_can_neither_see_nor_use_a_snapshot(api, other_api, agent, sandbox):
    snapshot_id = snapshot(api, sandbox, name="snap").data["snapshotID"]
    assert other_api.get("/snapshots").data == []
    check_error(other_api.post("/sandboxes", {"templateID": snapshot_id}), 404, "not found")
    path = f"/templates/{quote(snapshot_id, safe='')}"
    assert other_api.delete(path).status_code == 403


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("a b", 400, "Invalid name"),
        ("other/snap", 400, "must match your team"),
        ("snap:", 400, "Invalid name"),
    ],
)
def test_a_bad_snapshot_name_takes_none(api, agent, sandbox, name, status, message):
    check_error(snapshot(api, sandbox, name=name), status, message)
    assert agent.images == set()


def test_a_paused_sandbox_is_not_snapshotted(api, alice, base, agent):
    made = make_sandbox(alice.team, template=base, state=State.PAUSED)
    check_error(snapshot(api, made), 409, "cannot be snapshotted while in 'paused' state")


def test_a_node_that_cannot_snapshot_leaves_it_running(api, alice, base):
    agent = start_agent(kind=BrokenAgent, broken=("/snapshots",), status=507, error_code="no_space")
    made = make_sandbox(alice.team, template=base)
    adopt(agent, made)
    try:
        check_error(snapshot(api, made), 500, "the engine said no")
        made.refresh_from_db()
        assert made.state == State.RUNNING
        assert api.get("/snapshots").data == []
    finally:
        agent.close()


def test_an_image_whose_node_did_not_answer_is_removed_later(api, alice, base):
    """The node may have made it all the same."""
    agent = start_agent(kind=BrokenAgent, broken=("/snapshots",), status=503)
    made = make_sandbox(alice.team, template=base)
    adopt(agent, made)
    try:
        check_error(snapshot(api, made), 503, "its node is busy")
        assert reconcile.remove_unused_images(now=timezone.now()) == 0
        assert reconcile.remove_unused_images(now=timezone.now() + LATER) == 1
        assert reconcile.remove_unused_images(now=timezone.now() + LATER) == 0
    finally:
        agent.close()


# --- Forks -----------------------------------------------------------------------------------


def fork(api, sandbox, **body):
    return api.post(f"/sandboxes/{sandbox.public_id}/fork", body)


def test_forks_are_new_sandboxes_like_the_first(api, agent, base):
    created = api.post(
        "/v2/sandboxes",
        {"templateID": "base", "metadata": {"a": "b"}, "envVars": {"X": "1"}},
    ).data
    parent = Sandbox.objects.get(public_id=created["sandboxID"])
    results = fork(api, parent, count=3, timeout=60)
    assert results.status_code == 201
    ids = [result["sandbox"]["sandboxID"] for result in results.data]
    assert len(set(ids) | {parent.public_id}) == 4
    assert results.data[0]["sandbox"]["envdAccessToken"] != created["envdAccessToken"]
    for sandbox_id in ids:
        shown = api.get(f"/sandboxes/{sandbox_id}").data
        assert shown["templateID"] == base.public_id
        assert shown["metadata"] == {"a": "b"}
        assert agent.specs[sandbox_id].env_vars == {"X": "1"}
        assert agent.specs[sandbox_id].image in agent.images
    assert api.get("/snapshots").data == []
    parent.refresh_from_db()
    assert parent.state == State.RUNNING


def test_the_image_of_forks_goes_with_the_last_of_them(api, agent, sandbox):
    [result] = fork(api, sandbox).data
    assert reconcile.remove_unused_images(now=timezone.now() + LATER) == 0
    api.delete(f"/sandboxes/{result['sandbox']['sandboxID']}")
    assert reconcile.remove_unused_images(now=timezone.now() + LATER) == 1
    assert agent.images == set()
    assert TemplateBuild.objects.filter(image="").count() == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"count": 0}, "Count must be at least 1"),
        ({"count": 101}, "Count cannot be greater than 100"),
        ({"count": 100}, "Count must be lower than the maximum number of concurrent"),
        ({"timeout": 10**8}, "Timeout cannot be greater than"),
        ({"count": "2"}, "validation error"),
    ],
)
def test_a_bad_fork_starts_nothing(api, agent, sandbox, body, message):
    check_error(fork(api, sandbox, **body), 400, message)
    assert (agent.images, len(agent.sandboxes)) == (set(), 1)


def test_a_fork_that_fails_says_why_in_its_place(api, alice, base):
    agent = start_agent(kind=BrokenAgent, broken=("/v1/sandboxes",), status=500)
    made = make_sandbox(alice.team, template=base)
    adopt(agent, made)
    try:
        [result] = fork(api, made).data
        assert result["error"]["code"] == 500
        assert "Failed to place sandbox" in result["error"]["message"]
    finally:
        agent.close()


def test_a_paused_sandbox_is_not_forked(api, alice, base, agent):
    made = make_sandbox(alice.team, template=base, state=State.PAUSED)
    check_error(fork(api, made), 409, "is paused and cannot be forked; resume it first")


# --- The operator, and what is not offered ---------------------------------------------------


@pytest.fixture
def operator(db, settings):
    settings.ADMIN_TOKEN = "operator-secret"
    return Api({"X-Admin-Token": "operator-secret"})


def test_the_operator_sees_and_drains_nodes(operator, api, agent, sandbox):
    [node] = operator.get("/nodes").data
    assert (node["id"], node["status"], node["sandboxCount"]) == (agent.node_id, "ready", 1)
    detail = operator.get(f"/nodes/{agent.node_id}").data
    assert set(node) - set(detail) == {"sandboxStartingCount"}
    path = f"/nodes/{agent.node_id}"
    assert operator.post(path, {"status": "draining"}).status_code == 204
    assert operator.get(path).data["status"] == "draining"
    check_error(api.post("/sandboxes", {"templateID": "base"}), 503, "capacity")
    operator.post(path, {"status": "ready"})
    assert api.post("/sandboxes", {"templateID": "base"}).status_code == 201


def test_bad_node_requests_are_refused(operator, agent):
    check_error(operator.get("/nodes/none"), 404, "Node not found")
    check_error(operator.post(f"/nodes/{agent.node_id}", {"status": "x"}), 400, "validation")
    check_error(operator.post(f"/nodes/{agent.node_id}", {"status": "unhealthy"}), 409, "itself")


def test_a_silent_node_is_unhealthy(operator):
    make_node(now=timezone.now() - timedelta(minutes=5))
    assert operator.get("/nodes").data[0]["status"] == "unhealthy"


def test_the_operator_kills_a_teams_sandboxes(operator, api, alice, sandbox):
    counts = operator.get("/admin/sandboxes/running-counts").data
    assert counts[str(alice.team.public_id)] == 1
    path = f"/admin/teams/{alice.team.public_id}/sandboxes/kill"
    assert operator.post(path).data == {"killedCount": 1, "failedCount": 0}
    assert api.get("/v2/sandboxes").data == []
    check_error(operator.post(f"/admin/teams/{uuid.uuid4()}/sandboxes/kill"), 404, "Team not found")


def test_volumes_and_secrets_say_that_they_are_not_offered(api):
    assert api.get("/volumes").data == []
    check_error(api.post("/volumes", {"name": "v"}), 403, "use of volumes is not enabled")
    check_error(api.get(f"/volumes/{uuid.uuid4()}"), 404, "Volume not found")
    check_error(api.delete(f"/volumes/{uuid.uuid4()}"), 404, "Volume not found")
    check_error(api.get("/secrets"), 403, "Secrets are not available for this team")
    assert api.get("/secrets").headers["Cache-Control"] == "no-store"
