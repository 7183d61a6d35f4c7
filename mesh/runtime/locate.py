"""How a command or a client finds its coordinator, and the fleet that it reaches nodes with.

In this order: the one named by an argument, the one named by the environment, one that discovery
found (announced, or a seed that turns out to be one), else a coordinator within this process. One that
was named must answer; one that was only found is passed over if it does not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.core.fleet import Peer
from mesh.core.ids import NodeId
from mesh.discovery.contract import Discovery
from mesh.errors import MeshError, NodeLost, Refused, Timeout, UsageError
from mesh.runtime.coordinator import Coordinator, CoordinatorPort
from mesh.runtime.fleet import MAX_ADDRESSES_TRIED, Fleet, open_fleet
from mesh.runtime.supervise import Supervisor

if TYPE_CHECKING:
    from mesh.wire.coordinator_client import CoordinatorClient

ARGUMENT = "--coordinator"
ENVIRONMENT = "MESH_COORDINATOR"

MAX_SEEDS_TRIED = 8
"""Seeds that are asked whether they are a coordinator; more than that are nodes."""

SEED_GRACE_S = 0.3
"""For the other seeds to answer after the first one has; on a LAN all do within milliseconds."""

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Located:
    port: CoordinatorPort
    fleet: Fleet
    where: str
    """In words, for people: "coordinator hall-1f3a at 10.0.0.7:50070" or "this process"."""


@contextlib.asynccontextmanager
async def open_coordinator(
    discovery: Discovery,
    tasks: Supervisor,
    *,
    settles: bool,
    argument: str | None = None,
    environment: str | None = None,
    warn: Warn,
    only: frozenset[NodeId] | None = None,
    costs: Path | None = None,
) -> AsyncIterator[Located]:
    """The coordinator to ask, open until the block ends. Enters `discovery`.

    `argument` and `environment` name one as "host:port"; empty or None does not. `settles` as for
    `Fleet`. `only` restricts the fleet to these nodes, which nobody else would know: then a
    coordinator is asked only if it is named. `warn` is told of coordinators that are passed over.
    `costs` is the file where a coordinator within this process keeps what it measures.

    Raises `NodeLost` where a named coordinator does not answer, `UsageError` where it is none.
    """
    async with contextlib.AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(open_fleet(discovery, tasks, settles=settles, only=only))
        named, source = (argument, ARGUMENT) if argument else (environment, ENVIRONMENT)
        client: CoordinatorClient | None = None
        where = ""
        if named:
            client, where = await _open_named(named, source)
        elif only is None:
            client, where = await _find(fleet, warn)
        if client is None:
            yield Located(Coordinator(fleet, costs), fleet, "this process")
        else:
            stack.push_async_callback(client.close)
            yield Located(client, fleet, where)


def _client(address: str) -> CoordinatorClient:
    # Imported here: where no coordinator is named or found, nobody needs to know how one is called.
    from mesh.wire.coordinator_client import CoordinatorClient

    return CoordinatorClient(address)


async def _open_named(address: str, source: str) -> tuple[CoordinatorClient, str]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"{source} is {address!r}, which is not of the form HOST:PORT", hint="such as 10.0.0.7:50070")
    client = _client(address)
    try:
        identity = await client.identity()
    except BaseException as error:
        await client.close()
        if isinstance(error, NodeLost | Timeout):
            raise NodeLost(
                f"the coordinator at {address}, named by {source}, does not answer",
                hint=f"start it with `mesh coordinator`, or leave {source} out to look for one or to plan here",
            ) from error
        if isinstance(error, Refused):
            raise UsageError(
                f"{address}, named by {source}, is no coordinator",
                hint="coordinators listen on port 50070 and nodes on 50071, unless told otherwise",
            ) from error
        raise
    return client, f"coordinator {identity.name} at {address}"


async def _find(fleet: Fleet, warn: Warn) -> tuple[CoordinatorClient | None, str]:
    """The first found that answers, by name, so that everybody who looks finds the same one."""
    await fleet.settle(enough=lambda: bool(fleet.coordinators()))
    for peer in sorted(fleet.coordinators(), key=lambda peer: (peer.name, peer.addresses)):
        found, reasons = await _try_peer(peer, peer.addresses[:MAX_ADDRESSES_TRIED])
        if found is not None:
            return found, f"coordinator {peer.name} at {found.address}"
        warn(f"coordinator {peer.name} is announced and passed over: {'; '.join(reasons)}")
    # Most seeds are nodes, and say so at once; one that is frozen must not hold up the others.
    seeds = [(peer, address) for peer in fleet.seeds()[:MAX_SEEDS_TRIED] for address in peer.addresses]
    found, _ = await _take_first([_try_address(peer, address) for peer, address in seeds], SEED_GRACE_S)
    return found, f"coordinator at {found.address}" if found is not None else ""


async def _try_peer(peer: Peer, addresses: tuple[str, ...]) -> tuple[CoordinatorClient | None, list[str]]:
    """A client of the first address of `peer` that answers as it should; else why none did."""
    return await _take_first([_try_address(peer, address) for address in addresses], None)


async def _take_first(
    attempts: Sequence[Coroutine[None, None, CoordinatorClient | str]], grace_s: float | None
) -> tuple[CoordinatorClient | None, list[str]]:
    """The first attempt, in their order, that gives a client; what is surplus is closed.

    `grace_s`: once one of them has ended, the others have only so long.
    """
    async with asyncio.TaskGroup() as group:
        works = [group.create_task(attempt) for attempt in attempts]
        pending: set[asyncio.Task[CoordinatorClient | str]] = set(works)
        if pending and grace_s is not None:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if pending:
            _, pending = await asyncio.wait(pending, timeout=grace_s)
        for work in pending:
            work.cancel()
    answers = [work.result() for work in works if not work.cancelled()]
    found = [answer for answer in answers if not isinstance(answer, str)]
    for surplus in found[1:]:
        await surplus.close()
    return (found[0] if found else None), [answer for answer in answers if isinstance(answer, str)]


async def _try_address(peer: Peer, address: str) -> CoordinatorClient | str:
    client = _client(address)
    try:
        identity = await client.identity()
    except MeshError as error:
        await client.close()
        return str(error)
    except BaseException:
        await client.close()
        raise
    if peer.node_id is not None and identity.node_id != peer.node_id:
        await client.close()
        return f"another coordinator has taken over {address}"
    return client
