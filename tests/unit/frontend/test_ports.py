from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from frontend.ports import listening_ports

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 12345 1
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12346 1
   2: 0100007F:1F90 0100007F:C001 01 00000000:00000000 00:00000000 00000000  1000        0 12347 1
"""
TABLE_6 = """\
  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:0BB8 00000000000000000000000000000000:0000 0A 0 0 0 0 0 1 1
"""


def test_listening_ports_are_read_and_connections_are_not() -> None:
    assert list(listening_ports(TABLE)) == [8080, 22]


def test_ipv6_listeners_count() -> None:
    assert list(listening_ports(TABLE_6)) == [3000]


@given(st.text())
def test_anything_a_sandbox_writes_is_survived(text: str) -> None:
    assert all(0 < port < 65536 for port in listening_ports(text))
