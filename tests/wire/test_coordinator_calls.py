"""A coordinator's client and server on one loopback connection: what goes in comes out, and errors stay themselves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace

import pytest

from mesh.core.fleet import NodeState
from mesh.core.ids import NodeId
from mesh.core.plan import Limits, Objective, PlanOptions
from mesh.core.report import NodeView
from mesh.errors import (
    DeploymentNotFound,
    Infeasible,
    ListenError,
    MeshError,
    ModelInvalid,
    NodeLost,
    Overloaded,
    Refused,
    Timeout,
    UsageError,
)
from mesh.wire import coordinator_client, coordinator_server
from mesh.wire.coordinator_server import CoordinatorServer
from mesh.wire.server import NodeServer
from tests.wire.coordinator_material import (
    DEPLOYMENT,
    IDENTITY,
    NODE,
    PLAN,
    REPORT,
    VIEW,
    FakeHandlers,
    asking,
    serving,
)

OPTIONS = PlanOptions(Objective.LATENCY, 3, PLAN, Limits((NODE,), (NODE,), NODE, 4), explain=True, variant="int8")


def ignore(line: str) -> None:
    """For calls whose progress does not matter here."""


async def test_reads_come_back_as_they_were() -> None:
    async with serving(FakeHandlers()) as address, asking(address) as client:
        assert await client.identity() == IDENTITY
        assert await client.list_nodes() == [VIEW]
        assert await client.status() == [REPORT]
        assert await client.status("kws") == [REPORT]
        assert await client.resolve("kws") == DEPLOYMENT


async def test_lost_nodes_are_listed_also_those_that_never_answered() -> None:
    gone = NodeView(replace(VIEW.capabilities, state=NodeState.LOST), VIEW.address, is_lost=True)
    silent = replace(VIEW.capabilities, node_id=NodeId(""), name="10.0.0.9:50071", state=NodeState.LOST)
    seed = NodeView(silent, "10.0.0.9:50071", is_lost=True)
    async with serving(FakeHandlers(views=(gone, seed))) as address, asking(address) as client:
        listed = await client.list_nodes()
    assert listed[0] == gone
    assert listed[1].is_lost
    assert listed[1].capabilities.node_id == ""
    assert listed[1].capabilities.name == listed[1].address == "10.0.0.9:50071"


@pytest.mark.parametrize("size", [1, coordinator_client.TRANSFER_BYTES_PER_S, (1 << 20), (5 << 19) + 3])
async def test_plan_takes_the_whole_model_and_tells_of_progress(size: int) -> None:
    handlers, lines = FakeHandlers(), list[str]()
    model = bytes(range(256)) * (size // 256 + 1)
    async with serving(handlers) as address, asking(address) as client:
        assert await client.plan(model[:size], OPTIONS, lines.append) == PLAN
    assert lines == ["one", "two"]
    assert handlers.asked == [("plan", (model[:size], OPTIONS))]


@pytest.mark.parametrize("options", [OPTIONS, PlanOptions(), PlanOptions(Objective.ENERGY, None, None)])
async def test_deploy_carries_name_and_options(options: PlanOptions) -> None:
    handlers, lines = FakeHandlers(), list[str]()
    async with serving(handlers) as address, asking(address) as client:
        assert await client.deploy(b"model", "kws", options, lines.append) == DEPLOYMENT
    assert lines == ["one", "two"]
    assert handlers.asked == [("deploy", (b"model", "kws", options))]


async def test_undeploy_reaches_the_handler() -> None:
    handlers = FakeHandlers()
    async with serving(handlers) as address, asking(address) as client:
        await client.undeploy("kws")
        with pytest.raises(DeploymentNotFound, match="no deployment 'other'") as caught:
            await client.undeploy("other")
    assert caught.value.hint == "there are: kws"
    assert handlers.asked == [("undeploy", "kws")]


@pytest.mark.parametrize("error", [Infeasible("no plan", hint="add a node"), ModelInvalid("bad"), Overloaded("full")])
async def test_errors_after_progress_stay_themselves(error: MeshError) -> None:
    lines = list[str]()
    async with serving(FakeHandlers(error=error)) as address, asking(address) as client:
        with pytest.raises(type(error)) as caught:
            await client.plan(b"model", OPTIONS, lines.append)
    assert (caught.value.message, caught.value.hint) == (error.message, error.hint)
    assert lines == ["one", "two"]


async def test_an_unexpected_error_is_told_by_an_id_only(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(FakeHandlers(error=ValueError("secret path"))) as address, asking(address) as client:
        with pytest.raises(MeshError, match="internal error") as caught:
            await client.plan(b"model", OPTIONS, ignore)
        assert await client.identity() == IDENTITY  # it goes on
    assert "secret" not in str(caught.value)
    assert "secret path" in caplog.text


async def test_progress_arrives_while_the_work_goes_on() -> None:
    handlers = FakeHandlers(hangs=True)
    seen = asyncio.Event()
    async with serving(handlers) as address, asking(address) as client, asyncio.TaskGroup() as group:
        deploying = group.create_task(client.deploy(b"model", "kws", OPTIONS, lambda line: seen.set()))
        await asyncio.wait_for(seen.wait(), 5)
        assert not deploying.done()
        deploying.cancel()


async def test_a_caller_that_gives_up_ends_the_work() -> None:
    handlers = FakeHandlers(hangs=True)
    async with serving(handlers) as address, asking(address) as client:
        async with asyncio.TaskGroup() as group:
            deploying = group.create_task(client.deploy(b"model", "kws", OPTIONS, ignore))
            await asyncio.wait_for(handlers.begun.wait(), 5)
            assert not handlers.undone.is_set()
            deploying.cancel()
        await asyncio.wait_for(handlers.undone.wait(), 5)
        assert await client.identity() == IDENTITY


async def test_a_coordinator_that_goes_away_is_lost() -> None:
    handlers = FakeHandlers(hangs=True)
    server = CoordinatorServer(handlers)
    address = await server.start("127.0.0.1:0")
    async with asking(address) as client, asyncio.TaskGroup() as group:
        deploying = group.create_task(_error_of(lambda: client.deploy(b"model", "kws", OPTIONS, ignore)))
        await asyncio.wait_for(handlers.begun.wait(), 5)
        await server.stop(0)
        assert isinstance(await deploying, NodeLost)


async def _error_of(ask: Callable[[], object]) -> MeshError | None:
    try:
        await ask()  # type: ignore[misc]
    except MeshError as error:
        return error
    return None


async def test_work_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_server, "MAX_UPLOADS", 1)
    handlers = FakeHandlers(hangs=True)
    async with serving(handlers) as address, asking(address) as client:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(client.deploy(b"model", "kws", OPTIONS, ignore))
            await asyncio.wait_for(handlers.begun.wait(), 5)
            with pytest.raises(Overloaded, match="its limit"):
                await client.plan(b"model", OPTIONS, ignore)
            first.cancel()
        await asyncio.wait_for(handlers.undone.wait(), 5)
        await client.plan(b"model", OPTIONS, ignore)  # its place is free again


async def test_nobody_there_is_lost_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    async with asking(address) as client:
        with pytest.raises((NodeLost, Timeout), match=address):
            await client.identity()


async def test_a_silent_listener_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        async with asking(address) as client:
            with pytest.raises((NodeLost, Timeout), match=address):
                await client.identity(timeout_s=0.3)


async def test_a_node_is_no_coordinator() -> None:
    server = NodeServer(None)  # type: ignore[arg-type]  # none of its methods is called
    address = await server.start("127.0.0.1:0")
    try:
        async with asking(address) as client:
            with pytest.raises(Refused, match="does not know this call"):
                await client.identity()
    finally:
        await server.stop(0)


async def test_a_busy_port_is_an_error() -> None:
    async with serving(FakeHandlers()) as address:
        with pytest.raises(ListenError, match=address):
            await CoordinatorServer(FakeHandlers()).start(address)


@pytest.mark.parametrize("name", ["", "Not a name", "a" * 64])
async def test_names_are_checked_before_anything_is_sent(name: str) -> None:
    handlers = FakeHandlers()
    async with serving(handlers) as address, asking(address) as client:
        for ask in (
            lambda: client.deploy(b"model", name, OPTIONS, ignore),
            lambda: client.undeploy(name),
            lambda: client.resolve(name),
        ):
            with pytest.raises(UsageError, match="is not a valid name"):
                await ask()
    assert handlers.asked == []
