from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from nodeagent.errors import AgentError, InvalidArgument, NotFound, Unauthenticated, Unknown
from nodeagent.guest.link import ProcessExit
from nodeagent.guest.process import RING_BYTES


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (0, ProcessExit(0, True, "exit status 0", None)),
        (3 << 8, ProcessExit(3, True, "exit status 3", "exit status 3")),
        (9, ProcessExit(-1, False, "signal: killed", "signal: killed")),
        (
            11 | 0x80,
            ProcessExit(
                -1,
                False,
                "signal: segmentation fault (core dumped)",
                "signal: segmentation fault (core dumped)",
            ),
        ),
        (40, ProcessExit(-1, False, "signal: signal 40", "signal: signal 40")),
    ],
)
def test_a_wait_status_reads_as_in_go(status, expected):
    assert ProcessExit.from_wait_status(status) == expected


async def test_both_streams_and_the_exit_code_arrive(run):
    streams, ended = await run("/bin/bash", "-c", "echo out; echo err >&2; exit 3")

    assert streams == {"stdout": b"out\n", "stderr": b"err\n"}
    assert ended.exit_code == 3


async def test_output_is_binary_complete_and_in_order(run):
    streams, _ = await run(
        "/bin/sh", "-c", "seq 1 300000; head -c 3000000 /dev/urandom | tee /dev/stderr"
    )

    assert streams["stdout"].startswith(b"1\n2\n")
    numbers, rest = streams["stdout"][: -len(streams["stderr"])], streams["stdout"][-3_000_000:]
    assert numbers == b"".join(b"%d\n" % n for n in range(1, 300001))
    assert rest == streams["stderr"]


async def test_a_piece_of_output_is_at_most_32_kib(start):
    channel = await start("/bin/head", "-c", "5000000", "/dev/zero")

    sizes = [len(data) async for _, data in channel]
    assert sum(sizes) == 5_000_000
    assert max(sizes) <= 32768
    assert min(sizes) > 0


async def test_the_command_runs_as_the_user_with_every_group(run):
    streams, _ = await run("/usr/bin/id", user="user")

    assert b"uid=4321" in streams["stdout"]
    assert b"gid=4321" in streams["stdout"]
    assert streams["stdout"].strip().endswith(b"groups=4321,4400")


async def test_no_power_descriptor_or_signal_setting_of_the_guest_is_inherited(run):
    shown = "Uid|Gid|Cap(Inh|Prm|Eff|Amb)|SigIgn|SigBlk"
    script = f"grep -E '{shown}' /proc/self/status; ls /proc/self/fd; umask"
    streams, _ = await run("/bin/sh", "-c", script, user="user")

    text = streams["stdout"].decode()
    assert "Uid:\t4321\t4321\t4321\t4321\n" in text
    assert "Gid:\t4321\t4321\t4321\t4321\n" in text
    for capability in ("CapInh", "CapPrm", "CapEff", "CapAmb", "SigIgn", "SigBlk"):
        assert f"{capability}:\t0000000000000000\n" in text
    assert text.endswith("\n0\n1\n2\n3\n0022\n")  # 3 is the directory ls reads


async def test_the_environment_is_the_user_and_what_was_given(run, home):
    env = {"A": "1 2", "PATH": "/bin:/usr/bin", "B": "ü\n"}
    streams, _ = await run("env", "-0", user="user", env=env)

    given = dict(item.split("=", 1) for item in streams["stdout"].decode().rstrip("\0").split("\0"))
    assert given == {"HOME": str(home), "USER": "user", "LOGNAME": "user", **env}


async def test_scheduling_is_that_of_user_code(run):
    streams, _ = await run("/bin/sh", "-c", "cat /proc/self/oom_score_adj; nice")

    assert streams["stdout"] == b"100\n0\n"


