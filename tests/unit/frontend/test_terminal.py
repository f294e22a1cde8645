from __future__ import annotations

import asyncio

from frontend.terminal import (
    RESET_SCREEN,
    VIEWER_QUEUE_BYTES,
    Replay,
    Viewer,
    clamp_size,
)


def test_a_replay_keeps_the_end_and_not_more() -> None:
    replay = Replay(limit=10)
    for index in range(100):
        replay.add(b"%02d" % index)
    assert replay.all() == b"9596979899"


def test_one_large_piece_is_cut_to_the_limit() -> None:
    replay = Replay(limit=4)
    replay.add(b"abcdefgh")
    assert replay.all() == b"efgh"


async def test_a_viewer_gets_what_came_in_order_and_then_the_end() -> None:
    viewer = Viewer(lambda: b"")
    viewer.give(b"a")
    viewer.give(b"b")
    viewer.end("done")
    assert await viewer.take() == b"ab"
    assert await viewer.take() is None
    assert viewer.end_reason == "done"


async def test_a_viewer_waits_for_output() -> None:
    viewer = Viewer(lambda: b"")
    taking = asyncio.create_task(viewer.take())
    await asyncio.sleep(0)
    assert not taking.done()
    viewer.give(b"x")
    assert await taking == b"x"


async def test_a_slow_viewer_gets_a_fresh_screen_instead_of_a_backlog() -> None:
    viewer = Viewer(lambda: b"the last screen")
    for _ in range(10):
        viewer.give(b"y" * (VIEWER_QUEUE_BYTES // 4))
    assert await viewer.take() == RESET_SCREEN + b"the last screen"
    viewer.give(b"new")
    assert await viewer.take() == b"new"


def test_sizes_stay_within_reason() -> None:
    assert clamp_size(10**9, -5) == (500, 1)
    assert clamp_size(80, 24) == (80, 24)
