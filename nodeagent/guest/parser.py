"""Cuts a guest's bytes into frames without trusting any of them.

Memory is bounded whatever a guest claims: content is handed on as it arrives, messages have a
limit.
"""

from __future__ import annotations

from nodeagent.errors import GuestFault
from nodeagent.guest import frames

# The longest piece handed on at once: what one data event of envd may carry.
PIECE_BYTES = {frames.STDOUT: 32768, frames.STDERR: 32768, frames.PTY: 16384, frames.DATA: 262144}
MESSAGES = frozenset(
    {
        frames.REPLY,
        frames.REPLY_PART,
        frames.ERROR,
        frames.EXIT,
        frames.EVENTS,
        frames.ANSWER,
        frames.END,
    }
)


class FrameParser:
    def __init__(self) -> None:
        self._rest = bytearray()  # the beginning of a header or message
        self._need = (
            0  # its length, when known: a message that drips in is not copied at every drop
        )
        self._kind = 0
        self._left = 0  # content bytes of the current data frame still to come

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Frames completed by `data`; content in pieces. Raises: GuestFault."""
        found: list[tuple[int, bytes]] = []
        at = 0
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return found
            data, self._rest, self._need = bytes(self._rest), bytearray(), 0
        size = len(data)
        while at < size:
            if self._left:
                end = min(at + self._left, size)
                self._left -= end - at
                step = PIECE_BYTES[self._kind]
                while at < end:
                    found.append((self._kind, data[at : min(at + step, end)]))
                    at = min(at + step, end)
                continue
            if size - at < frames.HEADER_BYTES:
                break
            kind = data[at]
            length = int.from_bytes(data[at + 1 : at + frames.HEADER_BYTES], "big")
            if kind in PIECE_BYTES:
                if length > frames.MAX_DATA:
                    raise GuestFault(f"the guest sent a frame of {length} bytes")
                self._kind, self._left = kind, length
                at += frames.HEADER_BYTES
                continue
            if kind not in MESSAGES:
                raise GuestFault(f"the guest sent a frame of kind {kind}")
            if length > frames.MAX_MESSAGE:
                raise GuestFault(f"the guest sent a message of {length} bytes")
            end = at + frames.HEADER_BYTES + length
            if end > size:
                self._need = end - at
                break
            found.append((kind, data[at + frames.HEADER_BYTES : end]))
            at = end
        self._rest += data[at:]
        return found
