"""process.Process as its clients see it."""

from __future__ import annotations

import asyncio
import base64

import pytest

from nodeagent.envd import processes
from nodeagent.envd.adoption import adopt
from nodeagent.errors import GuestFault
from tests.unit.envd.asgi import Client, Conversation, basic, make_client, until

START = "/process.Process/Start"
CONNECT = "/process.Process/Connect"
RUN = {"process": {"cmd": "/bin/bash", "args": ["-l", "-c", "echo hi"]}, "stdin": False}


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def started(client: Client, message=RUN, **arguments) -> Conversation:
    conversation = client.stream(START, message, **arguments)
    await conversation.until(lambda: conversation.answer.messages())
    return conversation


def channel_of(sandbox, pid=None):
    channels = sandbox.link.processes
    return channels[pid] if pid else next(iter(channels.values()))


async def test_start_streams_start_output_end_and_the_end_of_stream() -> None:
    client, sandbox, node = make_client()
    conversation = await started(client)
    channel = channel_of(sandbox)
    channel.emit("stdout", b"hi\n")
    channel.emit("stderr", b"oh")
    channel.end(0)
    await conversation.task
    answer = conversation.answer
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/connect+json"
    assert answer.messages() == [
        {"event": {"start": {"pid": channel.pid}}},
        {"event": {"data": {"stdout": encode(b"hi\n")}}},
        {"event": {"data": {"stderr": encode(b"oh")}}},
        {"event": {"end": {"status": "exit status 0", "exited": True}}},
    ]
    assert answer.end() == {}
    assert [message for message, _ in node.logged] == ["Process started", "Process ended"]


async def test_a_failed_process_says_so_in_its_end() -> None:
    client, sandbox, _ = make_client()
    conversation = await started(client)
    channel_of(sandbox).end(3)
    await conversation.task
    assert conversation.answer.messages()[-1] == {
        "event": {
            "end": {
                "status": "exit status 3",
                "exitCode": 3,
                "exited": True,
                "error": "exit status 3",
            }
        }
    }


async def test_a_killed_process_ends_with_minus_one() -> None:
    client, sandbox, _ = make_client()
    conversation = await started(client)
    channel_of(sandbox).end_by_signal("killed")
    await conversation.task
    assert conversation.answer.messages()[-1]["event"]["end"] == {
        "status": "signal: killed",
        "exitCode": -1,
        "error": "signal: killed",
    }


async def test_environment_later_layers_win() -> None:
    client, sandbox, _ = make_client(env_vars={"A": "create", "B": "create", "E2B_SANDBOX": "no"})
    message = {"process": {"cmd": "x", "envs": {"B": "call", "C": ""}}}
    conversation = await started(client, message)
    env = channel_of(sandbox).arguments["env"]
    assert env == {
        "A": "create",
        "B": "call",
        "C": "",
        "E2B_SANDBOX": "true",
        "E2B_SANDBOX_ID": "abc",
        "E2B_TEMPLATE_ID": "base",
    }
    conversation.hang_up()


@pytest.mark.parametrize(
    ("fields", "expected"), [({}, True), ({"stdin": True}, True), ({"stdin": False}, False)]
)
async def test_stdin_is_a_pipe_unless_refused(fields, expected) -> None:
    client, sandbox, _ = make_client()
    conversation = await started(client, {"process": {"cmd": "x"}, **fields})
    assert channel_of(sandbox).arguments["stdin"] is expected
    conversation.hang_up()


async def test_errors_of_start_come_in_the_stream_with_nothing_before() -> None:
    client, _, _ = make_client()
    answer = await client.run_stream(START, {"process": {"cmd": "x", "cwd": "/missing"}})
    assert answer.status == 200
    assert answer.messages() == []
    assert answer.end() == {
        "error": {"code": "invalid_argument", "message": "cwd '/missing' does not exist"}
    }


async def test_unknown_user_comes_before_a_bad_timeout() -> None:
    client, _, _ = make_client()
    headers = basic("ghost") | {"connect-timeout-ms": "soon"}
    answer = await client.run_stream(START, RUN, headers=headers)
    assert answer.end()["error"] == {
        "code": "unauthenticated",
        "message": "invalid username: 'ghost'",
    }
    answer = await client.run_stream(START, RUN, headers={"connect-timeout-ms": "soon"})
    assert answer.end()["error"]["code"] == "invalid_argument"


async def test_a_default_user_that_does_not_exist() -> None:
    client, _, _ = make_client(default_user="nobody")
    answer = await client.run_stream(START, RUN)
    assert answer.end()["error"] == {
        "code": "unauthenticated",
        "message": "invalid default user: 'nobody'",
    }


