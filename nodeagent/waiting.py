"""Waiting for an event, but not for ever."""

from __future__ import annotations

import asyncio


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for the event; False when the time is up first.

    Not asyncio.wait_for: in Python 3.11 it swallows a cancel that comes together with the event,
    and a side task that misses its cancel keeps the agent from stopping.
    """
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
