"""Which coordinator a command asks: the named one, one that was found, or the one in this process."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.core.ids import NodeId
from mesh.discovery.contract import Advertisement, Discovery
from mesh.discovery.memory import MemoryDiscovery, MemoryNetwork
from mesh.discovery.static import StaticDiscovery
from mesh.errors import MeshError, NodeLost, UsageError
from mesh.runtime.coordinator import Coordinator
from mesh.runtime.locate import Located, open_coordinator
from mesh.runtime.supervise import Supervisor
from mesh.wire.coordinator_client import CoordinatorClient
from tests.runtime.mesh_on_loopback import make_coordinator, make_node, probe_at_once, running


@contextlib.asynccontextmanager
async def locating(
    discovery: Discovery,
    *,
    argument: str | None = None,
    environment: str | None = None,
    only: frozenset[NodeId] | None = None,
    warnings: list[str] | None = None,
) -> AsyncIterator[Located]:
    async with (
        Supervisor() as tasks,
        open_coordinator(
            discovery,
            tasks,
            settles=False,
            argument=argument,
            environment=environment,
            warn=(warnings if warnings is not None else []).append,
            only=only,
        ) as located,
    ):
        yield located


def free_address() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


async def announce(network: MemoryNetwork, name: str, address: str, node_id: str = "e" * 32) -> MemoryDiscovery:
    discovery = MemoryDiscovery(network)
    host, _, port = address.rpartition(":")
    await discovery.advertise(Advertisement(NodeId(node_id), name, "coordinator", int(port), (host,), {}))
    return discovery


async def test_without_any_it_is_this_process() -> None:
    warnings = list[str]()
    async with locating(MemoryDiscovery(MemoryNetwork()), warnings=warnings) as located:
        assert isinstance(located.port, Coordinator)
        assert located.where == "this process"
        assert await located.port.list_nodes() == await located.fleet.nodes() == []
    assert warnings == []


async def test_an_announced_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe_at_once(monkeypatch)
    network = MemoryNetwork()
    async with (
        running(make_node(network, tmp_path, "first")) as node,
        running(make_coordinator(network, tmp_path)) as coordinator,
        locating(MemoryDiscovery(network)) as located,
    ):
        assert isinstance(located.port, CoordinatorClient)
        assert located.where == f"coordinator hall at {coordinator.address}"
        (asked,), (seen,) = await located.port.list_nodes(), await located.fleet.nodes()
        assert asked.address == seen.address == node.address


async def test_the_argument_goes_before_the_environment_and_both_before_what_is_found(tmp_path: Path) -> None:
    network, elsewhere = MemoryNetwork(), MemoryNetwork()
    async with (
        running(make_coordinator(network, tmp_path / "a", "found")),
        running(make_coordinator(elsewhere, tmp_path / "b", "argument")) as first,
        running(make_coordinator(elsewhere, tmp_path / "c", "environment")) as second,
    ):
        cases = [
            (first.address, second.address, "coordinator argument"),
            (None, second.address, "coordinator environment"),
            ("", "", "coordinator found"),
        ]
        for argument, environment, expected in cases:
            async with locating(MemoryDiscovery(network), argument=argument, environment=environment) as located:
                assert located.where.startswith(expected)


@pytest.mark.parametrize("source", ["--coordinator", "MESH_COORDINATOR"])
async def test_a_named_one_that_does_not_answer_is_an_error(source: str) -> None:
    address = free_address()
    named = {"argument": address} if source == "--coordinator" else {"environment": address}
    with pytest.raises(NodeLost, match=f"{address}, named by {source}, does not answer") as caught:
        async with locating(MemoryDiscovery(MemoryNetwork()), **named):
            pass
    assert source in caught.value.hint


async def test_a_node_named_as_coordinator_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe_at_once(monkeypatch)
    network = MemoryNetwork()
    async with running(make_node(network, tmp_path, "first")) as node:
        with pytest.raises(UsageError, match="is no coordinator"):
            async with locating(MemoryDiscovery(network), argument=node.address):
                pass


@pytest.mark.parametrize("address", ["hall", "hall:", ":50070", "hall:zero", "hall:70000"])
async def test_what_is_no_address_is_a_usage_error(address: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        async with locating(MemoryDiscovery(MemoryNetwork()), argument=address):
            pass


async def test_one_that_was_found_and_does_not_answer_is_passed_over(tmp_path: Path) -> None:
    network, warnings = MemoryNetwork(), list[str]()
    await announce(network, "attic", free_address())
    async with locating(MemoryDiscovery(network), warnings=warnings) as located:
        assert located.where == "this process"
    assert len(warnings) == 1
    assert warnings[0].startswith("coordinator attic is announced and passed over")
    async with (
        running(make_coordinator(network, tmp_path)),
        locating(MemoryDiscovery(network), warnings=warnings) as located,
    ):
        assert located.where.startswith("coordinator hall")


async def test_one_whose_address_another_has_taken_over_is_passed_over(tmp_path: Path) -> None:
    network, warnings = MemoryNetwork(), list[str]()
    async with running(make_coordinator(MemoryNetwork(), tmp_path)) as coordinator:
        await announce(network, "attic", coordinator.address)
        async with locating(MemoryDiscovery(network), warnings=warnings) as located:
            assert located.where == "this process"
    assert "has taken over" in warnings[0]


async def test_a_seed_may_be_a_coordinator_or_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe_at_once(monkeypatch)
    network, warnings = MemoryNetwork(), list[str]()
    async with running(make_node(network, tmp_path, "first")) as node:
        async with locating(StaticDiscovery([node.address]), warnings=warnings) as located:
            assert located.where == "this process"
            assert [view.address for view in await located.port.list_nodes()] == [node.address]
        async with running(make_coordinator(network, tmp_path)) as coordinator:
            seeds = StaticDiscovery([free_address(), node.address, coordinator.address])
            async with locating(seeds, warnings=warnings) as located:
                assert located.where == f"coordinator at {coordinator.address}"
    assert warnings == []


async def test_a_restricted_fleet_is_planned_here(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with (
        running(make_coordinator(network, tmp_path)) as coordinator,
        locating(MemoryDiscovery(network), only=frozenset({NodeId("a" * 32)})) as located,
        locating(MemoryDiscovery(network), only=frozenset(), argument=coordinator.address) as named,
    ):
        assert located.where == "this process"
        assert isinstance(named.port, CoordinatorClient)


async def test_errors_inside_the_block_pass_through(tmp_path: Path) -> None:
    async with running(make_coordinator(MemoryNetwork(), tmp_path)) as coordinator:
        with pytest.raises(MeshError, match="mine"):
            async with locating(MemoryDiscovery(MemoryNetwork()), argument=coordinator.address):
                raise MeshError("mine")
