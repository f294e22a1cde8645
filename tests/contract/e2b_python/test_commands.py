from __future__ import annotations

import threading

import pytest
from e2b import (
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
    TimeoutException,
)


@pytest.mark.parametrize(
    "text", ["hello", "a  b\tc", "$HOME `id` \\ \"quoted\" 'single'", "two\nlines", "日本語 ✓"]
)
def test_text_comes_back_as_it_was_sent(shared: Sandbox, text: str) -> None:
    assert shared.commands.run('printf %s "$TEXT"', envs={"TEXT": text}).stdout == text
    assert shared.commands.run(f"cat <<'EOF'\n{text}\nEOF").stdout == f"{text}\n"


def test_standard_error_and_exit_code_are_told_apart(shared: Sandbox) -> None:
    with pytest.raises(CommandExitException) as caught:
        shared.commands.run("echo out; echo err >&2; exit 7")
    assert (caught.value.exit_code, caught.value.stdout, caught.value.stderr) == (
        7,
        "out\n",
        "err\n",
    )


def test_output_streams_while_the_command_runs(shared: Sandbox) -> None:
    first = threading.Event()
    seen: list[str] = []

    def on_stdout(text: str) -> None:
        seen.append(text)
        if not first.is_set():
            first.set()
            shared.files.write("/tmp/go", "")

    # The command ends only after its first output has arrived here.
    shared.commands.run(
        "rm -f /tmp/go; echo one; until [ -e /tmp/go ]; do sleep 0.02; done; echo two",
        on_stdout=on_stdout,
    )
    assert "".join(seen) == "one\ntwo\n"


def test_much_output_arrives_whole(shared: Sandbox) -> None:
    result = shared.commands.run("seq 1 200000")
    assert result.stdout == "".join(f"{n}\n" for n in range(1, 200_001))


def test_an_incomplete_character_becomes_a_replacement(shared: Sandbox) -> None:
    result = shared.commands.run("head -c 8192 /dev/zero | tr '\\0' x; printf '\\xe2'")
    assert result.stdout == "x" * 8192 + "\ufffd"


def test_a_background_command_is_listed_connected_and_killed(shared: Sandbox) -> None:
    handle = shared.commands.run("sleep 300", background=True)
    assert handle.pid > 0
    listed = {process.pid: process for process in shared.commands.list()}
    assert "sleep 300" in " ".join([listed[handle.pid].cmd, *listed[handle.pid].args])
    assert shared.commands.connect(handle.pid).pid == handle.pid
    assert handle.kill() is True
    with pytest.raises(CommandExitException):
        shared.commands.run(f"kill -0 {handle.pid}")
    assert shared.commands.kill(handle.pid) is False


def test_connecting_to_an_unknown_process_is_not_found(shared: Sandbox) -> None:
    with pytest.raises(NotFoundException):
        shared.commands.connect(4_000_000)


def test_stdin_reaches_the_command_until_it_is_closed(shared: Sandbox) -> None:
    handle = shared.commands.run("cat", background=True, stdin=True)
    shared.commands.send_stdin(handle.pid, "first ✓\n")
    shared.commands.send_stdin(handle.pid, "second")
    shared.commands.close_stdin(handle.pid)
    result = handle.wait()
    assert (result.exit_code, result.stdout) == (0, "first ✓\nsecond")


def test_folder_and_user_can_be_chosen(shared: Sandbox) -> None:
    assert shared.commands.run("pwd").stdout == "/home/user\n"
    assert shared.commands.run("pwd", cwd="/tmp").stdout == "/tmp\n"
    assert shared.commands.run("whoami").stdout == "user\n"
    assert shared.commands.run("whoami", user="root").stdout == "root\n"
    assert shared.commands.run("sudo -n whoami").stdout == "root\n"
    with pytest.raises(Exception, match="nobody-here"):
        shared.commands.run("true", user="nobody-here")
    with pytest.raises(InvalidArgumentException):
        shared.commands.run("true", cwd="/no/such/folder")


def test_a_variable_of_one_command_does_not_reach_the_next(shared: Sandbox) -> None:
    assert shared.commands.run("echo $ONCE", envs={"ONCE": "1"}).stdout == "1\n"
    assert shared.commands.run("sudo -n env | grep -c ^ONCE= || true").stdout == "0\n"


def test_a_command_that_takes_too_long_is_ended(shared: Sandbox) -> None:
    with pytest.raises(TimeoutException):
        shared.commands.run("sleep 30", timeout=1)
    assert shared.commands.run("echo fine", timeout=10).stdout == "fine\n"


def test_many_commands_at_once_keep_their_output_apart(shared: Sandbox) -> None:
    handles = [
        shared.commands.run(f"for i in $(seq 200); do echo {n}; done", background=True)
        for n in range(8)
    ]
    for n, handle in enumerate(handles):
        assert handle.wait().stdout == f"{n}\n" * 200


def test_the_base_template_has_the_promised_tools(shared: Sandbox) -> None:
    script = (
        "python -c 'import sys; print(sys.version_info[:2])'; "
        "node -p 'process.version.split(`.`)[0]'; "
        "for tool in npm yarn git gh curl sudo gcc make jq pip ps ip; "
        "do command -v $tool >/dev/null || echo no $tool; done; "
        "touch /code/x /usr/local/x && locale | grep ^LANG=; "
        "ping -c1 -W2 127.0.0.1 | grep -c 'bytes from'"
    )
    result = shared.commands.run(script)
    assert result.stdout == "(3, 11)\nv20\nLANG=C.UTF-8\n1\n"
    assert result.stderr == ""
