"""The data plane before real containers of the base image."""

from __future__ import annotations

import base64
import concurrent.futures
import gzip
import hashlib
import os
import time
from collections.abc import Iterator

import psutil
import pytest

from nodeagent.sandbox import LiveSandbox
from tests.integration.envd.client import Envd, RpcError
from tests.integration.envd.rig import Rig, running_rig

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with running_rig() as rig:
        yield rig


@pytest.fixture(scope="module")
def sandbox(rig: Rig) -> LiveSandbox:
    return rig.create(env_vars={"FROM_CREATE": "1", "BOTH": "create"})


@pytest.fixture(scope="module")
def envd(rig: Rig, sandbox: LiveSandbox) -> Iterator[Envd]:
    envd = Envd(rig, sandbox.sandbox_id)
    yield envd
    envd.close()


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


# Commands


def test_output_exit_code_and_status(envd: Envd) -> None:
    result = envd.run("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
    assert result.end == {
        "exitCode": 3,
        "exited": True,
        "status": "exit status 3",
        "error": "exit status 3",
    }
    assert envd.run("true").end == {"exited": True, "status": "exit status 0"}
    assert envd.run("kill -9 $$").end == {
        "exitCode": -1,
        "status": "signal: killed",
        "error": "signal: killed",
    }


def test_who_and_where(envd: Envd) -> None:
    assert envd.run("id -un; pwd; id -Gn").stdout == b"user\n/home/user\nuser sudo\n"
    assert envd.run("id -un; pwd", user="root").stdout == b"root\n/root\n"
    assert envd.run("sudo id -un").stdout == b"root\n"
    assert envd.run("pwd", process={"cwd": "/tmp"}).stdout == b"/tmp\n"
    with pytest.raises(RpcError, match="unauthenticated: invalid username: 'ghost'"):
        envd.run("true", user="ghost")
    with pytest.raises(RpcError, match="invalid_argument: cwd '/no/where' does not exist"):
        envd.run("true", process={"cwd": "/no/where"})


def test_environment_of_a_call_does_not_leak(envd: Envd) -> None:
    process = {"envs": {"CALL": "yes", "BOTH": "call"}}
    show = "echo $FROM_CREATE $BOTH $CALL $E2B_SANDBOX"
    assert envd.run(show, process=process).stdout == b"1 call yes true\n"
    assert envd.run(show).stdout == b"1 create true\n"


def test_missing_and_unexecutable_programs(envd: Envd) -> None:
    message = {"process": {"cmd": "/no/such"}, "stdin": False}
    with envd.stream("process.Process/Start", message) as stream:
        result = stream.collect()
    assert result.exit_code == 127
    assert result.stderr
    message = {"process": {"cmd": "/etc/passwd"}, "stdin": False}
    with envd.stream("process.Process/Start", message) as stream:
        assert stream.collect().exit_code == 126


def test_binary_output_of_any_size_arrives_whole(envd: Envd) -> None:
    command = (
        'python3 -c "import sys,hashlib; d=bytes(range(256))*200000; '
        'sys.stdout.buffer.write(d); sys.stderr.write(hashlib.sha256(d).hexdigest())"'
    )
    result = envd.run(command)
    assert hashlib.sha256(result.stdout).hexdigest().encode() == result.stderr


def test_stdin_to_the_end(envd: Envd) -> None:
    with envd.start("cat", stdin=True) as (pid, stream):
        selector = {"pid": pid}
        for data in (b"text \xe2\x82\xac\n", b"\x00\xff", b"", b"x" * 200_000):
            message = {"process": selector, "input": {"stdin": encode(data)}}
            assert envd.rpc("process.Process/SendInput", message) == {}
        assert envd.rpc("process.Process/CloseStdin", {"process": selector}) == {}
        result = stream.collect()
    assert result.stdout == b"text \xe2\x82\xac\n\x00\xff" + b"x" * 200_000
    assert result.exit_code == 0


def test_list_join_and_kill(envd: Envd) -> None:
    with envd.start("echo ready; sleep 600", tag="sleeper") as (pid, stream):
        listed = envd.rpc("process.Process/List", {})["processes"]
        assert [item["pid"] for item in listed if item.get("tag") == "sleeper"] == [pid]
        with envd.stream("process.Process/Connect", {"process": {"pid": pid}}) as joined:
            first = next(iter(joined))
            assert first == {"event": {"start": {"pid": pid}}}
            kill = {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"}
            assert envd.rpc("process.Process/SendSignal", kill) == {}
            assert envd.run(f"kill -0 {pid}").exit_code != 0
            assert joined.collect().end["status"] == "signal: killed"
        assert stream.collect().exit_code == -1
    with pytest.raises(RpcError, match=f"not_found: process with pid {pid} not found"):
        envd.rpc("process.Process/SendSignal", kill)


def test_a_deadline_kills_even_after_the_client_has_left(envd: Envd) -> None:
    started = time.monotonic()
    with (
        pytest.raises(RpcError, match="deadline_exceeded: context deadline exceeded"),
        envd.start("sleep 600", headers={"connect_timeout_ms": "500"}) as (pid, stream),
    ):
        stream.collect()
    assert time.monotonic() - started < 5
    with envd.start("sleep 600", headers={"connect_timeout_ms": "700"}) as (other, _):
        pass
    wait_until(lambda: envd.run(f"kill -0 {pid} {other}").exit_code != 0)
    wait_until(lambda: other not in running(envd))


def running(envd: Envd) -> list[int]:
    listed = envd.rpc("process.Process/List", {}).get("processes", [])
    return [item["pid"] for item in listed]


def wait_until(condition) -> None:
    ends_at = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.02)


def test_two_hundred_commands_at_once(rig: Rig, sandbox: LiveSandbox) -> None:
    envd = Envd(rig, sandbox.sandbox_id, timeout_seconds=60)

    def run(number: int) -> bytes:
        message = {"process": {"cmd": "/bin/sh", "args": ["-c", f"sleep 1; echo {number}"]}}
        with envd.stream("process.Process/Start", message) as stream:
            return stream.collect().stdout

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        outputs = list(pool.map(run, range(200)))
    envd.close()
    assert outputs == [b"%d\n" % number for number in range(200)]


def test_a_reader_that_stops_holds_the_process_and_costs_nothing(envd: Envd) -> None:
    process = psutil.Process()
    with envd.start("head -c 300000000 /dev/zero; echo done >&2") as (_, stream):
        next(iter(stream))
        before = process.memory_info().rss
        time.sleep(1)
        assert process.memory_info().rss - before < 30 << 20
        result_size = 0
        for message in stream:
            data = message["event"].get("data", {})
            result_size += len(data.get("stdout", "")) * 3 // 4
        assert result_size >= 290_000_000


# PTY


def test_pty_size_input_resize_and_reconnect(envd: Envd) -> None:
    pty = {"size": {"cols": 80, "rows": 24}}
    process = {"args": ["-i", "-l"], "envs": {"TERM": "xterm-256color"}}
    with envd.start("", pty=pty, process=process) as (pid, stream):
        selector = {"pid": pid}

        def type_(text: str) -> None:
            message = {"process": selector, "input": {"pty": encode(text.encode())}}
            envd.rpc("process.Process/SendInput", message)

        type_("tput cols\n")  # before there is a prompt
        assert read_until(stream, b"\r80\r\n")
        size = {"process": selector, "pty": {"size": {"cols": 133, "rows": 40}}}
        envd.rpc("process.Process/Update", size)
        type_("tput cols\n")
        assert read_until(stream, b"\r133\r\n")
    with envd.stream("process.Process/Connect", {"process": selector}) as stream:
        assert next(iter(stream))["event"]["start"]["pid"] == pid
        type_("echo again-$((40+2)); exit\n")
        result = stream.collect()
    assert b"again-42" in result.pty
    assert result.exit_code == 0


def read_until(stream, wanted: bytes) -> bool:
    seen = b""
    for message in stream:
        seen += base64.b64decode(message["event"].get("data", {}).get("pty", ""))
        if wanted in seen:
            return True
    return False


# Files


def upload(envd: Envd, path: str, content, **headers: str):
    headers = {"content-type": "application/octet-stream", **headers}
    return envd.http.post("/files", params={"path": path}, content=content, headers=headers)


def test_round_trips_by_hash(envd: Envd) -> None:
    for size in (0, 1, 65_536, 5_000_001):
        data = os.urandom(size)
        assert upload(envd, f"r/{size}", data).json() == [
            {"path": f"/home/user/r/{size}", "name": str(size), "type": "file"}
        ]
        for encoding in ("identity", "gzip"):
            headers = {"accept-encoding": encoding}
            got = envd.http.get("/files", params={"path": f"r/{size}"}, headers=headers)
            assert got.content == data
        packed = gzip.compress(data)
        assert upload(envd, "r/z", packed, **{"content-encoding": "gzip"}).status_code == 200
        assert envd.http.get("/files", params={"path": "r/z"}).content == data
    assert envd.run("stat -c '%U %a' r r/1").stdout == b"user 755\nuser 644\n"


def test_large_files_leave_memory_flat(envd: Envd) -> None:
    process = psutil.Process()
    size, piece = 256 << 20, os.urandom(1 << 20)
    digest = hashlib.sha256()
    peak = 0

    def content() -> Iterator[bytes]:
        nonlocal peak
        for _ in range(size // len(piece)):
            digest.update(piece)
            peak = max(peak, process.memory_info().rss)
            yield piece

    before = process.memory_info().rss
    assert upload(envd, "/tmp/large", content()).status_code == 200
    received = hashlib.sha256()
    headers = {"accept-encoding": "identity"}
    with envd.http.stream("GET", "/files?path=/tmp/large", headers=headers) as answer:
        for chunk in answer.iter_raw():
            received.update(chunk)
            peak = max(peak, process.memory_info().rss)
    envd.run("rm /tmp/large")
    assert received.digest() == digest.digest()
    assert peak - before < 64 << 20


def test_proc_files_ranges_and_errors(envd: Envd) -> None:
    got = envd.http.get("/files", params={"path": "/proc/self/status"})
    assert b"Name:" in got.content
    upload(envd, "range", b"0123456789")
    got = envd.http.get("/files", params={"path": "range"}, headers={"range": "bytes=2-4"})
    assert (got.status_code, got.content) == (206, b"234")
    got = envd.http.get("/files", params={"path": "absent"})
    assert (got.status_code, got.json()["message"]) == (
        404,
        "path '/home/user/absent' does not exist",
    )
    assert envd.http.get("/files", params={"path": "/tmp"}).status_code == 400
    assert envd.http.get("/files", params={"path": "x", "username": "ghost"}).json() == {
        "code": 401,
        "message": "error looking up user 'ghost': user: unknown user ghost",
    }


def test_metadata_and_root(envd: Envd) -> None:
    headers = {"content-type": "application/octet-stream", "x-metadata-Kind": "test"}
    got = envd.http.post(
        "/files", params={"path": "m", "username": "root"}, content=b"x", headers=headers
    )
    assert got.json()[0] == {
        "path": "/root/m",
        "name": "m",
        "type": "file",
        "metadata": {"kind": "test"},
    }
    entry = envd.rpc("filesystem.Filesystem/Stat", {"path": "m"}, user="root")["entry"]
    assert (entry["metadata"], entry["owner"]) == ({"kind": "test"}, "root")


def test_filesystem_calls(envd: Envd) -> None:
    fs = "filesystem.Filesystem"
    assert envd.rpc(f"{fs}/MakeDir", {"path": "fs/a/b"})["entry"]["path"] == "/home/user/fs/a/b"
    with pytest.raises(RpcError, match="already_exists: directory already exists"):
        envd.rpc(f"{fs}/MakeDir", {"path": "fs/a"})
    upload(envd, "fs/a/b/c", b"1")
    listed = envd.rpc(f"{fs}/ListDir", {"path": "fs", "depth": 3})["entries"]
    names = [entry["path"].removeprefix("/home/user/fs/") for entry in listed]
    assert names == ["a", "a/b", "a/b/c"]
    envd.rpc(f"{fs}/Move", {"source": "fs/a/b/c", "destination": "fs/new/c"})
    with pytest.raises(RpcError, match="not_found: file not found"):
        envd.rpc(f"{fs}/Stat", {"path": "fs/a/b/c"})
    envd.run("ln -s c fs/new/link")
    entry = envd.rpc(f"{fs}/Stat", {"path": "fs/new/link"})["entry"]
    assert (entry["type"], entry["symlinkTarget"]) == ("FILE_TYPE_FILE", "/home/user/fs/new/c")
    assert envd.rpc(f"{fs}/Remove", {"path": "fs"}) == {}
    assert envd.rpc(f"{fs}/Remove", {"path": "fs"}) == {}


def test_an_upload_into_a_watched_directory_is_three_events(envd: Envd) -> None:
    fs = "filesystem.Filesystem"
    envd.rpc(f"{fs}/MakeDir", {"path": "watched"})
    watcher = envd.rpc(f"{fs}/CreateWatcher", {"path": "watched"})
    upload(envd, "watched/new.txt", b"content")
    events = envd.rpc(f"{fs}/GetWatcherEvents", watcher)["events"]
    assert [(event["name"], event["type"]) for event in events] == [
        ("new.txt", "EVENT_TYPE_CREATE"),
        ("new.txt", "EVENT_TYPE_CHMOD"),
        ("new.txt", "EVENT_TYPE_WRITE"),
    ]
    assert envd.rpc(f"{fs}/GetWatcherEvents", watcher) == {}
    assert envd.rpc(f"{fs}/RemoveWatcher", watcher) == {}
    with pytest.raises(RpcError, match="not_found: watcher with id"):
        envd.rpc(f"{fs}/GetWatcherEvents", watcher)


def test_watch_dir_recursively(envd: Envd) -> None:
    fs = "filesystem.Filesystem"
    envd.rpc(f"{fs}/MakeDir", {"path": "tree"})
    message = {"path": "tree", "recursive": True, "includeEntry": True}
    with envd.stream(f"{fs}/WatchDir", message) as stream:
        events = iter(stream)
        assert next(events) == {"start": {}}
        envd.rpc(f"{fs}/MakeDir", {"path": "tree/sub"})
        event = next(events)["filesystem"]
        assert (event["name"], event["type"]) == ("sub", "EVENT_TYPE_CREATE")
        assert event["entry"]["path"] == "/home/user/tree/sub"
        upload(envd, "tree/sub/f", b"x")
        names = {next(events)["filesystem"]["name"]}
        while "sub/f" not in names:
            names.add(next(events)["filesystem"]["name"])


# Ports


@pytest.mark.parametrize(
    ("address", "port"), [("127.0.0.1", 7001), ("::1", 7002), ("0.0.0.0", 7003)]
)
def test_services_are_reached_wherever_they_listen(
    rig: Rig, sandbox: LiveSandbox, envd: Envd, address: str, port: int
) -> None:
    command = f"cd /etc && python3 -m http.server --bind {address} {port}"
    with envd.start(command) as (pid, _):
        headers = {"host": f"{port}-{sandbox.sandbox_id}.sandbox.test"}
        wait_until(lambda: envd.http.get("/hostname", headers=headers).status_code == 200)
        assert envd.http.get("/debian_version", headers=headers).text.startswith("12")
        kill = {"process": {"pid": pid}, "signal": "SIGNAL_SIGTERM"}
        envd.rpc("process.Process/SendSignal", kill)
    closed = {"host": f"7999-{sandbox.sandbox_id}.sandbox.test"}
    answer = envd.http.get("/", headers=closed)
    assert (answer.status_code, answer.json()["port"]) == (502, 7999)


# The agent restarts; the sandbox ends


def test_processes_and_watchers_survive_a_new_agent(rig: Rig, envd: Envd) -> None:
    sandbox = rig.create()
    mine = Envd(rig, sandbox.sandbox_id)
    with mine.start("cat", stdin=True, tag="kept") as (pid, _):
        pass
    watcher = mine.rpc("filesystem.Filesystem/CreateWatcher", {"path": "/tmp"})

    async def forget() -> None:
        await sandbox.envd.close()
        sandbox.envd = None

    rig.run(forget())
    with running_rig() as other:
        again = other.add(sandbox.spec, link=sandbox.link)
        client = Envd(other, again.sandbox_id)
        [listed] = client.rpc("process.Process/List", {})["processes"]
        assert (listed["pid"], listed["tag"]) == (pid, "kept")
        upload(client, "/tmp/seen", b"x")
        events = client.rpc("filesystem.Filesystem/GetWatcherEvents", watcher)["events"]
        assert len(events) == 3
        with client.stream("process.Process/Connect", {"process": {"pid": pid}}) as stream:
            next(iter(stream))
            message = {"process": {"pid": pid}, "input": {"stdin": encode(b"hello")}}
            client.rpc("process.Process/SendInput", message)
            client.rpc("process.Process/CloseStdin", {"process": {"pid": pid}})
            assert stream.collect().stdout == b"hello"
        client.close()
    mine.close()
    rig.kill(sandbox)


def test_a_container_that_dies_ends_its_streams(rig: Rig) -> None:
    sandbox = rig.create()
    envd = Envd(rig, sandbox.sandbox_id)
    with envd.start("sleep 600") as (_, stream):
        rig._containers[sandbox.sandbox_id].kill()
        with pytest.raises(RpcError) as caught:
            stream.collect()
    assert caught.value.code == "unavailable"
    envd.close()
    rig.kill(sandbox)
