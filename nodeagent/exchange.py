"""One request and its answer, seen below ASGI, whichever version of HTTP carries it."""

from __future__ import annotations

import asyncio
from typing import Protocol


class Exchange(Protocol):
    """An ASGI scope of the gateway carries one as `scope["extensions"]["sandlot"]`."""

    @property
    def raw_target(self) -> bytes:
        """What the client asked for, as it was sent, query included."""

    @property
    def is_upgrade(self) -> bool:
        """Whether the client wants a WebSocket; the answer may then be `take_over`."""

    @property
    def is_gone(self) -> bool:
        """Whether nobody is left to answer."""

    def reset(self) -> None:
        """Break off: what was not sent is lost, and the client sees a failure, not an end."""

    def stream_until_close(self) -> None:
        """Frame the answer by the end of the connection: HTTP/1.0 knows no chunks."""

    def close_stream(self) -> None:
        """The end of an answer begun with `stream_until_close`."""

    def take_over(self, protocol: asyncio.Protocol) -> tuple[asyncio.Transport, bytes]:
        """Hand the connection to `protocol`. Returns it and what the client already sent."""
