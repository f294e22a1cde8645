"""filesystem.Filesystem as its clients see it; what the guest does is tested with the guest."""

from __future__ import annotations

import pytest

from nodeagent.envd import filesystem
from nodeagent.errors import AgentError
from tests.unit.envd.asgi import basic, make_client

FS = "/filesystem.Filesystem"


async def test_stat_and_its_error() -> None:
    client, sandbox, _ = make_client()
    sandbox.link.files["/home/user/a.txt"] = b"hello"
    answer = await client.rpc(f"{FS}/Stat", {"path": "a.txt"})
    entry = answer.json()["entry"]
    assert (entry["path"], entry["size"], entry["type"]) == (
        "/home/user/a.txt",
        "5",
        "FILE_TYPE_FILE",
    )
    answer = await client.rpc(f"{FS}/Stat", {"path": "b.txt"})
    assert answer.status == 404
    assert answer.json()["code"] == "not_found"
    assert answer.json()["message"].startswith("file not found: ")


async def test_the_user_decides_where_a_relative_path_is() -> None:
    client, sandbox, _ = make_client()
    sandbox.link.files["/root/a.txt"] = b""
    answer = await client.rpc(f"{FS}/Stat", {"path": "a.txt"}, headers=basic("root"))
    assert answer.json()["entry"]["path"] == "/root/a.txt"
    answer = await client.rpc(f"{FS}/Stat", {"path": "a.txt"}, headers=basic("ghost"))
    assert (answer.status, answer.json()) == (
        401,
        {"code": "unauthenticated", "message": "invalid username: 'ghost'"},
    )


async def test_make_dir_twice() -> None:
    client, _, _ = make_client()
    assert (await client.rpc(f"{FS}/MakeDir", {"path": "d"})).status == 200
    answer = await client.rpc(f"{FS}/MakeDir", {"path": "d"})
    assert (answer.status, answer.json()) == (
        409,
        {"code": "already_exists", "message": "directory already exists: /home/user/d"},
    )


async def test_list_move_remove() -> None:
    client, sandbox, _ = make_client()
    assert (await client.rpc(f"{FS}/ListDir", {"path": ""})).json() == {}
    sandbox.link.files["/home/user/a"] = b"1"
    listed = (await client.rpc(f"{FS}/ListDir", {"path": "", "depth": 1})).json()["entries"]
    assert [entry["name"] for entry in listed] == ["a"]
    moved = await client.rpc(f"{FS}/Move", {"source": "a", "destination": "b"})
    assert moved.json()["entry"]["path"] == "/home/user/b"
    assert (await client.rpc(f"{FS}/Remove", {"path": "b"})).json() == {}
    assert (await client.rpc(f"{FS}/Remove", {"path": "b"})).json() == {}


async def test_binary_clients_get_the_same_answers() -> None:
    from nodeagent.envd.proto import filesystem_pb2 as pb

    client, sandbox, _ = make_client()
    sandbox.link.files["/home/user/a"] = b"123"
    sandbox.link.metadata["/home/user/a"] = {"k": "v"}
    answer = await client.ask(
        "POST",
        f"{FS}/Stat",
        headers={"content-type": "application/proto"},
        body=pb.StatRequest(path="a").SerializeToString(),
    )
    assert answer.headers["content-type"] == "application/proto"
    entry = pb.StatResponse.FromString(answer.body).entry
    assert (entry.path, entry.size, entry.mode, dict(entry.metadata)) == (
        "/home/user/a",
        3,
        0o644,
        {"k": "v"},
    )
    assert entry.modified_time.nanos == 6


async def test_watch_dir_streams_events_until_the_client_leaves() -> None:
    client, sandbox, _ = make_client()
    conversation = client.stream(f"{FS}/WatchDir", {"path": "."})
    await conversation.until(conversation.answer.messages)
    watch = sandbox.link.watches[0]
    event = {"name": "a", "type": "EVENT_TYPE_CREATE"}
    watch.queue.put_nowait(event)
    await conversation.until(lambda: len(conversation.answer.messages()) == 2)
    assert conversation.answer.messages() == [{"start": {}}, {"filesystem": event}]
    assert not watch.is_closed
    conversation.hang_up()
    await conversation.task
    assert watch.is_closed


async def test_a_failing_watch_says_so() -> None:
    client, sandbox, _ = make_client()
    conversation = client.stream(f"{FS}/WatchDir", {"path": "."})
    await conversation.until(conversation.answer.messages)
    sandbox.link.watches[0].queue.put_nowait(AgentError("queue overflow"))
    await conversation.task
    assert conversation.answer.end()["error"] == {
        "code": "internal",
        "message": "watcher error: queue overflow",
    }
    answer = await client.run_stream(f"{FS}/WatchDir", {"path": "/missing"})
    assert answer.end()["error"]["code"] == "not_found"


async def test_the_deadline_of_a_watch_ends_only_the_stream() -> None:
    client, sandbox, _ = make_client()
    headers = {"connect-timeout-ms": "30"}
    answer = await client.run_stream(f"{FS}/WatchDir", {"path": "."}, headers=headers)
    assert answer.messages() == [{"start": {}}]
    assert answer.end()["error"]["code"] == "deadline_exceeded"
    assert sandbox.link.watches[0].is_closed


async def test_polled_watcher_returns_and_clears_and_is_gone_after_removal() -> None:
    client, sandbox, _ = make_client()
    created = (await client.rpc(f"{FS}/CreateWatcher", {"path": "."})).json()
    watcher_id = created["watcherId"]
    events = [{"name": "a", "type": "EVENT_TYPE_CREATE"}, {"name": "a", "type": "EVENT_TYPE_CHMOD"}]
    sandbox.link.watches[0].events = list(events)
    get = f"{FS}/GetWatcherEvents"
    assert (await client.rpc(get, created)).json() == {"events": events}
    assert (await client.rpc(get, {"watcher_id": watcher_id})).json() == {}
    assert (await client.rpc(f"{FS}/RemoveWatcher", created)).json() == {}
    for method in ("GetWatcherEvents", "RemoveWatcher"):
        answer = await client.rpc(f"{FS}/{method}", created)
        assert (answer.status, answer.json()) == (
            404,
            {"code": "not_found", "message": f"watcher with id {watcher_id} not found"},
        )


async def test_a_watcher_survives_a_restart_of_the_agent() -> None:
    client, sandbox, _ = make_client()
    created = (await client.rpc(f"{FS}/CreateWatcher", {"path": "."})).json()
    sandbox.envd = None
    sandbox.link.watches[0].events = [{"name": "a", "type": "EVENT_TYPE_WRITE"}]
    answer = await client.rpc(f"{FS}/GetWatcherEvents", created)
    assert len(answer.json()["events"]) == 1


async def test_watchers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "MAX_KEPT_WATCHERS", 2)
    client, _, _ = make_client()
    for _ in range(2):
        assert (await client.rpc(f"{FS}/CreateWatcher", {"path": "."})).status == 200
    answer = await client.rpc(f"{FS}/CreateWatcher", {"path": "."})
    assert (answer.status, answer.json()["code"]) == (429, "resource_exhausted")