async def test_deadline_ends_the_stream_and_reaches_the_guest() -> None:
    client, sandbox, _ = make_client()
    conversation = await started(client, headers={"connect-timeout-ms": "50"})
    await conversation.task
    assert conversation.answer.end() == {
        "error": {"code": "deadline_exceeded", "message": "context deadline exceeded"}
    }
    assert channel_of(sandbox).arguments["deadline_seconds"] == 0.05


async def test_timeout_zero_means_none() -> None:
    client, sandbox, _ = make_client()
    conversation = await started(client, headers={"connect-timeout-ms": "0"})
    assert channel_of(sandbox).arguments["deadline_seconds"] is None
    conversation.hang_up()


async def test_keepalives_are_sent_on_a_silent_stream(monkeypatch) -> None:
    client, sandbox, _ = make_client()
    monkeypatch.setattr("nodeagent.envd.connect.Call.keepalive_seconds", lambda call: 0.01)
    conversation = await started(client)
    await conversation.until(
        lambda: conversation.answer.messages()[-1] == {"event": {"keepalive": {}}}
    )
    channel_of(sandbox).end()
    await conversation.task
    assert conversation.answer.end() == {}


async def test_the_process_outlives_its_client_and_can_be_joined() -> None:
    client, sandbox, _ = make_client()
    first = await started(client)
    first.hang_up()
    await asyncio.wait([first.task])
    channel = channel_of(sandbox)
    channel.emit("stdout", b"unheard")
    await until(lambda: channel.taken == 1)
    second = client.stream(CONNECT, {"process": {"pid": channel.pid}})
    await second.until(second.answer.messages)
    channel.emit("stdout", b"heard")
    channel.end()
    await second.task
    assert second.answer.messages()[0] == {"event": {"start": {"pid": channel.pid}}}
    assert second.answer.output() == b"heard"


async def test_a_process_started_for_a_client_that_has_left_is_still_listed() -> None:
    client, sandbox, _ = make_client()
    sandbox.link.start_gate = asyncio.Event()
    conversation = client.stream(START, RUN)
    await until(lambda: sandbox.envd and sandbox.envd._tasks)
    conversation.hang_up()
    await asyncio.wait([conversation.task])
    sandbox.link.start_gate.set()
    await until(lambda: sandbox.link.processes)
    channel = channel_of(sandbox)
    for _ in range(200):  # far more than a subscriber's queue holds: nobody may hold it back
        channel.emit("stdout", b"x")
    await until(lambda: channel.taken == 200)
    answer = await client.rpc("/process.Process/List")
    assert [found["pid"] for found in answer.json()["processes"]] == [channel.pid]


async def test_every_subscriber_gets_all_output() -> None:
    client, sandbox, _ = make_client()
    first = await started(client)
    channel = channel_of(sandbox)
    second = client.stream(CONNECT, {"process": {"pid": channel.pid}})
    await second.until(second.answer.messages)
    pieces = [b"%d," % number for number in range(500)]
    for piece in pieces:
        channel.emit("stdout", piece)
    channel.end()
    await asyncio.gather(first.task, second.task)
    assert first.answer.output() == second.answer.output() == b"".join(pieces)


async def test_a_slow_client_holds_the_process_back_and_a_lost_one_does_not() -> None:
    client, sandbox, _ = make_client()
    conversation = await started(client)
    channel = channel_of(sandbox)
    conversation.may_send.clear()
    for _ in range(1000):
        channel.emit("stdout", b"x" * 32768)
    for _ in range(3000):
        await asyncio.sleep(0)
    held_at = channel.taken
    assert held_at < 200  # 64 queued, and what one send carries
    conversation.hang_up()
    await until(lambda: channel.taken == 1000)


async def test_an_event_is_never_larger_than_its_stream_allows() -> None:
    client, sandbox, _ = make_client()
    conversation = await started(client)
    data = bytes(range(256)) * 400
    channel_of(sandbox).emit("stdout", data)
    channel_of(sandbox).end()
    await conversation.task
    sizes = [
        len(base64.b64decode(message["event"]["data"]["stdout"]))
        for message in conversation.answer.messages()
        if "data" in message["event"]
    ]
    assert max(sizes) <= 32768
    assert conversation.answer.output() == data


