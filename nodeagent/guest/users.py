"""Users of the sandbox, read from its own /etc per request, and how a path of theirs is meant.

Read by hand: the C library would load the image's NSS modules into our interpreter.
"""

from __future__ import annotations

import os

from nodeagent.guest.failure import Failure

DATABASES = "/etc"


class User:
    __slots__ = ("gid", "groups", "home", "name", "uid")

    def __init__(self, name: str, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.name, self.uid, self.gid, self.groups, self.home = name, uid, gid, groups, home


def read_database(name: str) -> list[list[str]]:
    """Rows of passwd or group; none when the image has no such file."""
    try:
        fd = os.open(f"{DATABASES}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        blocks = []
        while block := os.read(fd, 65536):
            blocks.append(block)
    finally:
        os.close(fd)
    lines = b"".join(blocks).decode("utf-8", "surrogateescape").split("\n")
    return [line.split(":") for line in lines if ":" in line]


def names_by_id(database: str) -> dict[int, str]:
    """The first name wins, as in the C library."""
    names: dict[int, str] = {}
    for row in read_database(database):
        if len(row) > 2 and row[2].isdecimal():
            names.setdefault(int(row[2]), row[0])
    return names


def find_user(name: str | None) -> User:
    """The user of that name, or of that decimal id; None is root, even where passwd is missing.

    Raises: Failure `unknown_user`.
    """
    wanted = name if name is not None else "root"
    rows = [row for row in read_database("passwd") if len(row) >= 6]
    row = next((row for row in rows if row[0] == wanted), None)
    if row is None and wanted.isdecimal():
        row = next((row for row in rows if row[2] == wanted), None)
        if row is None and int(wanted) < 2**32 - 1:
            return User(wanted, int(wanted), int(wanted), [int(wanted)], "/")
    if row is None or not row[2].isdecimal() or not row[3].isdecimal():
        if name is None or name == "root":
            return User("root", 0, 0, [0], "/root")
        raise Failure("unknown_user", f"invalid username: '{name}'")
    uid, gid = int(row[2]), int(row[3])
    groups = [gid]
    for entry in read_database("group"):
        if len(entry) > 3 and entry[2].isdecimal() and row[0] in entry[3].split(","):
            groups.append(int(entry[2]))
    return User(row[0], uid, gid, list(dict.fromkeys(groups)), row[5] or "/")


def expand_path(user: User, path: str, default_workdir: str) -> str:
    """The absolute path a user means. Raises: Failure `invalid_argument` for ~someone."""
    if not path:
        path = default_workdir or user.home
    if "\0" in path:
        raise Failure("invalid_argument", "invalid path: it contains a NUL byte")
    if path.startswith("~"):
        if path != "~" and not path.startswith("~/"):
            raise Failure("invalid_argument", "cannot expand user-specific home dir")
        return os.path.normpath(os.path.join(user.home, path[2:]))
    if path.startswith("/"):
        return path
    return os.path.normpath(os.path.join(user.home, path))
