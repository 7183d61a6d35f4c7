"""A node's own look at whether what it holds is still in force.

A node that was frozen, cut off or restarted may hold a generation that others have replaced without being able to
tell it. Its frames are refused everywhere, so it does no harm; but it takes memory, and people see it. So a node asks
the other nodes of its deployments now and then, and at once after it was away, and drains what has been replaced.

One task per node, owned by the node's supervisor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mesh.control.deployments import DeploymentState, Key, key_of
from mesh.core.ids import NodeId
from mesh.core.plan import Deployment, Fence
from mesh.errors import MeshError
from mesh.runtime.deployment_driver import DeploymentDriver
from mesh.wire.channel import NodeClient

TICK_S = 1.0

AWAY_S = 2.0
"""A tick that comes later than that by so much: this node was frozen, or its machine slept. Others have noticed."""

CHECK_INTERVAL_S = 10.0
"""So long may a cut keep in memory what was replaced. Each look is a small call per other node of each deployment."""

ASK_TIMEOUT_S = 1.0


async def keep_current(node: NodeId, driver: DeploymentDriver, client: Callable[[str], NodeClient]) -> None:
    """Look for as long as the daemon runs, first right after the start, when deployments may have been restored."""
    loop = asyncio.get_running_loop()
    while True:
        await drain_replaced(node, driver, client)
        checked_at = loop.time()
        while loop.time() - checked_at < CHECK_INTERVAL_S:
            slept_at = loop.time()
            await asyncio.sleep(TICK_S)
            if loop.time() - slept_at > TICK_S + AWAY_S:
                break


async def drain_replaced(node: NodeId, driver: DeploymentDriver, client: Callable[[str], NodeClient]) -> None:
    """Drain each generation here that a newer one has replaced on the nodes that it names."""
    held = [record.deployment for record in driver.state.records.values() if record.was_activated]
    for deployment in held:
        others = [address for other, address in deployment.addresses.items() if other != node]
        found = await asyncio.gather(*(_newest_in_force(client, address, deployment) for address in others))
        newest = max((fence for fence in found if fence is not None), default=deployment.fence)
        if newest > deployment.fence:
            await _drain(driver, key_of(deployment), newest)


async def _newest_in_force(client: Callable[[str], NodeClient], address: str, deployment: Deployment) -> Fence | None:
    try:
        reports, _ = await client(address).list_deployments(deployment.name, ASK_TIMEOUT_S)
    except MeshError:
        return None  # it says nothing, so it says nothing newer
    active = [r.deployment.fence for r in reports if r.state == DeploymentState.ACTIVE.value]
    return max(active, default=None)


async def _drain(driver: DeploymentDriver, key: Key, newest: Fence) -> None:
    driver.tell(key.name, f"generation {key.fence} is replaced by {newest} on other nodes, and drained here")
    try:
        await driver.drain(key)
    except MeshError as error:  # somebody else has just removed it
        driver.tell(key.name, f"generation {key.fence} could not be removed: {error.message}")
