"""Energy of a deployment while something drives it: readings of its devices at rest, and at two moments of the load.

Used by `mesh bench`. What the readings mean is `mesh.control.energy`'s to say. A device that cannot be read, as one of
an older version, is told as unknown and spoils nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from mesh.control.energy import DevicePower, judge_power, rest_watts
from mesh.core.fleet import Capabilities
from mesh.core.ids import NodeId
from mesh.core.measurement import EnergyReading, SourceRequest
from mesh.errors import MeshError
from mesh.runtime.measure_deployment import run_together
from mesh.wire.channel import NodeClient

REST_S = 0.5
"""At rest before the load, where there are meters: they are renewed every millisecond or so."""

LOAD_SHARE = 0.8
"""Of the measured time lies between the two readings: the rest is for the readings to come in."""

Result = TypeVar("Result")


async def measure_power(
    clients: Mapping[NodeId, NodeClient],
    told: Mapping[NodeId, Capabilities],
    request: SourceRequest,
    drive: Callable[[], Coroutine[Any, Any, Result]],
    rest: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
) -> tuple[Result, list[DevicePower]]:
    """What `drive`, which follows `request`, returns, and what each device of `clients` took meanwhile.

    Raises what `drive` raises. `told`: the devices' capabilities, for their cores and stated power.
    """

    async def read_all() -> dict[NodeId, EnergyReading | None]:
        found = await run_together([_read(client) for client in clients.values()])
        return dict(zip(clients, found, strict=True))

    before = await read_all()
    at_rest: dict[NodeId, float] = {}
    if any(reading is not None and reading.joules is not None for reading in before.values()):
        await rest(REST_S)
        for device, reading in (await read_all()).items():
            first = before[device]
            watts = rest_watts(first, reading) if first is not None and reading is not None else None
            if watts is not None:
                at_rest[device] = watts

    async def read_under_load() -> list[tuple[NodeId, EnergyReading | None, EnergyReading | None]]:
        await rest(request.warm_up_seconds)
        first = await read_all()
        await rest(LOAD_SHARE * request.seconds)
        second = await read_all()
        return [(device, first[device], second[device]) for device in clients]

    try:
        async with asyncio.TaskGroup() as group:
            driving, sampling = group.create_task(drive()), group.create_task(read_under_load())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    powers = [_judge(device, first, second, at_rest, told.get(device)) for device, first, second in sampling.result()]
    return driving.result(), powers


async def _read(client: NodeClient) -> EnergyReading | None:
    try:
        return await client.read_energy()
    except MeshError:
        return None  # told of the device; the bench itself says what is wrong with one that is gone


def _judge(
    device: NodeId,
    first: EnergyReading | None,
    second: EnergyReading | None,
    at_rest: Mapping[NodeId, float],
    told: Capabilities | None,
) -> DevicePower:
    if first is None or second is None or told is None:
        return DevicePower(device, None, "unknown: the node does not tell")
    return judge_power(device, first, second, at_rest.get(device), told.watts, told.cores)