async def test_connect_to_a_process_that_just_ended_gives_its_end_only() -> None:
    client, sandbox, _ = make_client()
    conversation = await started(client)
    channel = channel_of(sandbox)
    channel.emit("stdout", b"gone")
    channel.end(2)
    await conversation.task
    answer = await client.run_stream(CONNECT, {"process": {"pid": channel.pid}})
    assert answer.messages() == [
        {"event": {"start": {"pid": channel.pid}}},
        conversation.answer.messages()[-1],
    ]
    assert answer.end() == {}


async def test_an_ended_process_is_forgotten_in_time(monkeypatch) -> None:
    client, sandbox, _ = make_client()
    conversation = await started(client)
    channel_of(sandbox).end()
    await conversation.task
    monkeypatch.setattr(processes, "RETAIN_SECONDS", -1.0)
    pid = channel_of(sandbox).pid
    answer = await client.run_stream(CONNECT, {"process": {"pid": pid}})
    assert answer.end()["error"] == {
        "code": "not_found",
        "message": f"process with pid {pid} not found",
    }


async def test_selection_by_tag() -> None:
    client, _sandbox, _ = make_client()
    conversation = await started(client, {**RUN, "tag": "job"})
    listed = (await client.rpc("/process.Process/List")).json()["processes"]
    assert listed[0]["tag"] == "job"
    answer = await client.rpc(
        "/process.Process/SendSignal",
        {"process": {"tag": "job"}, "signal": "SIGNAL_SIGKILL"},
    )
    assert answer.json() == {}
    await conversation.task
    answer = await client.rpc(
        "/process.Process/SendSignal", {"process": {"tag": "other"}, "signal": 9}
    )
    assert (answer.status, answer.json()) == (
        404,
        {"code": "not_found", "message": "process with tag other not found"},
    )


async def test_list_gives_the_config_as_it_was_sent() -> None:
    client, sandbox, _ = make_client()
    assert (await client.rpc("/process.Process/List")).json() == {}
    config = {"cmd": "/bin/x", "args": ["a", ""], "envs": {"K": "v"}, "cwd": ""}
    conversation = await started(client, {"process": config})
    answer = await client.rpc("/process.Process/List")
    assert answer.json() == {"processes": [{"config": config, "pid": channel_of(sandbox).pid}]}
    conversation.hang_up()


@pytest.mark.parametrize("method", ["SendInput", "SendSignal", "CloseStdin", "Update"])
async def test_calls_without_a_selector_are_unimplemented(method) -> None:
    client, _, _ = make_client()
    answer = await client.rpc(f"/process.Process/{method}")
    assert (answer.status, answer.json()["code"]) == (501, "unimplemented")


@pytest.mark.parametrize("method", ["SendInput", "SendSignal", "CloseStdin", "Update"])
async def test_calls_for_an_unknown_process_are_not_found(method) -> None:
    client, _, _ = make_client()
    answer = await client.rpc(f"/process.Process/{method}", {"process": {"pid": 999999}})
    assert (answer.status, answer.json()) == (
        404,
        {"code": "not_found", "message": "process with pid 999999 not found"},
    )


async def test_input_reaches_the_process_and_empty_input_does_nothing() -> None:
    client, sandbox, _ = make_client()
    conversation = await started(client, {"process": {"cmd": "cat"}})
    channel = channel_of(sandbox)
    for data in (b"a\x00\xff", b"", b"b"):
        message = {"process": {"pid": channel.pid}, "input": {"stdin": encode(data)}}
        answer = await client.rpc("/process.Process/SendInput", message)
        assert (answer.status, answer.json()) == (200, {})
    assert channel.written == b"a\x00\xffb"
    answer = await client.rpc("/process.Process/CloseStdin", {"process": {"pid": channel.pid}})
    assert answer.json() == {}
    answer = await client.rpc("/process.Process/SendInput", message)
    assert (answer.status, answer.json()["message"]) == (
        500,
        "error writing to stdin: stdin not enabled or closed",
    )
    conversation.hang_up()


