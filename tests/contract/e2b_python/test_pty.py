from __future__ import annotations

from e2b import PtySize, Sandbox


def wait_for(handle: object, text: str) -> str:
    """Read the terminal until `text` appears; the test's own time limit bounds it."""
    seen = ""
    for _stdout, _stderr, data in handle:  # type: ignore[attr-defined]
        seen += (data or b"").decode(errors="replace")
        if text in seen:
            return seen
    raise AssertionError(f"the terminal ended without {text!r}: {seen!r}")


def test_a_terminal_runs_lines_and_tells_its_width(shared: Sandbox) -> None:
    terminal = shared.pty.create(PtySize(rows=24, cols=91), cwd="/tmp", envs={"MARK": "m4rk"})
    shared.pty.send_stdin(terminal.pid, b"echo $MARK-$(tput cols)-$PWD; exit\n")
    seen = wait_for(terminal, "m4rk-91-/tmp")
    assert "m4rk-91-/tmp" in seen
    assert terminal.wait().exit_code == 0


def test_a_terminal_can_be_resized(shared: Sandbox) -> None:
    terminal = shared.pty.create(PtySize(rows=24, cols=80))
    shared.pty.resize(terminal.pid, PtySize(rows=40, cols=133))
    shared.pty.send_stdin(terminal.pid, b"echo width-$(tput cols)\n")
    wait_for(terminal, "width-133")
    assert shared.pty.kill(terminal.pid) is True
    assert shared.pty.kill(terminal.pid) is False


def test_a_terminal_lives_on_when_its_client_goes(shared: Sandbox) -> None:
    terminal = shared.pty.create(PtySize(rows=24, cols=80))
    terminal.disconnect()
    again = shared.pty.connect(terminal.pid)
    assert again.pid == terminal.pid
    shared.pty.send_stdin(again.pid, b"echo still-$((40+2)); exit\n")
    wait_for(again, "still-42")
    assert again.wait().exit_code == 0
