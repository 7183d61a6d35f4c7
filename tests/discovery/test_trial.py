"""Multicast is tried on each interface: here on loopback, and with what a system tells written into files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from mesh.discovery.trial import is_inner_bridge, question, read_interfaces, read_neighbours, try_multicast
from mesh.doctor.facts import InterfaceFacts

ARP = """\
IP address       HW type     Flags       HW address            Mask     Device
10.0.0.2         0x1         0x2         02:00:00:00:00:02     *        eth0
10.0.0.3         0x1         0x0         00:00:00:00:00:00     *        eth0
172.17.0.2       0x1         0x2         02:00:00:00:00:03     *        docker0
"""


def test_the_question_is_dns() -> None:
    packet = question(0x1234)
    assert struct.unpack("!6H", packet[:12]) == (0x1234, 0, 2, 0, 0, 0)
    assert packet[12:].startswith(b"\x0a_infermesh\x04_tcp\x05local\x00\x00\x0c\x00\x01")


@pytest.mark.network
def test_loopback_hears_itself() -> None:
    (lo,) = (one for one in read_interfaces(["127.0.0.1"]) if one.is_used)
    (tried,) = try_multicast([lo])
    assert tried.trial is not None
    assert (tried.trial.error, tried.trial.heard_itself, tried.trial.others) == ("", True, frozenset())


def test_an_address_that_is_not_here_is_told_and_others_are_not_tried() -> None:
    gone = InterfaceFacts("eth7", "192.0.2.77", 24)
    down = InterfaceFacts("eth8", "192.0.2.78", 24, is_up=False)
    tried = try_multicast([gone, down])
    assert tried[0].trial is not None and tried[0].trial.error
    assert tried[1].trial is None


def test_neighbours_that_have_answered_on_networks_of_boards(tmp_path: Path) -> None:
    table = tmp_path / "arp"
    table.write_text(ARP)
    used = [
        InterfaceFacts("eth0", "10.0.0.1", 24, is_used=False),
        InterfaceFacts("docker0", "172.17.0.1", 16, is_used=False, is_skipped=True),
    ]
    assert read_neighbours(used, table) == ["10.0.0.2"]
    assert read_neighbours(used, tmp_path / "none") == []


def test_a_bridge_with_a_network_card_is_no_inner_one(tmp_path: Path) -> None:
    net = tmp_path / "class" / "net"
    for name, port in (("br0", "enp1s0"), ("podman0", "veth1")):
        (net / name / "brif" / port).mkdir(parents=True)
    (net / "enp1s0" / "device").mkdir(parents=True)
    assert [is_inner_bridge(name, tmp_path) for name in ("br0", "podman0", "eth0")] == [False, True, False]
