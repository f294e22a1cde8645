from __future__ import annotations

import datetime
import time
import uuid

import pytest
from e2b import NotFoundException, Sandbox, SandboxQuery, SandboxState, TimeoutException


def listed(query: SandboxQuery | None = None, limit: int | None = None) -> list[str]:
    pages = Sandbox.list(query=query, limit=limit)
    found = []
    while pages.has_next:
        found += [item.sandbox_id for item in pages.next_items()]
    return found


def test_a_new_sandbox_runs_a_command_and_dies_when_killed() -> None:
    sandbox = Sandbox.create()
    assert sandbox.is_running()
    assert sandbox.commands.run("echo hello").stdout == "hello\n"
    assert sandbox.kill() is True
    assert sandbox.is_running() is False
    assert Sandbox.kill(sandbox.sandbox_id) is False


def test_a_with_block_kills_the_sandbox_at_its_end() -> None:
    with Sandbox.create() as sandbox:
        sandbox_id = sandbox.sandbox_id
    assert sandbox_id not in listed()


def test_info_tells_template_metadata_times_and_size() -> None:
    metadata = {"purpose": "info", "unicode": "grüße & more"}
    before = datetime.datetime.now(datetime.UTC)
    with Sandbox.create("base", timeout=90, metadata=metadata) as sandbox:
        info = sandbox.get_info()
    assert info.sandbox_id == sandbox.sandbox_id
    assert info.metadata == metadata
    assert info.state == SandboxState.RUNNING
    assert info.cpu_count > 0
    assert info.memory_mb > 0
    assert abs((info.started_at - before).total_seconds()) < 10
    assert 85 <= (info.end_at - info.started_at).total_seconds() <= 95


def test_variables_of_the_sandbox_reach_every_command() -> None:
    with Sandbox.create(envs={"COLOUR": "blue and green"}) as sandbox:
        assert sandbox.commands.run('echo "$COLOUR"').stdout == "blue and green\n"
        assert sandbox.commands.run("echo $E2B_SANDBOX").stdout == "true\n"
        own = sandbox.commands.run('echo "$COLOUR"', envs={"COLOUR": "red"})
        assert own.stdout == "red\n"


def test_connecting_by_id_reaches_the_same_machine(shared: Sandbox) -> None:
    shared.files.write("/tmp/marker", "here")
    again = Sandbox.connect(shared.sandbox_id)
    assert again.files.read("/tmp/marker") == "here"


def test_connecting_never_shortens_the_life(sandbox: Sandbox) -> None:
    sandbox.set_timeout(200)
    before = sandbox.get_info().end_at
    Sandbox.connect(sandbox.sandbox_id, timeout=10)
    assert sandbox.get_info().end_at >= before


def test_a_timeout_can_be_moved_both_ways(sandbox: Sandbox) -> None:
    sandbox.set_timeout(300)
    later = sandbox.get_info().end_at
    sandbox.set_timeout(30)
    sooner = sandbox.get_info().end_at
    assert (later - sooner).total_seconds() > 200


def test_a_sandbox_ends_when_its_time_is_up() -> None:
    sandbox = Sandbox.create(timeout=2)
    deadline = time.monotonic() + 10
    while sandbox.is_running(request_timeout=5):
        assert time.monotonic() < deadline, "it outlived its timeout"
        time.sleep(0.1)
    with pytest.raises(NotFoundException):
        sandbox.get_info()


def test_a_command_under_way_learns_that_its_sandbox_was_killed() -> None:
    sandbox = Sandbox.create()
    handle = sandbox.commands.run("sleep 60", background=True)
    sandbox.kill()
    with pytest.raises(TimeoutException, match="sandbox was killed or reached its end of life"):
        handle.wait()


def test_lists_filter_by_metadata_and_page() -> None:
    mark = uuid.uuid4().hex
    made = [Sandbox.create(metadata={"mark": mark, "n": str(n)}) for n in range(3)]
    try:
        query = SandboxQuery(metadata={"mark": mark})
        assert sorted(listed(query)) == sorted(sandbox.sandbox_id for sandbox in made)
        assert sorted(listed(query, limit=2)) == sorted(sandbox.sandbox_id for sandbox in made)
        first = Sandbox.list(query=query, limit=2)
        assert len(first.next_items()) == 2
        assert first.has_next
        assert len(first.next_items()) == 1
        assert not first.has_next
        second = SandboxQuery(metadata={"mark": mark, "n": "1"})
        assert listed(second) == [made[1].sandbox_id]
        assert listed(SandboxQuery(metadata={"mark": "nobody"})) == []
    finally:
        for sandbox in made:
            sandbox.kill()


def test_a_paused_sandbox_keeps_its_processes_and_files() -> None:
    sandbox = Sandbox.create(timeout=120)
    try:
        handle = sandbox.commands.run("sleep 600", background=True)
        sandbox.files.write("/home/user/note", "kept")
        sandbox.pause()
        assert sandbox.is_running() is False
        assert sandbox.sandbox_id in listed(SandboxQuery(state=[SandboxState.PAUSED]))
        again = sandbox.connect(timeout=120)
        assert again.is_running()
        assert again.files.read("/home/user/note") == "kept"
        assert handle.pid in [process.pid for process in again.commands.list()]
    finally:
        sandbox.kill()


def test_unknown_ids_are_not_found() -> None:
    with pytest.raises(NotFoundException):
        Sandbox.connect("nosuchsandbox0000000")
    with pytest.raises(NotFoundException):
        Sandbox.set_timeout("nosuchsandbox0000000", 10)
    assert Sandbox.kill("nosuchsandbox0000000") is False
