"""What the file API says about one path: EntryInfo in protobuf JSON, default values left out."""

from __future__ import annotations

import os
import stat
import time

from nodeagent.guest.users import names_by_id

TYPE_CHECKING = False  # the typing module is large, and every sandbox would pay for it
if TYPE_CHECKING:
    from typing import Any

XATTR_PREFIX = "user.e2b."
LETTERS = (
    (stat.S_IFDIR, "d"),
    (stat.S_IFLNK, "L"),
    (stat.S_IFBLK, "D"),
    (stat.S_IFCHR, "D"),
    (stat.S_IFIFO, "p"),
    (stat.S_IFSOCK, "S"),
)


def clean(text: str) -> str:
    """Names are bytes; what is not UTF-8 becomes U+FFFD, as in Go."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text


def permissions(mode: int) -> str:
    """Go's FileMode.String, which the clients show as it is."""
    kind = stat.S_IFMT(mode)
    letters = "".join(letter for format_, letter in LETTERS if kind == format_)
    if mode & stat.S_ISUID:
        letters += "u"
    if mode & stat.S_ISGID:
        letters += "g"
    if kind == stat.S_IFCHR:
        letters += "c"
    if mode & stat.S_ISVTX:
        letters += "t"
    bits = "".join(letter if mode & (0o400 >> at) else "-" for at, letter in enumerate("rwxrwxrwx"))
    return (letters or "-") + bits


def timestamp(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 10**9)
    seconds = min(max(seconds, -62135596800), 253402300799)  # what protobuf can say
    at = time.gmtime(seconds)
    whole = f"{at[0]:04}-{at[1]:02}-{at[2]:02}T{at[3]:02}:{at[4]:02}:{at[5]:02}"
    return f"{whole}.{rest:09}Z" if rest else f"{whole}Z"


def read_metadata(path: str) -> dict[str, str]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return {}
    metadata = {}
    for name in names:
        if name.startswith(XATTR_PREFIX):
            try:
                value = os.getxattr(path, name, follow_symlinks=False).decode()
                name.encode()
            except (OSError, UnicodeError):
                continue
            metadata[name[len(XATTR_PREFIX) :]] = value
    return metadata


class Describer:
    """Reads the sandbox's user and group names once for any number of entries."""

    def __init__(self) -> None:
        self.users = names_by_id("passwd")
        self.groups = names_by_id("group")

    def describe(self, path: str) -> dict[str, Any]:
        """Raises: OSError when there is nothing at `path`."""
        own = os.lstat(path)
        target: os.stat_result | None = own
        entry: dict[str, Any] = {"name": clean(os.path.basename(path.rstrip("/")) or "/")}
        if stat.S_ISLNK(own.st_mode):
            try:
                target = os.stat(path)
                entry["symlinkTarget"] = clean(os.path.realpath(path, strict=True))
            except OSError:
                target = None
                entry["symlinkTarget"] = clean(path)
        if target is not None:
            if stat.S_ISREG(target.st_mode):
                entry["type"] = "FILE_TYPE_FILE"
            elif stat.S_ISDIR(target.st_mode):
                entry["type"] = "FILE_TYPE_DIRECTORY"
            if target.st_mode & 0o777:
                entry["mode"] = target.st_mode & 0o777
        entry["path"] = clean(path)
        if own.st_size:
            entry["size"] = str(own.st_size)
        entry["permissions"] = permissions(own.st_mode)
        entry["owner"] = clean(self.users.get(own.st_uid, str(own.st_uid)))
        entry["group"] = clean(self.groups.get(own.st_gid, str(own.st_gid)))
        entry["modifiedTime"] = timestamp(own.st_mtime_ns)
        metadata = read_metadata(path)
        if metadata:
            entry["metadata"] = metadata
        return entry
