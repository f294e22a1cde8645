"""Real programs on a terminal: what they need of it is what people need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2b import PtySize, Sandbox


class Terminal:
    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.handle = sandbox.pty.create(PtySize(rows=24, cols=100), timeout=30)
        self._pieces = iter(self.handle)
        self._seen = ""

    def type(self, text: str) -> None:
        self.sandbox.pty.send_stdin(self.handle.pid, text.encode())

    def wait_for(self, text: str) -> None:
        """Read until `text` appears; the test's own time limit bounds it."""
        while text not in self._seen:
            self._seen += (next(self._pieces)[2] or b"").decode(errors="replace")
        self._seen = self._seen.partition(text)[2]


@pytest.fixture
def terminal(shared: Sandbox) -> Iterator[Terminal]:
    terminal = Terminal(shared)
    terminal.wait_for("$ ")
    yield terminal
    terminal.handle.kill()


def test_lines_can_be_edited_and_repeated(terminal: Terminal) -> None:
    terminal.type("echo $((402))\x1b[D\x1b[D\x1b[D+\n")  # left, left, left
    terminal.wait_for("42\r\n")
    terminal.type("echo gone\x15echo kept-$((1+1))\n")  # Ctrl-U
    terminal.wait_for("kept-2")
    terminal.type("\x1b[A\n")  # up: the line before
    terminal.wait_for("kept-2")
    terminal.type("cat /etc/debian_ver\t && echo done-$((2+2))\n")
    terminal.wait_for("done-4")


def test_jobs_are_stopped_resumed_and_interrupted(terminal: Terminal) -> None:
    terminal.type("sed -u s/i/1/\nfirst\n")
    terminal.wait_for("f1rst")  # it runs
    terminal.type("\x1a")
    terminal.wait_for("Stopped")
    terminal.type("fg\nthird\n")
    terminal.wait_for("th1rd")
    terminal.type("\x03")
    terminal.wait_for("$ ")
    terminal.type("echo back-$((1+1))\n")
    terminal.wait_for("back-2")


def test_a_python_prompt(terminal: Terminal) -> None:
    terminal.type("python3 -q\n")
    terminal.wait_for(">>> ")
    terminal.type("sum(range(7))\n")
    terminal.wait_for("\n21")
    terminal.type("\x04echo back-$((1+1))\n")
    terminal.wait_for("back-2")


def test_a_program_that_paints_the_screen(terminal: Terminal) -> None:
    terminal.type("top -d 0.5\n")
    terminal.wait_for("load average")
    terminal.wait_for("COMMAND")
    terminal.type("q")
    terminal.type("echo back-$((1+1))\n")
    terminal.wait_for("back-2")


def test_an_editor(terminal: Terminal, folder: str) -> None:
    terminal.type(f"nano {folder}/edited.txt\n")
    terminal.wait_for("GNU nano")
    terminal.type("typed in here")
    terminal.type("\x0f\r")  # Ctrl-O: write
    terminal.wait_for("Wrote")
    terminal.type("\x18")  # Ctrl-X: leave
    terminal.type("echo back-$((1+1))\n")
    terminal.wait_for("back-2")
    assert terminal.sandbox.files.read(f"{folder}/edited.txt") == "typed in here\n"
