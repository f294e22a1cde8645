from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest
import sandlot
from fake_server import Answer, command_stream, envelope
from sandlot import FileType, SandboxState


async def test_create_sends_what_was_asked_and_nothing_else(client, server):
    sandbox = await client.create(
        "py", timeout_seconds=30, metadata={"a": "b"}, envs={"X": "1"}, allow_internet_access=False
    )
    await sandbox.close()
    seen = server.seen[0]
    assert (seen.method, seen.path) == ("POST", "/v2/sandboxes")
    assert seen.headers["x-api-key"] == "e2b_00"
    assert json.loads(seen.body) == {
        "templateID": "py",
        "timeout": 30,
        "metadata": {"a": "b"},
        "envVars": {"X": "1"},
        "allow_internet_access": False,
    }
    assert sandbox.sandbox_id == "i1"
    assert "secret-token" not in repr(sandbox)


async def test_a_block_kills_its_sandbox(client, server):
    async with await client.create():
        assert server.sandboxes
    assert not server.sandboxes


async def test_killing_twice_says_false(client):
    sandbox = await client.create()
    assert await sandbox.kill() is True
    assert await sandbox.kill() is False
    await sandbox.close()


async def test_connect_info_and_timeout(client, server):
    server.sandboxes["i7"] = "key"
    sandbox = await client.connect("i7", timeout_seconds=60)
    info = await sandbox.info()
    await sandbox.set_timeout(5)
    await sandbox.close()
    assert info.state is SandboxState.RUNNING
    assert info.end_at == datetime(2026, 1, 2, 3, 9, 5, 678901, tzinfo=UTC)
    assert json.loads(server.seen[-1].body) == {"timeout": 5}


async def test_connecting_to_nothing_is_not_found(client):
    with pytest.raises(sandlot.NotFound, match="does not exist") as caught:
        await client.connect("i404")
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, sandlot.InvalidArgument),
        (401, sandlot.Unauthenticated),
        (403, sandlot.PermissionDenied),
        (409, sandlot.Conflict),
        (500, sandlot.SandlotError),
    ],
)
async def test_refusals_are_named(client, server, status, kind):
    body = {"code": status, "message": "because", "error_code": "x"}
    server.faults.append(Answer(status, body, {"X-Request-ID": "r1"}))
    with pytest.raises(kind, match="because") as caught:
        await client.create()
    assert (caught.value.error_code, caught.value.request_id) == ("x", "r1")
    assert not server.sandboxes


async def test_an_error_page_is_still_an_error(client, server):
    server.faults.append(Answer(500, b"<html>oops</html>"))
    with pytest.raises(sandlot.SandlotError, match="oops"):
        await client.create()


@pytest.mark.parametrize(
    "fault",
    [
        Answer(429, {"code": 429, "message": "slow down"}, {"Retry-After": "0"}),
        Answer(502, b"bad gateway"),
        Answer(503, {"code": 503, "message": "busy"}),
        Answer(409, {"code": 409, "message": "in progress"}, {"Should-Retry": "true"}),
    ],
)
async def test_create_is_retried_under_one_idempotency_key(client, server, fault):
    server.faults.append(fault)
    sandbox = await client.create()
    await sandbox.close()
    keys = {seen.headers["idempotency-key"] for seen in server.seen}
    assert (len(server.seen), len(keys), len(server.sandboxes)) == (2, 1, 1)


@pytest.mark.parametrize(
    "fault",
    [
        Answer(503, {"code": 503, "message": "no"}, {"Should-Retry": "false"}),
        Answer(429, {"code": 429, "message": "no"}),  # no Retry-After: a permanent limit
        Answer(400, {"code": 400, "message": "no"}),
    ],
)
async def test_what_will_not_get_better_is_not_retried(client, server, fault):
    server.faults.append(fault)
    with pytest.raises(sandlot.SandlotError, match="no"):
        await client.create()
    assert len(server.seen) == 1


async def test_retries_are_bounded(client, server):
    busy = Answer(503, {"code": 503, "message": "busy"}, {"Retry-After": "0"})
    server.faults += [busy] * 9
    with pytest.raises(sandlot.Unavailable, match="busy"):
        await client.create()
    assert len(server.seen) == 4


async def test_a_wait_longer_than_the_request_timeout_is_not_begun(client, server):
    server.faults.append(Answer(503, {"code": 503, "message": "busy"}, {"Retry-After": "9"}))
    with pytest.raises(sandlot.Unavailable, match="busy"):
        await client.create(request_timeout_seconds=2)
    assert len(server.seen) == 1


async def test_no_server_is_unavailable(client, monkeypatch):
    monkeypatch.setenv("SANDLOT_API_URL", "http://127.0.0.1:9")
    with pytest.raises(sandlot.Unavailable):
        await client.create(request_timeout_seconds=0.3)


