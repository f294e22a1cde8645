"""The build routes, with a runner that does nothing: what callers are told, and what is stored."""

from __future__ import annotations

import asyncio
import threading
import uuid
from datetime import timedelta

import pytest
from django.core.cache import cache
from django.db import connection
from django.utils import timezone

from nodeagent import wire
from sandboxes.nodes import node_token
from sandboxes.pools import wanted_pools
from templates_app import builds, uploads
from templates_app.models import BuildStatus, FileArchive, TemplateBuild
from tests.api import Api, api_of, check_error
from tests.factories import make_build, make_person, make_template
from tests.integration.templates_build.conftest import line, ready, request, start, status, tell

HASH = "a" * 64


class TestRequest:
    def test_a_new_name_makes_a_template(self, api):
        response = api.post("/v3/templates", {"name": "Mine:v1", "tags": ["v2", "v1"]})
        assert response.status_code == 202
        body = response.data
        assert (body["aliases"], body["names"]) == (["mine"], ["alice/mine"])
        assert (body["tags"], body["public"]) == (["v1", "v2"], False)
        uuid.UUID(body["buildID"])
        tags = api.get(f"/templates/{body['templateID']}/tags").data
        assert [item["tag"] for item in tags] == ["v1", "v2"]

    def test_the_same_name_is_the_same_template(self, api):
        first, second = request(api), request(api, "alice/mine")
        assert first[0] == second[0]
        assert first[1] != second[1]

    def test_teams_have_names_of_their_own(self, api, other_api):
        make_template("base")
        ids = {request(api, "base")[0], request(other_api, "base")[0]}
        assert len(ids) == 2

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            ({}, "Name is required"),
            ({"name": " "}, "Name is required"),
            ({"name": "a b"}, "Invalid name: invalid template ID"),
            ({"name": "a:b:c"}, "Invalid tag"),
            ({"name": "charlie/x"}, "namespace 'charlie' must match your team 'alice'"),
            ({"name": "x", "tags": [":y"]}, "Invalid tag"),
            ({"name": "x", "tags": [str(uuid.uuid4())]}, "tag cannot be a UUID"),
            ({"name": "x", "cpuCount": 0}, "validation error"),
            ({"name": "x", "cpuCount": 3}, "CPU count must be 1 or an even number"),
            ({"name": "x", "cpuCount": 64}, "CPU count must be at most 32"),
            ({"name": "x", "memoryMB": 100}, "validation error"),
            ({"name": "x", "memoryMB": 1025}, "Memory must be divisible by 2"),
            ({"name": "x", "memoryMB": 10**8}, "Memory can't be higher than"),
            ({"name": "x", "minFreeDiskMb": -1}, "validation error"),
            ({"name": "x", "teamID": str(uuid.uuid4())}, "Team ID param mismatch"),
        ],
    )
    def test_bad_requests_change_nothing(self, api, body, text):
        check_error(api.post("/v3/templates", body), 400, text)
        assert not TemplateBuild.objects.exists()
        assert api.get("/templates").data == []

    def test_null_means_absent(self, api):
        response = api.post("/v3/templates", {"name": "x", "cpuCount": None, "memoryMB": None})
        assert response.status_code == 202
        build = TemplateBuild.objects.get()
        assert (build.cpu_count, build.memory_mb) == (2, 1024)

    def test_a_waiting_build_with_a_shared_tag_is_superseded(self, api):
        old, other = request(api, "mine:a"), request(api, "mine:b")
        new = request(api, "mine", tags=["a", "c"])
        told = status(api, *old).data
        assert told["status"] == "error"
        assert told["reason"]["message"] == builds.SUPERSEDED
        assert [status(api, *pair).data["status"] for pair in (other, new)] == ["waiting"] * 2

    def test_the_number_at_once_is_limited(self, api, monkeypatch, alice):
        limits = builds.billing_accounts.limits_for(alice.team.pk, now=timezone.now())
        for number in range(limits.concurrent_builds):
            make_build(make_template(f"t{number}", team=alice.team), is_ready=False)
        response = api.post("/v3/templates", {"name": "one-more"})
        check_error(response, 429, "maximum number of concurrent template builds")
        assert response["Should-Retry"] == "false"

    def test_an_alias_that_is_somebodys_template_id_is_refused(self, api, charlie):
        theirs = make_template("x", team=charlie.team)
        check_error(api.post("/v3/templates", {"name": theirs.public_id}), 409, "already used")

    def test_it_needs_a_key(self, runner, db):
        assert Api().post("/v3/templates", {"name": "x"}).status_code == 401

    @pytest.mark.django_db(transaction=True)
    def test_the_same_new_name_at_the_same_moment(self, runner):
        person = make_person("alice")
        answers = []

        def ask(number):
            try:
                answers.append(api_of(person).post("/v3/templates", {"name": f"new:t{number}"}))
            finally:
                connection.close()

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [202] * 4
        assert len({answer.data["templateID"] for answer in answers}) == 1


