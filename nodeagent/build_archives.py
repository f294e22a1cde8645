"""Archives of COPY steps: checked here, unpacked in the build's sandbox and nowhere else.

A user's archive is hostile. It is read as a stream with bounds on everything it declares, and
written anew with nothing in it but plain files, directories and links below one root.
"""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, Any

MAX_ENTRIES = 200_000
MAX_HEADER_BYTES = 1024 * 1024  # of one extended header, which tarfile reads into memory
MAX_NAME_BYTES = 4096

_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class BadArchive(Exception):
    """The text may be shown to the archive's owner."""


class _BoundedTarInfo(tarfile.TarInfo):
    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type in _EXTENDED and self.size > MAX_HEADER_BYTES:
            raise BadArchive("an extended header is too large")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise BadArchive("sparse files are not supported")
        return super()._proc_member(archive)  # type: ignore[misc]


def rewrite_archive(source: Path, target: Path, *, max_bytes: int) -> None:
    """Write the clean form of `source` (tar, plain or compressed) to `target`. Blocking.

    Owners become root; modes keep their permission bits. Links may point anywhere: they mean
    something only where they are unpacked. Raises: BadArchive.
    """
    left, entries = max_bytes, 0
    try:
        with (
            tarfile.open(source, "r|*", tarinfo=_BoundedTarInfo) as archive,
            tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as clean,
        ):
            for member in archive:
                entries += 1
                left -= 512 + max(0, member.size)
                if entries > MAX_ENTRIES:
                    raise BadArchive(f"it holds more than {MAX_ENTRIES} entries")
                if left < 0:
                    raise BadArchive(f"it unpacks to more than {max_bytes} bytes")
                copy = _clean(member)
                if copy is None:
                    continue
                content: IO[bytes] | None = None
                if member.isreg():
                    content = archive.extractfile(member)
                clean.addfile(copy, content)
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        raise BadArchive(f"it cannot be read: {error}") from error


def _clean(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    name = _inner_path(member.name)
    if not name:
        return None  # the root itself
    copy = tarfile.TarInfo(name)
    copy.mode = member.mode & 0o7777
    copy.mtime = int(min(max(member.mtime, 0), 2**33))
    if member.isreg():
        copy.size = member.size
    elif member.isdir():
        copy.type = tarfile.DIRTYPE
    elif member.issym():
        copy.type = tarfile.SYMTYPE
        copy.linkname = _bounded(member.linkname)
    elif member.islnk():
        copy.type = tarfile.LNKTYPE
        copy.linkname = _inner_path(member.linkname)
    else:
        raise BadArchive(f"'{name}' is neither a file nor a directory nor a link")
    return copy


def _inner_path(raw: str) -> str:
    """`raw` without a leading `./`. Raises: BadArchive when it leads out of the archive."""
    path = PurePosixPath(_bounded(raw))
    if path.is_absolute() or ".." in path.parts:
        raise BadArchive(f"'{raw[:200]}' leads out of the archive")
    return str(path) if path.parts else ""


def _bounded(raw: str) -> str:
    if len(raw.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES or "\0" in raw:
        raise BadArchive("a name is too long or holds a NUL")
    return raw


def source_root(source: str) -> str:
    """The part of a COPY source that is a place in the archive: what leads up to the first glob.

    The client has matched the glob already; everything below that place is wanted.
    """
    parts: list[str] = []
    pieces = [piece for piece in source.split("/") if piece not in ("", ".")]
    for piece in pieces:
        if any(char in piece for char in "*?[{"):
            break
        parts.append(piece)
    return "/".join(parts)
