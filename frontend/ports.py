"""Which ports a sandbox listens on, from the text of /proc/net/tcp and tcp6. Pure."""

from __future__ import annotations

from collections.abc import Iterator

LISTEN = "0A"
INODE_COLUMN = 9


def listening_ports(table: str) -> Iterator[int]:
    """Ports in state LISTEN, as the kernel lists them; lines it does not understand are skipped."""
    for line in table.splitlines()[1:]:
        columns = line.split()
        if len(columns) <= INODE_COLUMN or columns[3] != LISTEN:
            continue
        _, _, port = columns[1].rpartition(":")
        try:
            number = int(port, 16)
        except ValueError:
            continue
        if 0 < number < 65536:
            yield number
