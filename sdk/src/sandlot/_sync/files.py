from __future__ import annotations

from sandlot import _wire
from sandlot._sync.transport import Transport
from sandlot._errors import Conflict, NotFound
from sandlot._models import FileEntry, SandboxHandle


class Files:
    """Files of one sandbox. Relative paths start at the user's home; `user` None: its default."""

    def __init__(self, transport: Transport, handle: SandboxHandle) -> None:
        self._transport = transport
        self._handle = handle

    def read(self, path: str, *, user: str | None = None) -> str:
        """The content as text, bytes that are not UTF-8 replaced. Raises: NotFound."""
        return (self.read_bytes(path, user=user)).decode("utf-8", "replace")

    def read_bytes(self, path: str, *, user: str | None = None) -> bytes:
        """Raises: NotFound."""
        request = _wire.read_file(self._transport.config, self._handle, path, user=user)
        return (self._transport.send(request)).body

    def write(self, path: str, data: str | bytes, *, user: str | None = None) -> FileEntry:
        """Create or replace a file, with its missing parent directories."""
        content = data.encode() if isinstance(data, str) else bytes(data)
        request = _wire.write_file(self._transport.config, self._handle, path, content, user=user)
        return _wire.parse_written(self._transport.send(request))

    def list(
        self, path: str = "", *, depth: int = 1, user: str | None = None
    ) -> list[FileEntry]:
        """Entries below a directory, sorted, `depth` levels down. Raises: NotFound."""
        request = _wire.list_dir(self._transport.config, self._handle, path, depth=depth, user=user)
        return _wire.parse_entries(self._transport.send(request))

    def stat(self, path: str, *, user: str | None = None) -> FileEntry:
        """Raises: NotFound."""
        request = _wire.stat_file(self._transport.config, self._handle, path, user=user)
        return _wire.parse_entry(self._transport.send(request))

    def exists(self, path: str, *, user: str | None = None) -> bool:
        try:
            self.stat(path, user=user)
        except NotFound:
            return False
        return True

    def make_dir(self, path: str, *, user: str | None = None) -> bool:
        """Make a directory and its parents; False when it was there."""
        request = _wire.make_dir(self._transport.config, self._handle, path, user=user)
        try:
            self._transport.send(request)
        except Conflict:
            return False
        return True

    def move(self, source: str, destination: str, *, user: str | None = None) -> FileEntry:
        """Raises: NotFound."""
        request = _wire.move_file(
            self._transport.config, self._handle, source, destination, user=user
        )
        return _wire.parse_entry(self._transport.send(request))

    def remove(self, path: str, *, user: str | None = None) -> None:
        """Remove a file, or a directory with all in it; a missing path is fine."""
        request = _wire.remove_file(self._transport.config, self._handle, path, user=user)
        self._transport.send(request)
