"""Repairs: who takes over, that everybody computes the same, and that losses add up."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.control.repair import MAX_STANDBYS, choose_standbys, repair
from mesh.core.ids import NodeId
from mesh.core.plan import Deployment, Fence
from tests.runtime.fake_models import chain, make_deployment

NODES = tuple(NodeId(f"{index:02x}" * 16) for index in range(8))


def deployed(stages: int, nodes: int) -> Deployment:
    """A chain over the first nodes, with every other node as a stand-by."""
    there = NODES[:nodes]
    models = chain(stages)
    addresses = {node: f"10.0.0.{index}:1" for index, node in enumerate(there, 1)}
    made = make_deployment(models, dict(list(addresses.items())[:stages]), name="chain")
    standbys = choose_standbys(made.plan, [there] * stages)
    return replace(made, addresses=addresses, standbys=standbys)


def test_an_idle_node_takes_over_and_what_was_lost_becomes_a_standby() -> None:
    before = deployed(3, 4)
    after = repair(before, {NODES[1]}, {NODES[1]: "oven", NODES[3]: "spare"})
    assert after is not None
    assert [stage.devices for stage in after.plan.stages] == [(NODES[0],), (NODES[3],), (NODES[2],)]
    assert after.standbys[1][-1] == NODES[1]
    assert after.fence == Fence(before.fence.term, before.fence.generation + 1)
    assert after.cause == "stage 1 moved from oven to spare"
    assert after.addresses == before.addresses


def test_without_an_idle_node_the_least_used_takes_two_stages() -> None:
    after = repair(deployed(3, 3), {NODES[0], NODES[1]})
    assert after is not None
    assert [stage.devices for stage in after.plan.stages] == [(NODES[2],)] * 3


def test_nothing_lost_nothing_repaired_and_nobody_left_no_repair() -> None:
    before = deployed(2, 3)
    assert repair(before, {NODES[2]}) is None, "an idle stand-by is no loss"
    assert repair(before, NODES[:3]) is None
    assert repair(replace(before, standbys=()), {NODES[0]}) is None


def test_a_replicated_stage_goes_on_with_those_that_are_left() -> None:
    before = deployed(2, 4)
    stages = (replace(before.plan.stages[0], devices=(NODES[0], NODES[2])), before.plan.stages[1])
    after = repair(replace(before, plan=replace(before.plan, stages=stages)), {NODES[0]})
    assert after is not None and after.plan.stages[0].devices == (NODES[2],)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 4), st.integers(0, 4), st.lists(st.sets(st.sampled_from(NODES), max_size=3), max_size=6))
def test_a_repair_uses_nobody_who_is_lost_and_keeps_every_stage(
    stages: int, spare: int, losses: list[set[NodeId]]
) -> None:
    deployment = deployed(stages, stages + spare)
    for lost in losses:
        before, after = deployment, repair(deployment, lost)
        assert after == repair(deployment, lost), "not the same for everybody"
        if after is None:
            continue
        assert not lost.intersection(after.plan.devices)
        assert after.fence > before.fence
        for old, new in zip(before.plan.stages, after.plan.stages, strict=True):
            assert new.segment == old.segment and new.devices
            if not lost.intersection(old.devices):
                assert new.devices == old.devices, "a stage moved without need"
        for stage, standbys in zip(after.plan.stages, after.standbys, strict=True):
            assert not set(stage.devices).intersection(standbys) and len(standbys) <= MAX_STANDBYS
            assert set(standbys) <= set(after.addresses)
        deployment = after
