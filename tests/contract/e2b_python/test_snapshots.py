"""Snapshots and forks: files of a running sandbox, for others to start from."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from e2b import NotFoundException, Sandbox, SandboxException, SandboxState


@pytest.fixture(scope="module")
def origin() -> Iterator[Sandbox]:
    sandbox = Sandbox.create(
        timeout=300,
        envs={"COLOUR": "blue"},
        metadata={"of": "origin"},
        lifecycle={"on_timeout": "pause"},
    )
    sandbox.files.write("/home/user/folder/note", "first")
    sandbox.commands.run("sudo sh -c 'echo root > /root/own'; chmod 600 folder/note")
    yield sandbox
    sandbox.kill()


def ids(**filters: str) -> list[str]:
    pages = Sandbox.list_snapshots(**filters)
    found = []
    while pages.has_next:
        found += [item.snapshot_id for item in pages.next_items()]
    return found


def test_a_snapshot_is_listed_found_used_and_deleted(origin: Sandbox) -> None:
    before = origin.get_info()
    handle = origin.commands.run("sleep 600", background=True)
    name = f"snap-{uuid.uuid4().hex[:8]}"
    named = origin.create_snapshot(name=name)
    unnamed = Sandbox.create_snapshot(origin.sandbox_id)

    # It goes on as it was.
    after = origin.get_info()
    assert (after.state, after.end_at) == (SandboxState.RUNNING, before.end_at)
    assert handle.pid in [process.pid for process in origin.commands.list()]

    assert named.names
    assert name in named.names[0]
    assert unnamed.names == []
    for snapshot in (named, unnamed):
        assert snapshot.snapshot_id in ids()
        assert snapshot.snapshot_id in ids(sandbox_id=origin.sandbox_id)
    assert ids(name=name) == [named.snapshot_id]
    assert ids(name="nobody-named-this") == []
    pages = Sandbox.list_snapshots(sandbox_id=origin.sandbox_id, limit=1)
    assert [item.snapshot_id for item in pages.next_items()] == [unnamed.snapshot_id]
    assert pages.has_next
    assert [item.snapshot_id for item in pages.next_items()] == [named.snapshot_id]
    assert not pages.has_next

    origin.files.write("/home/user/folder/note", "second")
    one = Sandbox.create(named.snapshot_id, timeout=60)
    two = Sandbox.create(named.snapshot_id, timeout=60)
    try:
        assert one.commands.run("cat folder/note; stat -c %a folder/note").stdout == "first600\n"
        assert one.commands.run("sudo cat /root/own").stdout == "root\n"
        info = one.get_info()
        assert info.metadata == {}
        assert info.template_id == named.snapshot_id.split(":")[0] or name in named.snapshot_id
        one.files.write("/home/user/folder/note", "mine")
        assert two.files.read("/home/user/folder/note") == "first"
        assert origin.files.read("/home/user/folder/note") == "second"
        with pytest.raises(SandboxException):
            Sandbox.delete_snapshot(named.snapshot_id)  # two run from it
    finally:
        one.kill()
        two.kill()
    # At once after the kills.
    for snapshot in (named, unnamed):
        assert Sandbox.delete_snapshot(snapshot.snapshot_id) is True
        assert Sandbox.delete_snapshot(snapshot.snapshot_id) is False
        assert snapshot.snapshot_id not in ids()
    with pytest.raises((NotFoundException, SandboxException)):
        Sandbox.create(unnamed.snapshot_id)


def test_the_same_name_again_replaces_what_it_names(origin: Sandbox) -> None:
    name = f"again-{uuid.uuid4().hex[:8]}"
    origin.files.write("/home/user/version", "one")
    first = origin.create_snapshot(name=name)
    origin.files.write("/home/user/version", "two")
    second = origin.create_snapshot(name=name)
    assert first.snapshot_id == second.snapshot_id
    with Sandbox.create(name, timeout=60) as sandbox:
        assert sandbox.files.read("/home/user/version") == "two"
    assert Sandbox.delete_snapshot(name) is True


@pytest.mark.parametrize("name", ["Not A Name!", "other-team/name", "a:b:c", ""])
def test_a_bad_name_takes_no_snapshot(origin: Sandbox, name: str) -> None:
    before = ids()
    if name:
        with pytest.raises(SandboxException):
            origin.create_snapshot(name=name)
        assert ids() == before


def test_a_snapshot_outlives_its_sandbox() -> None:
    sandbox = Sandbox.create(timeout=60)
    sandbox.files.write("/home/user/note", "kept")
    snapshot = sandbox.create_snapshot()
    sandbox.kill()
    with Sandbox.create(snapshot.snapshot_id, timeout=60) as again:
        assert again.files.read("/home/user/note") == "kept"
        # A snapshot of what came of a snapshot.
        again.files.write("/home/user/note", "again")
        next_one = again.create_snapshot()
        with Sandbox.create(next_one.snapshot_id, timeout=60) as third:
            assert third.files.read("/home/user/note") == "again"
    assert Sandbox.delete_snapshot(next_one.snapshot_id) is True
    assert Sandbox.delete_snapshot(snapshot.snapshot_id) is True


def test_a_fork_is_another_sandbox_with_the_same_files(origin: Sandbox) -> None:
    origin.files.write("/home/user/shared", "before")
    before = origin.get_info()
    (fork,) = origin.fork()
    assert isinstance(fork, Sandbox)
    try:
        assert fork.sandbox_id != origin.sandbox_id
        assert fork.is_running()
        assert origin.is_running()
        assert origin.get_info().end_at == before.end_at
        assert fork.files.read("/home/user/shared") == "before"
        fork.files.write("/home/user/shared", "fork's")
        assert origin.files.read("/home/user/shared") == "before"
        assert fork.commands.run("echo $COLOUR").stdout == "blue\n"
        info = fork.get_info()
        assert info.metadata == {"of": "origin"}
        assert info.template_id == before.template_id
        assert info.lifecycle == before.lifecycle
    finally:
        fork.kill()


def test_forks_by_number(origin: Sandbox) -> None:
    forks = Sandbox.fork(origin.sandbox_id, count=4, timeout=60)
    try:
        assert len({fork.sandbox_id for fork in forks} | {origin.sandbox_id}) == 5
        for number, fork in enumerate(forks):
            fork.files.write("/home/user/number", str(number))
        assert [fork.files.read("/home/user/number") for fork in forks] == list("0123")
        for fork in forks:
            info = fork.get_info()
            assert 55 <= (info.end_at - info.started_at).total_seconds() <= 61
    finally:
        for fork in forks:
            fork.kill()


def test_a_dead_or_paused_sandbox_is_neither_forked_nor_snapshotted() -> None:
    sandbox = Sandbox.create(timeout=60)
    sandbox.pause()
    with pytest.raises(SandboxException, match="paused"):
        sandbox.fork()
    with pytest.raises(SandboxException, match="paused"):
        sandbox.create_snapshot()
    sandbox.kill()
    with pytest.raises(NotFoundException):
        sandbox.fork()
    with pytest.raises(NotFoundException):
        sandbox.create_snapshot()


def test_nothing_is_forked_beyond_the_bounds(origin: Sandbox) -> None:
    for count in (0, 101):
        with pytest.raises(Exception, match=r"(?i)count"):
            origin.fork(count=count)