class TestStart:
    def test_it_is_building_at_once_and_the_node_gets_the_recipe(self, api, runner):
        pair = request(api)
        steps = [{"type": "RUN", "args": ["true"], "forceUpload": True}, {"type": "env"}]
        response = start(api, *pair, fromImage="ubuntu:22.04", steps=steps, startCmd="serve")
        assert (response.status_code, response.content) == (202, b"")
        assert status(api, *pair).data["status"] == "building"
        [(_, login, spec)] = runner.started
        assert login is None
        assert (spec.base, spec.base_is_template) == ("ubuntu:22.04", False)
        assert [step.type for step in spec.steps] == ["RUN", "ENV"]
        assert (spec.start_cmd, spec.ready_cmd) == ("serve", "sleep 20")

    def test_twice_is_refused(self, api):
        pair = request(api)
        start(api, *pair)
        check_error(start(api, *pair), 400, "build is not in waiting state")

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            ({"fromImage": "a", "fromTemplate": "b"}, "cannot specify both"),
            ({"steps": []}, "must specify either"),
        ],
    )
    def test_one_source_is_needed(self, api, body, text):
        pair = request(api)
        check_error(start(api, *pair, **body), 400, text)
        assert text in status(api, *pair).data["reason"]["message"]

    @pytest.mark.parametrize(
        "body",
        [
            {"fromImage": 5},
            {"fromImage": "a", "steps": "x"},
            {"fromImage": "a", "steps": [{"args": []}]},
            {"fromImage": "a", "steps": [{"type": "RUN", "args": [1]}]},
            {"fromImage": "a", "steps": [{"type": "COPY", "filesHash": "../etc"}]},
            {"fromImage": "a", "fromImageRegistry": {"type": "ftp"}},
            {"fromImage": "a", "fromImageRegistry": {"type": "gcp", "serviceAccountJson": "{"}},
        ],
    )
    def test_malformed_recipes_leave_the_build_waiting(self, api, body):
        pair = request(api)
        assert start(api, *pair, **body).status_code == 400
        assert status(api, *pair).data["status"] == "waiting"

    def test_credentials_reach_the_node_and_no_row(self, api, runner):
        pair = request(api)
        registry = {"type": "registry", "username": "me", "password": "hush-hush"}
        start(api, *pair, fromImage="private/image", fromImageRegistry=registry)
        [(_, _, spec)] = runner.started
        assert (spec.registry_username, spec.registry_password) == ("me", "hush-hush")
        row = TemplateBuild.objects.filter(public_id=pair[1]).values().get()
        assert "hush-hush" not in str(row)

    def test_an_unknown_parent_ends_the_build_at_its_base(self, api):
        pair = request(api)
        assert start(api, *pair, fromTemplate="nowhere").status_code == 202
        reason = status(api, *pair).data["reason"]
        assert (reason["message"], reason["step"]) == ("template 'nowhere' not found", "base")

    def test_another_teams_private_template_is_no_parent(self, api, charlie):
        theirs = make_template("secret", team=charlie.team)
        for name in (theirs.public_id, "charlie/secret"):
            pair = request(api)
            start(api, *pair, fromTemplate=name)
            assert "not found" in status(api, *pair).data["reason"]["message"]

    def test_a_start_command_is_inherited_with_its_context(self, api, runner, alice):
        make_template(
            "parent", team=alice.team, start_cmd="serve", ready_cmd="check", default_user="app",
            workdir="/srv", env={"A": "1"}, node_id="n1",
        )  # fmt: skip
        pair = request(api)
        start(api, *pair, fromTemplate="parent", steps=[{"type": "USER", "args": ["root"]}])
        [(build, _, spec)] = runner.started
        assert (spec.start_cmd, spec.ready_cmd) == ("serve", "check")
        assert spec.start_context == wire.BuildContext(user="app", workdir="/srv", env={"A": "1"})
        assert spec.base_context == wire.BuildContext(user="user", workdir="/srv", env={"A": "1"})
        assert build.node_id == "n1"
        ready(build, workdir="/other")
        build.refresh_from_db()
        assert (build.start_user, build.start_workdir, build.workdir) == ("app", "/srv", "/other")

    def test_own_commands_replace_the_parents(self, api, runner, alice):
        make_template("parent", team=alice.team, start_cmd="serve", ready_cmd="check")
        pair = request(api)
        start(api, *pair, fromTemplate="parent", readyCmd="mine")
        [(_, _, spec)] = runner.started
        assert (spec.start_cmd, spec.ready_cmd, spec.start_context) == ("", "mine", None)

    def test_one_under_way_with_a_shared_tag_is_cancelled(self, api, runner):
        first, apart = request(api, "mine:a"), request(api, "mine:b")
        start(api, *first)
        start(api, *apart)
        start(api, *request(api, "mine:a"))
        told = status(api, *first).data
        assert (told["status"], told["reason"]["message"]) == ("error", "build was cancelled")
        assert "step" not in told["reason"]
        assert status(api, *apart).data["status"] == "building"
        assert [str(build.public_id) for build in runner.cancelled] == [first[1]]

    def test_charlie_cannot_start_or_watch_it(self, api, other_api):
        pair = request(api)
        assert start(other_api, *pair).status_code == 403
        assert status(other_api, *pair).status_code == 403
        assert other_api.get(f"/templates/{pair[0]}/files/{HASH}").status_code == 404

    def test_unknown_ids(self, api):
        template_id, _ = request(api)
        check_error(start(api, template_id, "nonsense"), 400, "Invalid build ID: nonsense")
        assert start(api, template_id, str(uuid.uuid4())).status_code == 404
        check_error(status(api, template_id, "nonsense"), 400, "Invalid build id")
        check_error(status(api, "x", str(uuid.uuid4())), 400, "not found")


