"""Readings are taken at rest and under load, of whoever can be read; what drives the load decides how it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mesh.core.fleet import Capabilities, NodeState, Watts
from mesh.core.ids import NodeId
from mesh.core.measurement import EnergyReading, SourceRequest
from mesh.errors import NodeLost, Refused
from mesh.runtime.measure_energy import REST_S, measure_power

METERED, STATED, OLD = NodeId("a" * 32), NodeId("b" * 32), NodeId("c" * 32)
REQUEST = SourceRequest(10.0, 1.0, 4, 0.0)


def capabilities(node: NodeId, watts: Watts | None = None) -> Capabilities:
    return Capabilities(node, "n", "x86_64", 2.0, 1, 1, 1, (), "", 1.0, 1.0, NodeState.READY, "0", watts=watts)


class World:
    """A clock, and devices that take 4 W at rest, and 9 W and one of two cores under load."""

    def __init__(self) -> None:
        self.now = 0.0
        self.joules = 0.0
        self.processor = 0.0
        self.is_loaded = False
        self.rests: list[float] = []

    async def rest(self, seconds: float) -> None:
        self.rests.append(seconds)
        await asyncio.sleep(0)
        self.now += seconds
        self.joules += seconds * (9.0 if self.is_loaded else 4.0)
        self.processor += seconds * self.is_loaded

    def client(self, kind: NodeId) -> Any:
        world = self

        class Client:
            async def read_energy(self) -> EnergyReading:
                if kind == OLD:
                    raise Refused("does not know this call")
                joules = world.joules if kind == METERED else None
                return EnergyReading(world.now, world.processor, joules, "RAPL" if kind == METERED else "")

        return Client()


async def measure(world: World, *kinds: NodeId) -> list[tuple[float | None, bool]]:
    async def drive() -> str:
        world.is_loaded = True
        return "driven"

    told = {METERED: capabilities(METERED), STATED: capabilities(STATED, Watts(8.0, 2.0)), OLD: capabilities(OLD)}
    result, powers = await measure_power({k: world.client(k) for k in kinds}, told, REQUEST, drive, world.rest)
    assert result == "driven"
    assert [power.device for power in powers] == list(kinds)
    return [(power.watts, power.is_measured) for power in powers]


async def test_a_meter_is_read_at_rest_and_under_load() -> None:
    world = World()
    assert await measure(world, METERED) == [(pytest.approx(5.0), True)]
    assert world.rests[:2] == [REST_S, REQUEST.warm_up_seconds]


async def test_without_meters_nobody_rests() -> None:
    world = World()
    assert await measure(world, STATED) == [(pytest.approx((8 - 2) / 2), False)]
    assert REST_S not in world.rests


async def test_who_cannot_be_read_spoils_nothing() -> None:
    assert await measure(World(), METERED, OLD) == [(pytest.approx(5.0), True), (None, False)]


async def test_what_drives_fails_as_itself() -> None:
    async def drive() -> None:
        raise NodeLost("it is gone")

    with pytest.raises(NodeLost):
        await measure_power({STATED: World().client(STATED)}, {}, REQUEST, drive)
