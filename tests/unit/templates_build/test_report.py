from __future__ import annotations

import asyncio

from nodeagent import build_report
from nodeagent.build_report import BuildLog, report_until_known
from nodeagent.errors import NotFound, Unavailable
from nodeagent.wire import BuildPhase


class Office:
    """A control plane that keeps lines by number; `faults` come first."""

    def __init__(self, *faults):
        self.heard = asyncio.Event()
        self.faults = list(faults)
        self.lines = {}
        self.ends = []

    async def report(self, build_id, progress):
        if self.faults:
            raise self.faults.pop(0)
        for offset, line in enumerate(progress.lines):
            self.lines[progress.first + offset] = line.message
            self.heard.set()
        if progress.phase in (BuildPhase.READY, BuildPhase.ERROR):
            self.ends.append((progress.phase, progress.reason, len(self.lines)))


def finished(log, count):
    for number in range(count):
        log.add(f"line {number}")
    log.reason = "why"
    log.move(BuildPhase.ERROR)
    return log


async def told(log, office):
    async with asyncio.timeout(5):
        return await report_until_known(log, build_id="b", node_id="n", office=office)


async def test_the_end_comes_with_the_last_line():
    office = Office()
    assert await told(finished(BuildLog(), 1200), office)
    assert list(office.lines.values()) == [f"line {number}" for number in range(1200)]
    assert office.ends == [(BuildPhase.ERROR, "why", 1200)]


async def test_nothing_is_lost_while_nobody_answers():
    office = Office(Unavailable("no"), Unavailable("no"))
    assert await told(finished(BuildLog(), 3), office)
    assert len(office.lines) == 3


async def test_a_forgotten_build_is_told_no_further():
    assert not await told(finished(BuildLog(), 3), Office(NotFound("gone")))


async def test_lines_follow_as_they_come():
    log, office = BuildLog(), Office()
    telling = asyncio.create_task(told(log, office))
    log.add("first")
    async with asyncio.timeout(2):
        await office.heard.wait()
    assert not telling.done()
    finished(log, 1)
    await telling
    assert office.lines == {0: "first", 1: "line 0"}


def test_a_flood_is_cut_and_says_so(monkeypatch):
    monkeypatch.setattr(build_report, "MAX_LINES", 3)
    log = BuildLog()
    for number in range(10):
        log.add(str(number))
    log.add("Build failed", level="error")
    progress, _ = log.progress("n", 0)
    messages = [line.message for line in progress.lines]
    assert messages == ["0", "1", "2", "The log is too long; what follows is left out.",
                        "Build failed"]  # fmt: skip


def test_what_a_database_cannot_hold_is_taken_out():
    log = BuildLog()
    log.add("a\0b\x1b[31mc\ud800" + "x" * 10_000)
    (line,) = log.progress("n", 0)[0].lines
    assert line.message.startswith("ab[31mc?")
    assert len(line.message) == build_report.MAX_LINE_CHARS