class TestStatus:
    @pytest.fixture
    def build(self, api, runner):
        pair = request(api)
        start(api, *pair)
        return TemplateBuild.objects.get(public_id=pair[1])

    def of(self, api, build, query=""):
        return status(api, build.template.public_id, str(build.public_id), query).data

    def test_lines_come_in_pages_by_level(self, api, build):
        lines = [line(f"m{n}", level="debug" if n % 2 else "info") for n in range(10)]
        tell(build, phase=wire.BuildPhase.RUNNING, lines=lines)
        body = self.of(api, build, "?logsOffset=2&limit=3")
        assert [entry["message"] for entry in body["logEntries"]] == ["m2", "m3", "m4"]
        assert body["logEntries"][0]["timestamp"] == "1970-01-01T00:00:01.500000Z"
        assert (body["logs"], "reason" in body) == ([], False)
        body = self.of(api, build, "?level=info&logsOffset=3")
        assert [entry["message"] for entry in body["logEntries"]] == ["m6", "m8"]
        assert self.of(api, build, "?logsOffset=99")["logEntries"] == []

    def test_saying_it_twice_changes_nothing(self, api, build):
        for _ in range(2):
            tell(build, phase=wire.BuildPhase.RUNNING, lines=[line("a"), line("b")])
        tell(build, phase=wire.BuildPhase.RUNNING, first=1, lines=[line("other"), line("c")])
        messages = [entry["message"] for entry in self.of(api, build)["logEntries"]]
        assert messages == ["a", "b", "c"]

    def test_a_failure_names_its_step_and_its_lines(self, api, build):
        tell(
            build,
            phase=wire.BuildPhase.ERROR,
            lines=[line("fine", step="2"), line("bad", level="error", step="2")],
            reason="failed to run command 'x': exit status 1",
            reason_step="2",
        )
        body = self.of(api, build)
        assert body["status"] == "error"
        reason = body["reason"]
        assert (reason["message"], reason["step"]) == (
            "failed to run command 'x': exit status 1",
            "2",
        )
        assert [entry["message"] for entry in reason["logEntries"]] == ["bad"]

    def test_an_end_is_final(self, api, build):
        ready(build)
        tell(build, phase=wire.BuildPhase.ERROR, first=9, lines=[line("late")], reason="late")
        assert not builds.fail_build(build, "late", now=timezone.now())
        body = self.of(api, build)
        assert (body["status"], body["logEntries"]) == ("ready", [])

    def test_a_ready_build_is_what_the_name_means(self, api, build, alice):
        ready(build, workdir="/w", env={"A": "1"})
        build.refresh_from_db()
        assert (build.image, build.workdir, build.env) == (
            f"sandlot/template:{build.public_id}",
            "/w",
            {"A": "1"},
        )
        assert api.get("/templates/aliases/mine").status_code == 200

    def test_a_ready_build_gets_a_warm_container(self, api, build):
        cache.clear()
        ready(build)
        assert [(pool.image, pool.size) for pool in wanted_pools("n", now=timezone.now())] == [
            (f"sandlot/template:{build.public_id}", 1)
        ]
        assert wanted_pools("another-node", now=timezone.now()) == []

    def test_logs_have_a_route_of_their_own(self, api, build):
        tell(build, phase=wire.BuildPhase.RUNNING, lines=[line("a"), line("b")])
        path = f"/templates/{build.template.public_id}/builds/{build.public_id}/logs"
        messages = [entry["message"] for entry in api.get(path).data["logs"]]
        assert messages == ["a", "b"]
        backward = api.get(f"{path}?direction=backward&limit=1&cursor=2000").data["logs"]
        assert [entry["message"] for entry in backward] == ["b"]
        assert api.get(f"{path}?cursor=1600").data["logs"] == []
        assert api.get(f"{path}?direction=up").status_code == 400

    @pytest.mark.parametrize("query", ["?logsOffset=-1", "?limit=101", "?level=loud"])
    def test_bad_queries(self, api, build, query):
        path = f"/templates/{build.template.public_id}/builds/{build.public_id}/status{query}"
        check_error(api.get(path), 400, "validation error")

    def test_deleting_the_template_ends_it(self, api, build, runner):
        assert api.delete("/templates/mine").status_code == 204
        build.refresh_from_db()
        assert (build.status, build.error_message) == ("error", "build was cancelled")
        assert runner.cancelled == [build]