async def test_files_round_trip(client, server):
    async with await client.create() as sandbox:
        entry = await sandbox.files.write("/tmp/ä b.txt", "grüße")
        assert (entry.path, entry.type) == ("/tmp/ä b.txt", FileType.FILE)
        assert await sandbox.files.read("/tmp/ä b.txt", user="root") == "grüße"
        assert await sandbox.files.read_bytes("/tmp/ä b.txt") == "grüße".encode()
        with pytest.raises(sandlot.NotFound):
            await sandbox.files.read("/none")
    seen = next(seen for seen in server.seen if seen.path == "/files" and seen.method == "GET")
    assert seen.query["username"] == ["root"]
    assert seen.headers["x-access-token"] == "secret-token"
    assert (seen.headers["e2b-sandbox-id"], seen.headers["e2b-sandbox-port"]) == ("i1", "49983")


async def test_list_reads_entries(client):
    async with await client.create() as sandbox:
        (entry,) = await sandbox.files.list("/home/user")
        with pytest.raises(sandlot.InvalidArgument):
            await sandbox.files.list("/", depth=0)
    assert (entry.name, entry.size_bytes, entry.mode) == ("a", 3, 0o644)
    assert entry.modified_at == datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)


async def test_run_gives_output_and_calls_back(client, server):
    server.stream = command_stream(stdout="hé\n".encode(), stderr=b"warn\n")
    heard = []
    async with await client.create() as sandbox:
        result = await sandbox.commands.run(
            "echo", envs={"A": "1"}, cwd="/tmp", user="root", on_stdout=heard.append
        )
    assert (result.stdout, result.stderr, result.exit_code) == ("hé\n", "warn\n", 0)
    assert "".join(heard) == "hé\n"
    seen = next(seen for seen in server.seen if seen.path == "/process.Process/Start")
    assert seen.headers["connect-timeout-ms"] == "60000"
    assert base64.b64decode(seen.headers["authorization"].split()[1]) == b"root:"
    assert json.loads(seen.body[5:]) == {
        "process": {
            "cmd": "/bin/bash",
            "args": ["-l", "-c", "echo"],
            "envs": {"A": "1"},
            "cwd": "/tmp",
        },
        "stdin": False,
    }


async def test_a_bad_exit_is_a_failure_that_holds_the_output(client, server):
    server.stream = command_stream(stdout=b"out", stderr=b"err", code=3)
    async with await client.create() as sandbox:
        with pytest.raises(sandlot.CommandFailed, match="exit status 3: err") as caught:
            await sandbox.commands.run("false")
        result = await sandbox.commands.run("false", check=False)
    assert (caught.value.exit_code, caught.value.stdout, caught.value.stderr) == (3, "out", "err")
    assert result.exit_code == 3


async def test_cut_utf8_becomes_a_replacement_character(client, server):
    server.stream = command_stream(stdout="ab€".encode()[:-1])
    async with await client.create() as sandbox:
        result = await sandbox.commands.run("x")
    assert result.stdout == "ab\ufffd"


async def test_iterating_a_started_command(client, server):
    server.stream = command_stream(stdout=b"1\n", stderr=b"2\n")
    async with await client.create() as sandbox:
        command = await sandbox.commands.start("x", timeout_seconds=None)
        pieces = [piece async for piece in command]
        result = await command.wait()
        assert await command.kill() is False
    assert pieces == [("stdout", "1\n"), ("stderr", "2\n")]
    assert (command.pid, result.stdout) == (9, "1\n")
    seen = next(seen for seen in server.seen if seen.path == "/process.Process/Start")
    assert "connect-timeout-ms" not in seen.headers


async def test_the_servers_deadline_is_a_command_timeout(client, server):
    error = {"error": {"code": "deadline_exceeded", "message": "context deadline exceeded"}}
    server.stream = [{"event": {"start": {"pid": 9}}}, envelope(error, flags=2)]
    async with await client.create() as sandbox:
        with pytest.raises(sandlot.CommandTimeout):
            await sandbox.commands.run("sleep 9", timeout_seconds=0.5)


async def test_a_cut_stream_of_a_dead_sandbox_says_so(client, server):
    server.stream = [{"event": {"start": {"pid": 9}}}]
    server.cuts_stream = True
    sandbox = await client.create()
    command = await sandbox.commands.start("sleep 9")
    server.is_alive = False
    with pytest.raises(sandlot.SandboxGone, match="killed or reached its end of life"):
        await command.wait()
    await sandbox.close()


async def test_a_cut_stream_of_a_live_sandbox_is_a_connection_failure(client, server):
    server.stream = [{"event": {"start": {"pid": 9}}}]
    server.cuts_stream = True
    async with await client.create() as sandbox:
        with pytest.raises(sandlot.Unavailable) as caught:
            await sandbox.commands.run("sleep 9")
    assert not isinstance(caught.value, sandlot.SandboxGone)


async def test_is_running(client, server):
    sandbox = await client.create()
    assert await sandbox.is_running() is True
    server.is_alive = False
    assert await sandbox.is_running() is False
    await sandbox.close()