@pytest.mark.parametrize(
    ("cwd", "default_workdir", "expected"),
    [
        (None, "", "{home}"),
        (None, "/usr", "/usr"),
        ("", "/usr", "/usr"),
        ("~", "/usr", "{home}"),
        ("~/sub", "", "{home}/sub"),
        ("sub", "/usr", "{home}/sub"),
        ("/tmp", "", "/tmp"),
    ],
)
async def test_where_a_command_starts(run, home, cwd, default_workdir, expected):
    (home / "sub").mkdir(exist_ok=True)
    options = {"user": "user", "cwd": cwd, "default_workdir": default_workdir}
    streams, _ = await run("/bin/pwd", **options)

    assert streams["stdout"].decode() == expected.format(home=home) + "\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cwd": "/no/such"}, "cwd '/no/such' does not exist"),
        ({"cwd": "~other"}, "cannot expand user-specific home dir"),
        (
            {"cwd": "/etc/passwd"},
            "error starting process 'cat a b': fork/exec /bin/sh: not a directory",
        ),
        (
            {"cwd": "{home}/closed"},
            "error starting process 'cat a b': fork/exec /bin/sh: permission denied",
        ),
        (
            {"cwd": "/etc/passwd", "pty": (80, 24)},
            "error starting pty with command 'cat a b' in dir '/etc/passwd' with '80' cols and"
            " '24' rows: fork/exec /bin/sh: not a directory",
        ),
    ],
)
async def test_a_bad_directory_starts_nothing(start, home, options, message):
    (home / "closed").mkdir(mode=0o700, exist_ok=True)
    options["cwd"] = options["cwd"].format(home=home)

    with pytest.raises(InvalidArgument, match="^" + message.replace("(", r"\(")):
        await start("cat", "a", "b", user="user", **options)


async def test_an_unknown_user_is_told_apart(start):
    with pytest.raises(Unauthenticated, match="^invalid username: 'ghost'$") as caught:
        await start("true", user="ghost")

    assert caught.value.error_code == "unknown_user"


@pytest.mark.parametrize("pty", [None, (80, 24)])
async def test_what_cannot_run_ends_as_in_a_shell(run, home, pty):
    (home / "plain").write_text("text")
    missing, ended = await run("no-such-command", pty=pty)
    assert (ended.exit_code, ended.exited) == (127, True)
    assert b"no-such-command: not found" in b"".join(missing.values())

    denied, ended = await run(str(home / "plain"), pty=pty)
    assert (ended.exit_code, ended.exited) == (126, True)
    assert b"Permission denied" in b"".join(denied.values())


@pytest.mark.parametrize("pty", [None, (80, 24)])
async def test_a_script_without_interpreter_line_runs_in_the_shell(run, home, pty):
    script = home / "script"
    script.write_text("echo ran $1\n")
    script.chmod(0o755)

    streams, ended = await run(str(script), "it", pty=pty)
    assert b"ran it" in b"".join(streams.values())
    assert ended.exit_code == 0


async def test_stdin_flows_until_it_is_closed(start, collect):
    channel = await start("/bin/sh", "-c", "cat; sleep 0.2", stdin=True)
    data = os.urandom(1_000_000)

    reading = asyncio.ensure_future(collect(channel))
    await channel.write(b"")
    await channel.write(data)
    await channel.close_stdin()
    await channel.close_stdin()

    assert (await reading)["stdout"] == data
    assert channel.exit.exit_code == 0


async def test_without_stdin_there_is_none_to_write(start, collect):
    channel = await start("/bin/sh", "-c", "cat; sleep 5")

    with pytest.raises(AgentError, match="^error writing to stdin: stdin not enabled or closed$"):
        await channel.write(b"x")
    await channel.close_stdin()
    await channel.signal(signal.SIGKILL)


async def test_writing_to_a_closed_reader_is_an_error_not_an_end(start, collect):
    channel = await start("/bin/sh", "-c", "exec <&-; echo closed; sleep 5", stdin=True)
    await anext(channel)

    with pytest.raises(
        AgentError, match=r"^error writing to stdin of process '\d+': .*broken pipe"
    ):
        await channel.write(b"x")
    await channel.signal(signal.SIGKILL)


async def test_a_blocked_write_does_not_block_a_kill(start, collect):
    channel = await start("/bin/sleep", "30", stdin=True)
    writing = asyncio.ensure_future(channel.write(bytes(1_000_000)))

    await channel.signal(signal.SIGKILL)

    with pytest.raises(AgentError):
        await writing
    await collect(channel)
    assert channel.exit.status == "signal: killed"