class TestOverdue:
    def test_a_build_that_was_never_started_ends(self, api):
        pair = request(api)
        later = timezone.now() + timedelta(minutes=41)
        assert builds.end_overdue_builds(now=later) == 1
        assert status(api, *pair).data["reason"]["message"] == builds.TOO_LONG_WAITING
        assert builds.end_overdue_builds(now=later) == 0

    def test_a_build_that_never_ends_is_ended(self, api, runner):
        pair = request(api)
        start(api, *pair)
        assert builds.end_overdue_builds(now=timezone.now() + timedelta(minutes=66)) == 1
        assert "Maximum build time" in status(api, *pair).data["reason"]["message"]
        assert len(runner.cancelled) == 1


class TestNodes:
    """What nodes say, over their own routes."""

    @pytest.fixture
    def build(self, api):
        pair = request(api)
        start(api, *pair)
        return TemplateBuild.objects.get(public_id=pair[1])

    def post(self, build_id, body, *, node_id="n", token=None):
        headers = {"Authorization": f"Bearer {token or node_token(node_id)}", "X-Node-ID": node_id}
        return Api(headers).post(f"/internal/builds/{build_id}/progress", body)

    def progress(self, **fields):
        return wire.encode(
            wire.BuildProgress(node_id="n", **{"phase": wire.BuildPhase.RUNNING, **fields})
        )

    def test_progress_is_stored(self, build):
        assert self.post(build.public_id, self.progress(lines=[line("a")])).status_code == 204
        assert build.log.get().message == "a"

    def test_nobodys_build_is_forgotten(self, build):
        assert self.post(uuid.uuid4(), self.progress()).status_code == 404
        assert self.post("nonsense", self.progress()).status_code == 404
        builds.fail_build(build, "over", now=timezone.now())
        assert self.post(build.public_id, self.progress()).status_code == 404

    def test_a_wrong_token_is_refused(self, build):
        assert self.post(build.public_id, self.progress(), token="sln_x").status_code == 401
        assert self.post(build.public_id, self.progress(), node_id="m").status_code == 404
        assert not build.log.exists()

    def test_rubbish_is_refused(self, build):
        assert self.post(build.public_id, {"phase": "dancing"}).status_code == 400


