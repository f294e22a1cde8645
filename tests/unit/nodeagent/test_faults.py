"""Full disks and clocks that are set: the agent goes on, and tells all of it in order."""

import asyncio
import errno
import json

import pytest

from nodeagent.errors import NoSpace
from nodeagent.events import EventSpool
from nodeagent.records import StateStore
from nodeagent.wire import EndReason, EventKind, NodeSandboxState, OnTimeout
from tests.unit.nodeagent.fakes import create_spec
from tests.unit.nodeagent.test_agent import heard

RUNNING, PAUSED = NodeSandboxState.RUNNING, NodeSandboxState.PAUSED


class FullDisk:
    """While it is full, nothing is written to the state directory or the spool."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        for owner, name in ((StateStore, "write_sandbox"), (EventSpool, "_compact")):
            monkeypatch.setattr(owner, name, self._guarded(getattr(owner, name)))

    def _guarded(self, write):
        def guarded(*args, **options):
            if self.is_full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(*args, **options)

        return guarded


class FullFile:
    """What a spool's file becomes on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None: ...

    def tell(self) -> int:
        return 0

    def close(self) -> None: ...


@pytest.fixture
def disk(monkeypatch):
    return FullDisk(monkeypatch)


async def test_a_create_on_a_full_disk_is_refused_and_leaves_nothing(stage, disk):
    disk.is_full = True
    with pytest.raises(NoSpace):
        await stage.agent.create(create_spec())
    await stage.until(lambda: not stage.runtime.running)
    disk.is_full = False
    await stage.agent.create(create_spec())


async def test_what_happens_on_a_full_disk_is_noted_when_there_is_room(stage, disk):
    await stage.agent.create(create_spec())
    disk.is_full = True
    await stage.agent.pause("i1", memory=True)
    assert stage.agent.state("i1").state is PAUSED
    disk.is_full = False
    await stage.agent.sweep()
    await stage.restart()
    assert stage.agent.state("i1").state is PAUSED


async def test_a_kill_on_a_full_disk_leaves_nothing(stage, disk):
    await stage.agent.create(create_spec())
    disk.is_full = True
    stage.agent._events._file.close()
    stage.agent._events._file = FullFile()
    stage.agent.kill("i1", reason=EndReason.KILLED)
    assert (await heard(stage, EventKind.ENDED)).data["reason"] == "killed"
    await stage.until(lambda: not stage.runtime.running)


def test_a_spool_catches_up_when_there_is_room(tmp_path):
    spool = EventSpool(tmp_path / "events.jsonl")
    spool.append(EventKind.STARTED, "i1", at=1.0)
    spool._file.close()
    spool._file = FullFile()
    spool.append(EventKind.PAUSED, "i1", at=2.0)
    spool.append(EventKind.RESUMED, "i1", at=3.0)  # there is room again
    spool._file.close()  # as a killed agent leaves it
    again = EventSpool(tmp_path / "events.jsonl")
    kinds = [event.kind for event in again.pending(10)]
    assert kinds == [EventKind.STARTED, EventKind.PAUSED, EventKind.RESUMED]
    again.close()


async def test_the_order_of_moves_shows_though_the_clock_is_set_back(stage):
    """The control plane orders moves by their instants."""
    await stage.agent.create(create_spec(timeout_seconds=600))
    started_at = stage.agent.state("i1").started_at
    stage.clock.advance(-3600)
    paused = await stage.agent.pause("i1", memory=True)
    resumed = await stage.agent.resume("i1", timeout_seconds=60, memory=True)
    assert started_at < paused.paused_at < resumed.started_at
    assert resumed.end_at == resumed.started_at + 60
    await heard(stage, EventKind.RESUMED)


@pytest.mark.parametrize("on_timeout", [OnTimeout.KILL, OnTimeout.PAUSE])
async def test_a_clock_set_forward_ends_what_is_over(stage, on_timeout):
    await stage.agent.create(create_spec(timeout_seconds=60, on_timeout=on_timeout))
    await stage.agent.create(create_spec("i2", timeout_seconds=7200))
    stage.clock.advance(3600)
    kind = EventKind.ENDED if on_timeout is OnTimeout.KILL else EventKind.PAUSED
    event = await heard(stage, kind)
    assert event.data["reason"] == "timeout"
    assert stage.agent.state("i2").state is RUNNING


async def test_a_clock_set_back_ends_nothing_early(stage):
    await stage.agent.create(create_spec(timeout_seconds=60))
    end_at = stage.agent.state("i1").end_at
    stage.clock.advance(-3600)
    stage.agent.enforce_due()
    assert stage.agent.state("i1").state is RUNNING
    stage.clock.advance(3600 + 61)
    stage.agent.enforce_due()
    event = await heard(stage, EventKind.ENDED)
    assert event.at >= end_at


async def test_a_sandbox_that_holds_too_much_is_paused_and_says_so(stage):
    await stage.agent.create(create_spec(disk_size_mb=10))
    sandbox = stage.agent.find("i1")
    stage.runtime.disk_bytes = 9 * 2**20
    await stage.agent._meter.walk()
    assert sandbox.state is RUNNING
    stage.runtime.disk_bytes = 12 * 2**20
    await stage.agent._meter.walk()
    event = await heard(stage, EventKind.PAUSED)
    assert event.data == {"memory": True, "reason": "disk"}
    assert "holds 12 MiB" in (await heard(stage, EventKind.LOG)).data["message"]
    # Whoever resumes it has until the next look to make room.
    await stage.agent.resume("i1", timeout_seconds=60, memory=True)
    stage.runtime.disk_bytes = 5 * 2**20
    await stage.agent._meter.walk()
    assert sandbox.state is RUNNING


@pytest.mark.parametrize("is_stopped", [True, False])
async def test_an_agent_killed_while_it_halts_a_sandbox_pauses_it_when_it_is_back(
    stage, is_stopped
):
    """A stopped container must not be taken for a dead one: its files are what is kept."""
    await stage.agent.create(create_spec())
    halt = stage.runtime.halt

    async def halt_and_hang(container):
        if is_stopped:
            await halt(container)
        await asyncio.Event().wait()

    stage.runtime.halt = halt_and_hang
    pause = asyncio.create_task(stage.agent.pause("i1", memory=False))
    record = stage.state_dir / "node/n1/sandboxes/i1.json"
    await stage.until(lambda: json.loads(record.read_text())["is_halting"])
    await stage.until(lambda: not is_stopped or stage.runtime.stopped)
    # Cut off without a chance to clean up.
    stage.agent._record = lambda *args, **options: None
    stage.agent.find("i1").move.cancel()
    await asyncio.wait([pause])
    await stage.kill()
    stage.runtime.halt = halt

    await stage.start()
    await stage.until(lambda: stage.agent.state("i1").state is PAUSED)
    assert not stage.agent.state("i1").memory
    event = await heard(stage, EventKind.PAUSED)
    assert event.data["memory"] is False
    resumed = await stage.agent.resume("i1", timeout_seconds=60, memory=True)
    assert not resumed.warm
