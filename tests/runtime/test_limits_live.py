"""A running coordinator keeps to what whoever asks allows, and what it puts in force keeps saying so."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.core.ids import NodeId
from mesh.core.plan import Limits, PlanOptions
from mesh.discovery.memory import MemoryNetwork
from mesh.errors import Infeasible, NoNodes, UsageError
from mesh.wire.coordinator_client import CoordinatorClient
from tests.runtime.mesh_on_loopback import make_coordinator, make_model, make_node, probe_at_once, running

MODEL = make_model()


def ignore(line: str) -> None:
    """Progress does not matter here."""


async def test_limits_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe_at_once(monkeypatch)
    network = MemoryNetwork()
    lines = list[str]()
    async with (
        running(make_node(network, tmp_path, "first")),
        running(make_node(network, tmp_path, "second")),
        running(make_coordinator(network, tmp_path)) as coordinator,
    ):
        client = CoordinatorClient(coordinator.address)
        try:
            first, second = [view.capabilities.node_id for view in await client.list_nodes()]

            without = PlanOptions(limits=Limits(excluded=(first,)))
            deployment = await client.deploy(MODEL, "chain", without, lines.append)
            assert deployment.plan.devices == (second,)
            assert deployment.plan.limits == without.limits, "for whoever plans for it later"
            assert not any("first" in line for line in lines), "what is excluded is not even measured"
            assert not any(first in spare for spare in deployment.standbys)
            assert (await client.resolve("chain")).plan.limits == without.limits

            pinned = PlanOptions(stages=2, limits=Limits(head=second), explain=True)
            plan = await client.plan(MODEL, pinned, ignore)
            assert [stage.devices for stage in plan.stages] == [(second,), (first,)]
            assert plan.explanation is not None
            assert len(plan.explanation.stages) == 2
            explained = await client.deploy(MODEL, "chain", pinned, ignore)
            assert explained.plan.explanation is None, "it is about the plan as it was made"

            with pytest.raises(UsageError, match="first is excluded and shall run the first stage"):
                await client.plan(MODEL, PlanOptions(limits=Limits(head=first, excluded=(first,))), ignore)
            with pytest.raises(Infeasible, match="every node that answers is excluded"):
                await client.plan(MODEL, PlanOptions(limits=Limits(excluded=(first, second))), ignore)
            absent = NodeId("e" * 32)
            for limits in (Limits(head=absent), Limits(only=(absent,))):
                with pytest.raises(NoNodes, match="are asked for and do not answer"):
                    await client.plan(MODEL, PlanOptions(limits=limits), ignore)
            kept = await client.deploy(MODEL, "chain", PlanOptions(limits=Limits(only=(absent, second))), ignore)
            assert kept.plan.devices == (second,), "one that went away does not end what the others may do"
            assert not any(first in spare for spare in kept.standbys), "nor may others stand by"
        finally:
            await client.close()
