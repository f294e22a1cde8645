"""What the kernel says of a container that is gone: whether memory ended it.

On control groups of version 1 the engine often misses it: the group's notice is lost with the group
when PID 1 itself is the victim.
"""

from __future__ import annotations

import os
import time

DEVICE = "/dev/kmsg"
RECORD_BYTES = 8192
RECENT_SECONDS = 10.0


def ended_for_memory(container_id: str, *, device: str = DEVICE) -> bool:
    """True when the kernel killed a process of the container's group within the last seconds.

    False too where the log cannot be read.
    """
    since_us = (time.monotonic() - RECENT_SECONDS) * 1e6
    mark = container_id.encode()
    try:
        log = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        while True:
            try:
                record = os.read(log, RECORD_BYTES)
            except BrokenPipeError:
                continue  # the record was overwritten; the next read goes on after it
            except OSError:
                return False  # no more
            if not record:
                return False
            if b"oom-kill:" in record and mark in record and _instant_us(record) >= since_us:
                return True
    finally:
        os.close(log)


def _instant_us(record: bytes) -> int:
    """`priority,sequence,microseconds since boot,...;text`"""
    try:
        return int(record.split(b",", 3)[2])
    except (IndexError, ValueError):
        return 0
