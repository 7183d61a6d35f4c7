"""Names, addresses and commands of a lab."""

from __future__ import annotations

import re

import pytest

from mesh.core.fleet_file import MAX_DEVICES, Fleet, FleetDevice, Role
from mesh.lab.topology import (
    NETWORK,
    LabDevice,
    Topology,
    device_batch,
    lay_out,
    namespace_prefix,
    rate_batches,
    switch_batch,
)


def full_lab(name: str = "x") -> Topology:
    devices = [FleetDevice(f"pi-{number}", latency_seconds=0.001 * (number % 2)) for number in range(MAX_DEVICES)]
    return lay_out(Fleet(tuple(devices)), name)


def test_everything_is_told_apart() -> None:
    topology = full_lab()
    for values in (
        topology.namespaces,
        [device.group for device in topology.devices],
        [device.address for device in topology.devices],
        [device.port for device in topology.devices],
        [device.hardware_address for device in topology.devices],
    ):
        assert len(values) == len(set(values)) >= MAX_DEVICES


def test_names_are_within_the_kernels_limits() -> None:
    topology = full_lab("x" * 63)
    assert all(len(device.port) <= 15 for device in topology.devices)
    assert all(len(name) <= 255 for name in topology.namespaces)
    assert all(re.fullmatch("02(:[0-9a-f]{2}){5}", device.hardware_address) for device in topology.devices)


@pytest.mark.parametrize(("one", "other"), [("a", "a-1"), ("a", "ab"), ("a-b", "a")])
def test_no_lab_sweeps_another(one: str, other: str) -> None:
    assert not any(name.startswith(namespace_prefix(one)) for name in full_lab(other).namespaces)
    assert all(name.startswith(namespace_prefix(one)) for name in full_lab(one).namespaces)


def test_links_are_pairs_or_taps() -> None:
    topology = full_lab()
    lines = switch_batch(topology).lines
    for device in topology.devices:
        pair = f"link add {device.port} type veth peer name eth0 netns {device.namespace}"
        tap = f"tuntap add dev {device.port} mode tap vnet_hdr"
        assert (pair in lines, tap in lines) == (not device.has_wire, device.has_wire)
        assert any(line.startswith("tuntap") for line in device_batch(device).lines) == device.has_wire
        assert f"link set dev {device.port} master br0" in lines


def test_roles_listen_where_real_devices_do() -> None:
    fleet = Fleet(
        (FleetDevice("a", Role.COORDINATOR), FleetDevice("b", Role.CLIENT), FleetDevice("c"), FleetDevice("d"))
    )
    topology = lay_out(fleet, "x")
    assert [device.listen_port for device in topology.devices] == [50070, None, 50071, 50071]
    assert topology.seed == f"{NETWORK[3]}:50071"


def one_device() -> tuple[Topology, LabDevice]:
    topology = lay_out(Fleet((FleetDevice("a"),)), "x")
    return topology, topology.devices[0]


@pytest.mark.parametrize(
    ("bits_per_second", "rate", "burst", "limit"),
    [
        (1_000_000, 1_009_333, 3028, 3028 + 65536),
        (100_000_000, 100_933_333, 12_500, 12_500 + 625_000),
        (10**9, 1_009_333_333, 125_000, 125_000 + 6_250_000),
    ],
)
def test_rates_are_set_on_both_ends(bits_per_second: int, rate: int, burst: int, limit: int) -> None:
    topology, device = one_device()
    sending, receiving = rate_batches(topology, device, bits_per_second)
    assert sending.namespace == device.namespace
    assert receiving.namespace == topology.switch_namespace
    bucket = f"root tbf rate {rate}bit burst {burst} limit {limit}"
    assert sending.lines == (f"qdisc replace dev eth0 {bucket}",)
    assert receiving.lines == (f"qdisc replace dev {device.port} {bucket}",)


def test_no_rate_takes_the_bucket_away() -> None:
    topology, device = one_device()
    assert all("delete" in batch.lines[-1] for batch in rate_batches(topology, device, None))
