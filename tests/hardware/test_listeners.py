"""Who listens on a port: of this machine, and of tables written down."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from mesh.hardware.listeners import find_listeners, parse_tcp_table

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0A00000A:C397 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0 0 10 0
   1: 0100007F:1F40 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0 100 0 0 10 0
   2: cut off
"""
TABLE_6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when
   0: 00000000000000000000000001000000:1F41 00000000000000000000000000000000:0000 0A 00000000:00000000 00:0 0 0 0 77 1
   1: 0000000000000000FFFF00000A00000A:1F42 00000000000000000000000000000000:0000 0A 00000000:00000000 00:0 0 0 0 78 1
"""


@pytest.mark.skipif(sys.byteorder != "little", reason="the tables are those of a little-endian machine")
def test_tables_of_the_kernel() -> None:
    assert list(parse_tcp_table(TABLE)) == [(50071, "10.0.0.10", "4242")]
    assert [(port, address) for port, address, _ in parse_tcp_table(TABLE_6)] == [(8001, "::1"), (8002, "10.0.0.10")]


def test_a_listener_is_found_with_its_process() -> None:
    with socket.socket() as taken, socket.socket() as other:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = taken.getsockname()[1]
        (found,) = find_listeners({port})
    assert (found.port, found.address, found.process) == (port, "127.0.0.1", os.getpid())
    assert found.command


def test_without_tables_the_port_is_tried(tmp_path: Path) -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        free.bind(("0.0.0.0", 0))
        ports = (taken.getsockname()[1], free.getsockname()[1])
        free.close()
        assert [each.port for each in find_listeners(ports, tmp_path)] == [ports[0]]