async def test_a_killed_process_is_gone_when_the_answer_comes(start, collect):
    channel = await start("/bin/sleep", "30")

    await channel.signal(signal.SIGKILL)

    with pytest.raises(ProcessLookupError):
        os.kill(channel.pid, 0)
    await collect(channel)
    assert channel.exit == ProcessExit(-1, False, "signal: killed", "signal: killed")
    with pytest.raises(NotFound):
        await channel.signal(signal.SIGKILL)


async def test_a_kill_gets_through_although_nobody_reads_the_output(start):
    channel = await start("/usr/bin/yes")

    await channel.signal(signal.SIGKILL)

    with pytest.raises(ProcessLookupError):
        os.kill(channel.pid, 0)


async def test_the_end_waits_for_whoever_holds_the_output(run):
    started_at = time.monotonic()
    streams, ended = await run("/bin/sh", "-c", "(sleep 0.3; echo late) & echo early; exit 4")

    assert streams["stdout"] == b"early\nlate\n"
    assert ended.exit_code == 4
    assert time.monotonic() - started_at >= 0.3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_after_a_signal_only_the_leader_is_waited_for(start, collect, number):
    channel = await start("/bin/bash", "-c", "sleep 8 & echo $!; wait")
    _, orphan = await anext(channel)

    await channel.signal(number)
    async with asyncio.timeout(5):
        await collect(channel)

    assert channel.exit.exit_code == -1
    os.kill(int(orphan), signal.SIGKILL)  # it lives: only the leader was signalled


async def test_killing_what_has_only_left_its_pipes_to_others_ends_it(start, collect):
    channel = await start("/bin/bash", "-c", "sleep 8 & echo $!; exit 6")
    _, orphan = await anext(channel)
    while os.path.exists(f"/proc/{channel.pid}"):
        await asyncio.sleep(0.01)

    await channel.signal(signal.SIGKILL)
    await collect(channel)

    assert channel.exit.exit_code == 6
    os.kill(int(orphan), signal.SIGKILL)


async def test_the_deadline_kills_the_leader(run):
    _, ended = await run("/bin/sleep", "30", deadline_seconds=0.1)

    assert ended.status == "signal: killed"


async def test_the_deadline_holds_without_the_agent(start, guest):
    channel = await start("/bin/sleep", "30", deadline_seconds=0.2)
    channel.close()

    while (await guest.call("processes"))["processes"]:
        await asyncio.sleep(0.02)
    again = await guest.attach(channel.pid)

    assert [item async for item in again] == []
    assert again.exit.status == "signal: killed"


async def test_a_process_outlives_its_agent_and_is_found_again(start, guest):
    config = {"cmd": "/bin/sh", "args": ["-c"], "envs": {"A": "ü"}}
    script = "echo one; read line; echo two $line; exit 5"
    channel = await start("/bin/sh", "-c", script, stdin=True, tag="mine", config=config)
    assert await anext(channel) == ("stdout", b"one\n")
    channel.close()

    listed = (await guest.call("processes"))["processes"]
    again = await guest.attach(channel.pid)
    await again.write(b"more\n")

    assert [data async for _, data in again] == [b"two more\n"]
    assert again.exit.exit_code == 5
    about = {"pid": channel.pid, "config": config, "tag": "mine", "pty": False, "stdin": True}
    assert listed == [about]
    assert (await guest.call("processes"))["processes"] == []


async def test_output_without_an_agent_is_kept_up_to_a_bound(start, guest, home):
    done = home / "done"
    script = f"head -c 3000000 /dev/zero; echo end; touch {done}; read line"
    channel = await start("/bin/sh", "-c", script, stdin=True)
    channel.close()
    while not done.exists():
        await asyncio.sleep(0.01)

    again = await guest.attach(channel.pid)
    await again.write(b"\n")
    kept = b"".join([data async for _, data in again])

    assert kept.endswith(b"end\n")
    assert RING_BYTES // 2 < len(kept) < RING_BYTES + 64 * 1024  # the ring, and what the pipe held
    done.unlink()


