"""Costs of a fleet that is only written down: in the file's proportions, and never passed off as measured."""

from __future__ import annotations

import pytest

from mesh.core.fleet import MESSAGE_SECONDS, Watts
from mesh.core.fleet_file import parse_fleet
from mesh.errors import UsageError
from mesh.planning.fleet_costs import (
    LINK_LATENCY_SECONDS,
    LINK_SHARE,
    LOCAL_BYTES_PER_SECOND,
    NOMINAL_GFLOPS,
    Yardstick,
    estimate_costs,
    node_id_for,
    nominal_core_seconds,
    plannable,
    watts_of,
)
from tests.planning.instances import make_graph

GRAPH = make_graph([3, 1], [[0], [1]], [10, 20, 30], [[], []], {})
YARDSTICK = Yardstick(core_seconds=0.2, cores=4.0, memory_bytes=7_000_000)
FLEET = """
[[device]]
name = "slow"
cpu = 0.5
memory = "512MB"
rate = "100Mbit"
latency = "2ms"
air = "one"

[[device]]
name = "fast"
cpu = 2
rate = "1Gbit"
air = "one"

[[device]]
name = "bare"

[[device]]
name = "boss"
role = "coordinator"

[[device]]
name = "camera"
role = "client"
like = "a-camera"
"""


def test_times_links_and_memory_follow_the_file_and_are_estimates() -> None:
    devices = plannable(parse_fleet(FLEET))
    assert [device.name for device in devices.values()] == ["slow", "fast", "bare"]
    costs = estimate_costs(GRAPH, devices, YARDSTICK)
    slow, fast, bare = map(node_id_for, ("slow", "fast", "bare"))
    assert [costs.compute(node, 0, 2).seconds for node in (slow, fast, bare)] == pytest.approx([0.4, 0.1, 0.05])
    assert costs.compute(slow, 0, 1).seconds == pytest.approx(0.3), "three quarters of the work"
    assert [costs.device(node).memory_bytes for node in (slow, fast, bare)] == [512_000_000, 7_000_000, 7_000_000]
    radio, wire, free = costs.link(slow, fast), costs.link(slow, bare), costs.link(fast, bare)
    assert (radio.bytes_per_second, wire.bytes_per_second) == pytest.approx((6.25e6 * LINK_SHARE, 12.5e6 * LINK_SHARE))
    assert (wire.latency_seconds, free.latency_seconds) == (LINK_LATENCY_SECONDS + 2e-3, LINK_LATENCY_SECONDS)
    assert costs.link(bare, fast).bytes_per_second == 125e6 * LINK_SHARE
    assert costs.handling(slow, 0, sent=True).seconds == 2 * MESSAGE_SECONDS
    assert costs.handling(fast, 0, sent=True).seconds == MESSAGE_SECONDS
    figures = [costs.compute(slow, 0, 2), costs.handling(slow, 9, sent=False), costs.transfer(slow, fast, 9)]
    assert not any(figure.measured for figure in figures)


def test_devices_without_a_rate_are_as_near_as_one_machine() -> None:
    devices = plannable(parse_fleet('[[device]]\nname = "a"\ncount = 2\n'))
    costs = estimate_costs(GRAPH, devices, YARDSTICK)
    assert costs.link(node_id_for("a-1"), node_id_for("a-2")).bytes_per_second == LOCAL_BYTES_PER_SECOND


def test_a_profile_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"'pi'.*pi-4") as raised:
        plannable(parse_fleet('[[device]]\nname = "pi"\nlike = "pi-4"\n'))
    assert "leave `like` out" in raised.value.hint


def test_the_nominal_speed_is_never_nothing() -> None:
    assert nominal_core_seconds(make_graph([0], [[0]], [1, 1], [[]], {})) > 0
    billion = make_graph([10**9], [[0]], [1, 1], [[]], {})
    assert nominal_core_seconds(billion) == pytest.approx(1 / NOMINAL_GFLOPS)


def test_power_is_known_of_the_devices_whose_file_says_it() -> None:
    fleet = parse_fleet(
        '[[device]]\nname = "a"\nwatts_busy = 6.4\nwatts_idle = 2.7\n'
        '[[device]]\nname = "b"\nwatts_busy = 5.0\n[[device]]\nname = "c"\n'
    )
    devices = plannable(fleet)
    a, b, _ = devices
    assert watts_of(devices) == {a: Watts(6.4, 2.7), b: Watts(5.0, 0.0)}
