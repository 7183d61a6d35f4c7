from __future__ import annotations

import pytest

from mesh.discovery.interfaces import Interface, choose_interfaces, list_interfaces
from mesh.errors import UsageError

LO = Interface("lo", "127.0.0.1", 8, multicast=False)
ETH = Interface("eth0", "192.168.1.9", 24)
WLAN = Interface("wlan0", "192.168.2.9", 24)
DOCKER = Interface("docker0", "172.17.0.1", 16)
DOWN = Interface("eth1", "10.0.0.1", 8, up=False)
POINT = Interface("ppp0", "10.9.0.1", 32, multicast=False)


def test_all_real_interfaces_are_used() -> None:
    assert choose_interfaces([LO, ETH, DOCKER, WLAN, DOWN, POINT]) == [ETH, WLAN]


@pytest.mark.parametrize("name", ["docker0", "br-1a2b", "virbr0", "veth12", "tun0", "tap1", "wg0", "cni0", "flannel.1"])
def test_bridges_and_tunnels_are_skipped_by_name_unless_nothing_else_is_left(name: str) -> None:
    bridge = Interface(name, "172.18.0.1", 16)
    assert choose_interfaces([LO, bridge, ETH]) == [ETH]
    assert choose_interfaces([LO, bridge]) == [bridge]


@pytest.mark.parametrize("name", ["eth0", "br0", "enp3s0", "wlan0", "usb0", "bond0", "lan-docker0"])
def test_other_names_are_kept(name: str) -> None:
    assert choose_interfaces([LO, Interface(name, "10.0.0.1", 8), DOCKER])[0].name == name


def test_loopback_is_the_last_resort() -> None:
    assert choose_interfaces([LO, DOWN, POINT]) == [LO]
    assert choose_interfaces([]) == []


def test_named_interfaces_are_used_whatever_they_are() -> None:
    assert choose_interfaces([LO, ETH, DOCKER], ["docker0"]) == [DOCKER]
    assert choose_interfaces([LO, ETH, DOCKER], ["127.0.0.1", "eth0"]) == [LO, ETH]


def test_an_unknown_interface_is_a_usage_error_that_names_those_there_are() -> None:
    with pytest.raises(UsageError) as refused:
        choose_interfaces([LO, ETH], ["eth0", "eth9", "10.1.1.1"])
    assert "eth9, 10.1.1.1" in refused.value.message
    assert "eth0 (192.168.1.9)" in refused.value.hint


def test_this_machine_has_a_loopback_interface() -> None:
    found = [one for one in list_interfaces() if one.address == "127.0.0.1"]
    assert len(found) == 1
    assert found[0].up
    assert found[0].is_loopback
    assert str(found[0].network) == "127.0.0.0/8"
