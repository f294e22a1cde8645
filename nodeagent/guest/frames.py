"""Frames of the link between agent and guest: one kind byte, a 32-bit big-endian length, the
payload.

Both sides import this, so it may use nothing but builtins: the guest's memory is paid once per
sandbox.
"""

from __future__ import annotations

HEADER_BYTES = 5
MAX_DATA = 256 * 1024  # payload of one data frame
MAX_MESSAGE = 1024 * 1024  # payload of one JSON frame; long replies take several
MAX_REQUEST = 64 * 1024 * 1024  # the agent's own request: environments and configs can be large

# agent -> guest
REQUEST = 1  # JSON: {"op": name, ...}
STDIN = 2  # id, bytes
CLOSE_STDIN = 3  # id
SIGNAL = 4  # id, one byte
RESIZE = 5  # id, cols and rows (16 bits each)
DRAIN = 6  # id
FINISH = 7  # the file is complete

# both ways
DATA = 8  # file content

# guest -> agent
REPLY = 16  # JSON
REPLY_PART = 17  # the beginning of a REPLY too long for one frame
ERROR = 18  # JSON: {"code", "message"}; the operation has failed
STDOUT = 19
STDERR = 20
PTY = 21
EXIT = 22  # the wait status, 32 bits
EVENTS = 23  # JSON list
ANSWER = 24  # id, then nothing for success or JSON {"code", "message"}
END = 25  # end of file content


def pack(kind: int, payload: bytes = b"") -> bytes:
    return kind.to_bytes(1, "big") + len(payload).to_bytes(4, "big") + payload


def pack_numbered(kind: int, number: int, payload: bytes = b"") -> bytes:
    return pack(kind, number.to_bytes(4, "big") + payload)