async def test_a_newer_agent_takes_the_process_over(start, guest, collect):
    first = await start("/bin/cat", stdin=True)
    second = await guest.attach(first.pid)

    with pytest.raises(AgentError):
        await collect(first)
    await second.write(b"x")
    await second.close_stdin()
    assert await collect(second) == {"stdout": b"x"}


async def test_attaching_to_nothing_is_not_found(guest):
    with pytest.raises(NotFound, match="^process with pid 4000000 not found$"):
        await guest.attach(4_000_000)


async def test_an_unread_process_is_held_back_and_loses_nothing(start):
    channel = await start("/bin/sh", "-c", "seq 1 2000000")
    await asyncio.sleep(0)
    assert not channel._connection.is_closed

    received = [data async for _, data in channel]
    assert b"".join(received) == b"".join(b"%d\n" % n for n in range(1, 2_000_001))


async def test_many_requests_get_their_answers_past_unread_output(start):
    channel = await start("/bin/sh", "-c", "stty raw; exec yes", pty=(80, 24))
    await anext(channel)

    await asyncio.gather(*(channel.resize(n, n) for n in range(1, 50)))
    await channel.signal(signal.SIGKILL)


async def test_a_terminal_has_size_echo_and_job_control(start, collect):
    channel = await start("/bin/bash", "--norc", "-i", pty=(100, 30), env={"TERM": "xterm"})
    await channel.write(b"stty size; tty; echo $((6*7))\n")
    await channel.resize(50, 20)
    await channel.write(b"stty size; exit 9\n")

    shown = (await collect(channel))["pty"]
    assert b"/dev/pts/" in shown
    assert b"\r\n42\r\n" in shown
    assert b"20 50\r\n" in shown
    assert b"no job control" not in shown
    assert channel.exit.exit_code == 9


async def test_the_first_size_is_there_before_the_program(run):
    streams, _ = await run("/bin/stty", "size", pty=(132, 43))

    assert streams == {"pty": b"43 132\r\n"}


async def test_a_terminal_hangs_up_when_its_leader_ends(start, collect):
    script = "trap '' HUP; (sleep 8) & echo pid $!; exit 2"
    channel = await start("/bin/bash", "-c", script, pty=(80, 24))
    async with asyncio.timeout(5):
        shown = (await collect(channel))["pty"]

    assert channel.exit.exit_code == 2
    os.kill(int(shown.split()[1]), signal.SIGKILL)


async def test_terminals_and_pipes_are_not_confused(start):
    pipe, terminal = await start("/bin/cat", stdin=True), await start("/bin/cat", pty=(80, 24))

    with pytest.raises(AgentError, match="^error resizing tty: tty not assigned to process$"):
        await pipe.resize(1, 1)
    with pytest.raises(Unknown, match="^error closing stdin: cannot close stdin for PTY process"):
        await terminal.close_stdin()
    for channel in (pipe, terminal):
        await channel.signal(signal.SIGKILL)


async def test_two_hundred_at_once(run):
    results = await asyncio.gather(
        *(run("/bin/sh", "-c", f"sleep 0.2; echo {n}") for n in range(200))
    )

    assert [streams["stdout"] for streams, _ in results] == [b"%d\n" % n for n in range(200)]


async def test_nothing_is_left_behind(run, running_guest):
    pid = running_guest.process.pid
    before = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(20):
        await run("/bin/true")
    while children := _children(pid):
        assert len(children) < 20
        await asyncio.sleep(0.01)

    assert len(os.listdir(f"/proc/{pid}/fd")) <= before


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return children.read().split()


async def test_an_end_is_not_lost_on_one_who_is_still_writing(start, collect):
    for _ in range(30):
        channel = await start("/bin/sh", "-c", "echo out; exit 3", stdin=True)
        writing = asyncio.gather(
            *(channel.write(bytes(500_000)) for _ in range(3)), return_exceptions=True
        )
        assert await collect(channel) == {"stdout": b"out\n"}
        assert channel.exit.exit_code == 3
        assert all(isinstance(error, AgentError) for error in await writing)
