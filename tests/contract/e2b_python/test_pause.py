"""Pausing and waking: what survives, who may wake it, and what the clock says."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from e2b import NotFoundException, Sandbox, SandboxQuery, SandboxState

BOOT_ID = "/proc/sys/kernel/random/boot_id"
TREE_HASH = "cd /home/user && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"


@pytest.fixture
def created() -> Iterator[Callable[..., Sandbox]]:
    """Create sandboxes that end with the test, in whatever state they are."""
    made: list[str] = []

    def create(**options: Any) -> Sandbox:
        sandbox = Sandbox.create(**options)
        made.append(sandbox.sandbox_id)
        return sandbox

    yield create
    for sandbox_id in made:
        Sandbox.kill(sandbox_id)


def until(holds: Callable[[], object], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def state_of(sandbox: Sandbox) -> SandboxState:
    return sandbox.get_info().state


def is_paused(sandbox: Sandbox) -> bool:
    return state_of(sandbox) == SandboxState.PAUSED


def ask(sandbox: Sandbox, port: int, **headers: str) -> tuple[int, str]:
    """One request to a port of the sandbox; nobody retries."""
    request = urllib.request.Request(
        os.environ["E2B_SANDBOX_URL"] + "/",
        headers={"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port), **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def serve(sandbox: Sandbox, port: int, content: str) -> None:
    sandbox.files.write(f"/tmp/www{port}/index.html", content)
    sandbox.commands.run(
        f"python -m http.server {port} --directory /tmp/www{port}", background=True
    )
    until(lambda: ask(sandbox, port)[0] == 200)


def test_a_pause_keeps_memory_processes_variables_and_boot(created: Callable[..., Sandbox]) -> None:
    sandbox = created(timeout=120, envs={"COLOUR": "blue"}, metadata={"kept": "yes"})
    boot_id = sandbox.files.read(BOOT_ID)
    counting = sandbox.commands.run(
        "i=0; while :; do i=$((i+1)); echo $i > /tmp/new; mv /tmp/new /tmp/count; sleep 0.02; done",
        background=True,
    )
    serve(sandbox, 8411, "awake")
    until(lambda: sandbox.files.exists("/tmp/count"))
    before = sandbox.get_info()

    assert Sandbox.pause(sandbox.sandbox_id) is True

    assert sandbox.is_running() is False
    paused = sandbox.get_info()
    assert paused.state == SandboxState.PAUSED
    assert paused.metadata == {"kept": "yes"}
    assert paused.started_at == before.started_at
    assert ask(sandbox, 8411)[0] == 502
    assert sandbox.pause() is False  # it is paused already

    again = Sandbox.connect(sandbox.sandbox_id, timeout=120)

    assert ask(again, 8411) == (200, "awake")  # at the first request
    count = int(again.files.read("/tmp/count"))
    until(lambda: int(again.files.read("/tmp/count")) > count)
    assert counting.pid in [process.pid for process in again.commands.list()]
    assert again.files.read(BOOT_ID) == boot_id
    assert again.commands.run("cat " + BOOT_ID).stdout == boot_id
    assert again.commands.run("echo $COLOUR").stdout == "blue\n"
    # The old handle, with its token and open connections, goes on too.
    assert sandbox.is_running()
    assert sandbox.commands.run("echo old handle").stdout == "old handle\n"
    after = again.get_info()
    assert after.metadata == {"kept": "yes"}
    assert after.started_at > before.started_at
    assert 110 <= (after.end_at - after.started_at).total_seconds() <= 121


def test_a_pause_of_the_files_alone_boots_anew(created: Callable[..., Sandbox]) -> None:
    sandbox = created(timeout=120, envs={"COLOUR": "blue"})
    boot_id = sandbox.files.read(BOOT_ID)
    sandbox.commands.run("head -c 2000000 /dev/urandom > /home/user/data")
    digest = sandbox.commands.run(TREE_HASH).stdout
    handle = sandbox.commands.run("sleep 600", background=True)

    sandbox.pause(keep_memory=False)
    assert sandbox.is_running() is False
    again = Sandbox.connect(sandbox.sandbox_id, timeout=120)

    assert again.sandbox_id == sandbox.sandbox_id
    assert again.files.read(BOOT_ID) != boot_id
    assert again.commands.run("cat " + BOOT_ID).stdout == again.files.read(BOOT_ID)
    assert again.commands.run(TREE_HASH).stdout == digest
    assert handle.pid not in [process.pid for process in again.commands.list()]
    assert again.commands.run("echo $COLOUR").stdout == "blue\n"
    assert sandbox.commands.run("echo old handle").stdout == "old handle\n"


def test_many_cycles_keep_every_byte_and_the_process(created: Callable[..., Sandbox]) -> None:
    """Ten here; the soak does fifty."""
    cycles = int(os.environ.get("SANDLOT_TEST_PAUSE_CYCLES", "10"))
    sandbox = created(timeout=600)
    sandbox.commands.run(
        "mkdir tree && cd tree && for n in $(seq 40);"
        " do head -c 20000 /dev/urandom > f$n; ln -s f$n l$n; done"
    )
    digest = sandbox.commands.run(TREE_HASH).stdout
    handle = sandbox.commands.run(
        "read state < /proc/sys/kernel/random/uuid; trap 'echo $state > /tmp/told' USR1;"
        " echo $state > /tmp/first; while :; do sleep 0.05; done",
        background=True,
    )
    until(lambda: sandbox.files.exists("/tmp/first"))
    first = sandbox.files.read("/tmp/first")
    for _ in range(cycles):
        assert sandbox.pause() is True
        sandbox = Sandbox.connect(sandbox.sandbox_id, timeout=600)
    sandbox.commands.run(f"kill -USR1 {handle.pid}")
    until(lambda: sandbox.files.exists("/tmp/told"))
    assert sandbox.files.read("/tmp/told") == first
    assert sandbox.commands.run(TREE_HASH).stdout == digest


def test_an_expired_sandbox_is_paused_where_asked(created: Callable[..., Sandbox]) -> None:
    sandbox = created(timeout=120, lifecycle={"on_timeout": "pause"})
    boot_id = sandbox.files.read(BOOT_ID)
    sandbox.set_timeout(0)
    until(lambda: is_paused(sandbox))
    # Not woken by traffic: nobody asked for that.
    assert sandbox.is_running() is False
    assert ask(sandbox, 8000)[0] == 502
    assert is_paused(sandbox)
    listed = Sandbox.list(query=SandboxQuery(state=[SandboxState.PAUSED])).next_items()
    assert sandbox.sandbox_id in [item.sandbox_id for item in listed]

    again = sandbox.connect(timeout=120)
    assert again.is_running()
    assert again.files.read(BOOT_ID) == boot_id


def test_an_expired_sandbox_may_keep_its_files_alone(created: Callable[..., Sandbox]) -> None:
    on_timeout = {"action": "pause", "keep_memory": False}
    sandbox = created(timeout=120, lifecycle={"on_timeout": on_timeout})
    sandbox.files.write("/home/user/note", "kept")
    boot_id = sandbox.files.read(BOOT_ID)
    sandbox.set_timeout(0)
    until(lambda: is_paused(sandbox))
    again = sandbox.connect(timeout=120)
    assert again.files.read("/home/user/note") == "kept"
    assert again.files.read(BOOT_ID) != boot_id


def test_traffic_wakes_a_sandbox_that_allows_it(created: Callable[..., Sandbox]) -> None:
    sandbox = created(timeout=120, lifecycle={"on_timeout": "pause", "auto_resume": True})
    serve(sandbox, 8412, "woken")
    sandbox.set_timeout(0)
    until(lambda: is_paused(sandbox))

    assert ask(sandbox, 8412) == (200, "woken")

    until(lambda: state_of(sandbox) == SandboxState.RUNNING)
    assert sandbox.is_running()
    info = sandbox.get_info()
    assert (info.end_at - info.started_at).total_seconds() >= 299  # at least five minutes


def test_a_command_wakes_it_too(created: Callable[..., Sandbox]) -> None:
    sandbox = created(timeout=120, lifecycle={"on_timeout": "pause", "auto_resume": True})
    sandbox.pause()
    assert sandbox.commands.run("echo awake").stdout == "awake\n"


def test_a_private_port_wakes_it_for_token_holders_only(created: Callable[..., Sandbox]) -> None:
    sandbox = created(
        timeout=120,
        lifecycle={"on_timeout": "pause", "auto_resume": True},
        network={"allow_public_traffic": False},
    )
    token = {"e2b-traffic-access-token": str(sandbox.traffic_access_token)}
    sandbox.files.write("/tmp/www/index.html", "private")
    sandbox.commands.run("python -m http.server 8413 --directory /tmp/www", background=True)
    until(lambda: ask(sandbox, 8413, **token)[0] == 200)
    sandbox.pause()

    for headers in ({}, {"e2b-traffic-access-token": "wrong"}):
        status, text = ask(sandbox, 8413, **headers)
        assert status == 403
        assert "can't be resumed with the credentials provided" in text
    status, text = ask(sandbox, 49983)  # its envd is secure, and this has no token
    assert status == 403, text
    assert is_paused(sandbox)

    assert ask(sandbox, 8413, **token) == (200, "private")


def test_several_connects_at_once_all_get_it(created: Callable[..., Sandbox]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    sandbox = created(timeout=120)
    sandbox.pause()
    with ThreadPoolExecutor(5) as threads:
        found = list(
            threads.map(lambda _: Sandbox.connect(sandbox.sandbox_id, timeout=120), range(5))
        )
    assert [item.commands.run("echo up").stdout for item in found] == ["up\n"] * 5


def test_a_paused_sandbox_can_be_killed(created: Callable[..., Sandbox]) -> None:
    sandbox = created()
    sandbox.pause()
    assert sandbox.kill() is True
    assert sandbox.kill() is False
    with pytest.raises(NotFoundException):
        Sandbox.connect(sandbox.sandbox_id)


def test_a_paused_sandbox_has_no_timeout(created: Callable[..., Sandbox]) -> None:
    sandbox = created()
    sandbox.pause()
    with pytest.raises(NotFoundException):
        sandbox.set_timeout(100)