async def test_input_of_the_wrong_kind_says_which_to_use() -> None:
    client, sandbox, _ = make_client()
    pipe = await started(client)
    pty = await started(client, {**RUN, "pty": {"size": {"cols": 100, "rows": 30}}})
    pipe_pid, pty_pid = sorted(sandbox.link.processes)
    assert sandbox.link.processes[pty_pid].arguments["pty"] == (100, 30)
    send = "/process.Process/SendInput"
    answer = await client.rpc(send, {"process": {"pid": pty_pid}, "input": {"stdin": "eA=="}})
    assert answer.json() == {
        "code": "internal",
        "message": "error writing to stdin: tty assigned to process — "
        "input should be written to the pty, not the stdin",
    }
    answer = await client.rpc(send, {"process": {"pid": pipe_pid}, "input": {"pty": "eA=="}})
    assert answer.json() == {
        "code": "internal",
        "message": "error writing to tty: tty not assigned to process — "
        "input should be written to the stdin, not the tty",
    }
    answer = await client.rpc(send, {"process": {"pid": pipe_pid}, "input": {}})
    assert answer.json()["code"] == "unimplemented"
    answer = await client.rpc("/process.Process/CloseStdin", {"process": {"pid": pty_pid}})
    assert answer.json() == {
        "code": "unknown",
        "message": "error closing stdin: cannot close stdin for PTY process — "
        "send Ctrl+D (0x04) instead",
    }
    pipe.hang_up()
    pty.hang_up()


async def test_resize() -> None:
    client, sandbox, _ = make_client()
    conversation = await started(client, {**RUN, "pty": {"size": {"cols": 80, "rows": 24}}})
    channel = channel_of(sandbox)
    selector = {"pid": channel.pid}
    update = "/process.Process/Update"
    size = {"size": {"cols": 120, "rows": 50}}
    assert (await client.rpc(update, {"process": selector, "pty": size})).json() == {}
    assert channel.size == (120, 50)
    assert (await client.rpc(update, {"process": selector})).json() == {}
    conversation.hang_up()
    other = await started(client)
    pid = max(sandbox.link.processes)
    answer = await client.rpc(update, {"process": {"pid": pid}, "pty": size})
    assert answer.json()["message"] == "error resizing tty: tty not assigned to process"
    other.hang_up()


async def test_only_two_signals() -> None:
    client, sandbox, _ = make_client()
    conversation = await started(client)
    selector = {"pid": channel_of(sandbox).pid}
    for signal in ("SIGNAL_UNSPECIFIED", 0):
        answer = await client.rpc(
            "/process.Process/SendSignal", {"process": selector, "signal": signal}
        )
        assert answer.json() == {
            "code": "unimplemented",
            "message": "invalid signal: SIGNAL_UNSPECIFIED",
        }
    conversation.hang_up()


async def test_stream_input_in_order_and_error_before_start() -> None:
    client, sandbox, _ = make_client()
    conversation = await started(client, {"process": {"cmd": "cat"}})
    channel = channel_of(sandbox)
    answer = await client.run_stream(
        "/process.Process/StreamInput",
        {"start": {"process": {"pid": channel.pid}}},
        {"data": {"input": {"stdin": encode(b"one ")}}},
        {"keepalive": {}},
        {"data": {"input": {"stdin": encode(b"two")}}},
    )
    assert answer.messages() == [{}]
    assert answer.end() == {}
    assert channel.written == b"one two"
    early = {"data": {"input": {"stdin": "eA=="}}}
    answer = await client.run_stream("/process.Process/StreamInput", early)
    assert answer.end()["error"]["code"] == "invalid_argument"
    gone = {"start": {"process": {"pid": 12345}}}
    answer = await client.run_stream("/process.Process/StreamInput", gone)
    assert answer.end()["error"]["code"] == "not_found"
    conversation.hang_up()


async def test_a_lost_guest_ends_the_stream_as_unavailable() -> None:
    client, sandbox, _ = make_client()
    conversation = await started(client)
    channel_of(sandbox).emit("stdout", b"last words")
    channel_of(sandbox).fail(GuestFault("gone"))
    await conversation.task
    assert conversation.answer.output() == b"last words"
    assert conversation.answer.end()["error"]["code"] == "unavailable"
    assert (await client.rpc("/process.Process/List")).json() == {}


async def test_a_restarted_agent_takes_over_what_runs() -> None:
    client, sandbox, node = make_client()
    pty = {"size": {"cols": 80, "rows": 24}}
    conversation = await started(client, {**RUN, "tag": "t", "pty": pty})
    conversation.hang_up()
    await asyncio.wait([conversation.task])
    await sandbox.envd.processes.close()
    sandbox.envd = None
    adopt(node, sandbox)
    answer = await client.rpc("/process.Process/List")
    pid = channel_of(sandbox).pid
    assert answer.json()["processes"] == [{"config": RUN["process"], "pid": pid, "tag": "t"}]
    message = {"process": {"pid": pid}, "input": {"pty": encode(b"ls\n")}}
    assert (await client.rpc("/process.Process/SendInput", message)).json() == {}
    assert channel_of(sandbox).written == b"ls\n"