class TestUploads:
    @pytest.fixture(autouse=True)
    def folder(self, settings, tmp_path):
        settings.UPLOADS_DIR = tmp_path
        return tmp_path

    async def put(self, path, *chunks, method="PUT", disconnects=False):
        messages = [
            {"type": "http.request", "body": chunk, "more_body": number < len(chunks) - 1}
            for number, chunk in enumerate(chunks)
        ]
        if disconnects:
            messages[-1:] = [{"type": "http.disconnect"}]
        sent = []

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        await uploads.receive_upload({"method": method, "path": path}, receive, send)
        return sent[0]["status"] if sent else None

    def path(self, person, files_hash=HASH):
        return uploads.UPLOAD_PATH + uploads.upload_token(person.team, files_hash)

    def test_the_address_is_absolute_and_opens_with_nothing_else(self, api, alice):
        template_id, _ = request(api)
        response = api.get(f"/templates/{template_id}/files/{HASH}")
        assert response.status_code == 201
        assert response.data["present"] is False
        assert response.data["url"].startswith("http://testserver/template-uploads/")
        check_error(api.get(f"/templates/{template_id}/files/xyz"), 400, "Invalid files hash")

    @pytest.mark.django_db(transaction=True)
    async def test_an_upload_is_there_for_the_whole_team_and_nobody_else(self, folder):
        alice = await asyncio.to_thread(_closing, make_person, "alice")
        charlie = await asyncio.to_thread(_closing, make_person, "charlie")
        assert await self.put(self.path(alice), b"abc", b"def") == 200
        stored = folder / str(alice.team.pk) / HASH
        assert stored.read_bytes() == b"abcdef"
        assert await asyncio.to_thread(_closing, uploads.is_present, alice.team, HASH)
        assert not await asyncio.to_thread(_closing, uploads.is_present, charlie.team, HASH)
        assert await self.put(self.path(alice), b"new") == 200
        assert stored.read_bytes() == b"new"

    async def test_a_half_upload_leaves_nothing(self, folder, monkeypatch):
        path = uploads.UPLOAD_PATH + uploads.upload_token(_Team(7), HASH)
        assert await self.put(path, b"abc", b"", disconnects=True) is None
        assert list((folder / "7").iterdir()) == []

    async def test_too_much_is_refused(self, folder, settings):
        settings.MAX_UPLOAD_BYTES = 4
        path = uploads.UPLOAD_PATH + uploads.upload_token(_Team(7), HASH)
        assert await self.put(path, b"abc", b"def") == 413
        assert list((folder / "7").iterdir()) == []

    @pytest.mark.parametrize("token", ["", "x", "a:b:c", "../../etc/passwd"])
    async def test_other_addresses_are_refused(self, token, folder):
        assert await self.put(uploads.UPLOAD_PATH + token, b"x") == 403
        assert list(folder.iterdir()) == []

    async def test_only_put(self):
        path = uploads.UPLOAD_PATH + uploads.upload_token(_Team(7), HASH)
        assert await self.put(path, b"x", method="POST") == 405

    def test_nodes_fetch_what_a_build_needs(self, api, alice, folder):
        (folder / str(alice.team.pk)).mkdir()
        (folder / str(alice.team.pk) / HASH).write_bytes(b"tar")
        headers = {"Authorization": f"Bearer {node_token('n')}", "X-Node-ID": "n"}
        path = f"/internal/archives/{alice.team.public_id}/{HASH}"
        assert Api(headers).get(path).status_code == 404  # nothing is being built
        start(api, *request(api))
        answer = Api(headers).get(path)
        assert b"".join(answer.streaming_content) == b"tar"
        assert Api().get(path).status_code == 401
        assert Api(headers).get(path.replace(HASH, "b" * 64)).status_code == 404

    def test_what_nobody_uses_is_deleted(self, alice, folder):
        now = timezone.now()
        (folder / str(alice.team.pk)).mkdir()
        path = folder / str(alice.team.pk) / HASH
        path.write_bytes(b"x")
        uploads.record_archive(team_id=alice.team.pk, files_hash=HASH, size_bytes=1, now=now)
        assert uploads.forget_unused_archives(now=now) == 0
        assert uploads.forget_unused_archives(now=now + timedelta(days=15)) == 1
        assert not path.exists()
        assert not FileArchive.objects.exists()


class _Team:
    def __init__(self, pk):
        self.pk = pk


def _closing(function, *args):
    try:
        return function(*args)
    finally:
        connection.close()


class TestLegacy:
    def test_older_calls_make_a_waiting_build(self, api, alice):
        first = api.post("/templates", {"dockerfile": "", "alias": "old"})
        again = api.post(f"/templates/{first.data['templateID']}", {"dockerfile": ""})
        v2 = api.post("/v2/templates", {"alias": "older"})
        assert [answer.status_code for answer in (first, again, v2)] == [202] * 3
        assert first.data["buildID"] != again.data["buildID"]
        assert first.data["names"] == ["alice/old"]
        builds_of = TemplateBuild.objects.filter(status=BuildStatus.WAITING)
        assert builds_of.count() == 2  # the first of "old" is superseded

    def test_pushed_images_are_no_longer_taken(self, api):
        pair = request(api)
        check_error(api.post("/templates/{}/builds/{}".format(*pair)), 400, "no longer supported")
