"""The watch with a coordinator that only notes what it is asked for: which looks lead to which changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest

from mesh.core.costs import Costs, DeviceCosts, type_of
from mesh.core.fleet import Capabilities, Link, NodeState, Provider
from mesh.core.ids import DeploymentName, NodeId, Sha256
from mesh.core.plan import Deployment, Fence, Limits, Objective, Plan
from mesh.core.report import DeploymentReport, NodeView, StageReport
from mesh.errors import MeshError, NodeLost, VerificationFailed
from mesh.model.read import read_model_bytes
from mesh.model.summarise import summarise
from mesh.planning.exact import plan as solve
from mesh.planning.problem import Problem, uncut
from mesh.runtime import watching
from mesh.runtime.deploying import Planned
from mesh.runtime.fleet import Answered
from mesh.runtime.watching import Watch
from mesh.storage.cost_figures import ModelCost
from mesh.storage.cost_store import CostStore
from tests.runtime.mesh_on_loopback import make_model

MODEL = read_model_bytes(make_model(layers=6))
GRAPH = summarise(MODEL)
NODES = tuple(NodeId(f"{index:032x}") for index in range(3))
NAME = DeploymentName("chain")
ENOUGH_LOOKS = 6


def capabilities(node: NodeId) -> Capabilities:
    number = NODES.index(node)
    provider = Provider("CPUExecutionProvider", True)
    return Capabilities(
        node, f"board-{number}", "arm", 1.0 + number, 1 << 30, 1 << 30, 1 << 30, (provider,), "1", 1.0, 1.0,
        NodeState.READY, "1", "board", "1x1",
    )  # fmt: skip


def make_problem(factors: dict[NodeId, float] | None = None) -> Problem:
    groups = len(GRAPH.groups)
    devices = {
        node: DeviceCosts(tuple(0.002 * i * (factors or {}).get(node, 1.0) for i in range(groups + 1)), 1 << 30, True)
        for node in NODES
    }
    links = {(a, b): Link(1e-5, 1e9) for a in NODES for b in NODES if a != b}
    names = {node: capabilities(node).name for node in NODES}
    return Problem(GRAPH, Costs(devices, links), NODES, names=names)


TRUTH = make_problem()


def deploy(problem: Problem, generation: int = 1, plan: Plan | None = None) -> Deployment:
    found = plan or solve(problem)
    assert isinstance(found, Plan)
    stages = tuple(
        replace(stage, segment=replace(stage.segment, sha256=Sha256(f"{index:064x}")))
        for index, stage in enumerate(found.stages)
    )
    addresses = {node: f"10.0.0.{number}:1" for number, node in enumerate(NODES)}
    return Deployment(
        NAME, Fence(1, generation), replace(found, stages=stages), MODEL.inputs, GRAPH.outputs, (), addresses
    )


class Content:
    """A client of a node that holds the whole model, or nothing."""

    def __init__(self, holds: bool, link: Link) -> None:
        self.holds = holds
        self.link = link

    async def measure_link(self, address: str) -> Link:
        return self.link

    async def has_content(self, digests: Sequence[str]) -> set[str]:
        return {digest for digest in digests if digest == MODEL.sha256 and self.holds}

    async def get_content(self, sha256: str) -> Any:
        yield len(MODEL.data), MODEL.data


@dataclass
class Notes:
    """Stands in for the coordinator and for the fleet."""

    deployment: Deployment
    problem: Problem
    there: set[NodeId] = field(default_factory=lambda: set(NODES))
    forgets: bool = False
    holds: bool = True
    link: Link = TRUTH.costs.link(NODES[0], NODES[1])  # noqa: RUF009
    refusal: MeshError | None = None
    replaced: list[tuple[Planned, str]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    looks: int = 0
    peak_bytes: int = 0
    is_working: bool = False
    has_looked: asyncio.Event = field(default_factory=asyncio.Event)

    async def look(self) -> list[Answered]:
        self.looks += 1
        if self.looks == ENOUGH_LOOKS:
            self.has_looked.set()
        return [self.answer(node) for node in NODES if node in self.there]

    def answer(self, node: NodeId) -> Answered:
        stages = tuple(
            StageReport(
                index,
                self.looks * 100,
                TRUTH.costs.compute(node, stage.segment.start, stage.segment.end).seconds,
                30.0,
                0,
                0,
                node,
                peak_bytes=self.peak_bytes,
            )
            for index, stage in enumerate(self.deployment.plan.stages)
            if node in stage.devices
        )
        reports = (DeploymentReport(self.deployment, "active", "", stages, ()),) if stages else ()
        view = NodeView(capabilities(node), self.deployment.addresses[node])
        return Answered(view, Content(self.holds, self.link), reports, 1)  # type: ignore[arg-type]

    def planned(self, name: str) -> tuple[Fence, Planned] | None:
        if self.forgets:
            return None
        return Fence(1, 1), Planned(MODEL, GRAPH, self.deployment.plan, problem=self.problem)

    async def replace(self, old: Deployment, planned: Planned, cause: str, progress: Any) -> Deployment | None:
        assert old == self.deployment
        if self.refusal is not None:
            raise self.refusal
        self.replaced.append((planned, cause))
        assert planned.problem is not None
        self.deployment = replace(deploy(planned.problem, plan=planned.plan), fence=Fence(2, 2), cause=cause)
        return self.deployment

    def tell(self, name: str, text: str) -> None:
        self.told.append(text)


async def look(notes: Notes, watch: Watch, times: int = ENOUGH_LOOKS) -> None:
    for _ in range(times):
        await watch.look()


def watch_over(notes: Notes, store: CostStore | None = None) -> Watch:
    return Watch(notes, store or CostStore())  # type: ignore[arg-type]


async def test_a_plan_that_is_what_was_predicted_stays() -> None:
    notes = Notes(deploy(TRUTH), TRUTH)
    await look(notes, watch_over(notes), 20)
    assert (notes.replaced, notes.told) == ([], [])


async def test_what_engines_took_is_kept_and_not_written_again() -> None:
    store, notes = CostStore(), Notes(deploy(TRUTH), TRUTH, peak_bytes=5_000_000)
    await look(notes, watch_over(notes, store))
    for stage in notes.deployment.plan.stages:
        for device in stage.devices:
            (kept,) = store.memory_of(MODEL.sha256, type_of(capabilities(device)))
            assert (kept.start, kept.end, kept.peak_bytes) == (stage.segment.start, stage.segment.end, 5_000_000)
            assert kept.at < time.time()
            notes.peak_bytes = 5_100_000
            await look(notes, watch_over(notes, store), 1)
            assert store.memory_of(MODEL.sha256, type_of(capabilities(device))) == [kept], "nearly the same"


async def test_a_wrong_profile_is_corrected_in_the_store_and_planned_around() -> None:
    wrong = make_problem({NODES[1]: 1 / 3})
    notes = Notes(deploy(wrong), wrong)
    store = CostStore()
    await look(notes, watch_over(notes, store))
    (planned, cause), *others = notes.replaced
    assert not others
    assert cause.startswith("planned again: board-1 takes")
    assert "3.00 times" in cause
    assert "bytes of weights new to their devices" in cause
    assert any(text.startswith("costs corrected: board-1") for text in notes.told)
    assert planned.problem is not None
    corrected = planned.problem.costs.device(NODES[1]).whole_model_seconds
    assert corrected == pytest.approx(TRUTH.costs.device(NODES[1]).whole_model_seconds)
    (segment,) = store.segments_of(MODEL.sha256, type_of(capabilities(NODES[1])))
    assert segment.seconds == pytest.approx(TRUTH.costs.compute(NODES[1], segment.start, segment.end).seconds)


async def test_a_forced_plan_is_corrected_and_not_replaced() -> None:
    wrong = make_problem({NODES[1]: 1 / 3})
    before = deploy(wrong)
    notes = Notes(replace(before, plan=replace(before.plan, forced=True)), wrong)
    await look(notes, watch_over(notes), 20)
    assert notes.replaced == []
    assert [text for text in notes.told if "forced" in text] == notes.told != []


async def test_a_link_that_is_slower_than_measured_is_corrected_and_planned_around() -> None:
    notes = Notes(deploy(TRUTH), TRUTH, link=Link(1e-5, 500.0))
    store = CostStore()
    await look(notes, watch_over(notes, store), 12)
    (planned, cause), *others = notes.replaced
    assert not others
    assert len(planned.plan.devices) == 1
    assert cause.startswith("rolled back: board-")
    assert any(text.startswith("costs corrected: board-") and "MB/s" in text for text in notes.told)
    stages = deploy(TRUTH).plan.stages
    cost = store.link(stages[0].devices[0], stages[1].devices[0])
    assert cost is not None
    taken = 30.0 * GRAPH.cut_at[stages[1].segment.start].bytes
    assert cost.bytes_per_second == pytest.approx(500.0 + taken)


async def test_links_that_are_as_measured_are_not_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that offers little."""
    measured: list[str] = []

    async def measure_link(self: Content, address: str) -> Link:
        measured.append(address)
        return self.link

    monkeypatch.setattr(Content, "measure_link", measure_link)
    notes = Notes(deploy(TRUTH), TRUTH)
    await look(notes, watch_over(notes), 30)
    assert len(measured) == len(notes.deployment.plan.stages) - 1
    assert (notes.replaced, notes.told) == ([], [])


async def test_what_a_client_repaired_is_improved_at_once() -> None:
    before = deploy(TRUTH)
    notes = Notes(before, TRUTH)
    watch = watch_over(notes)
    await look(notes, watch, 2)
    lost, taking = before.plan.stages[1].devices[0], before.plan.stages[0].devices[0]
    stages = (before.plan.stages[0], replace(before.plan.stages[1], devices=(taking,)), *before.plan.stages[2:])
    repaired = replace(before.plan, stages=stages)
    notes.there.remove(lost)
    notes.deployment = replace(before, plan=repaired, fence=Fence(1, 2), cause="stage 1 moved")
    await look(notes, watch, 1)
    (planned, cause), *others = notes.replaced
    assert not others
    assert lost not in planned.plan.devices
    assert len(planned.plan.devices) == 2
    assert f"without {capabilities(lost).name}" in cause
    assert "0 bytes of weights new to their devices" in cause


async def test_a_lost_device_that_nobody_repairs_is_planned_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MISSING_S", 0.0)
    notes = Notes(deploy(TRUTH), TRUTH)
    watch = watch_over(notes)
    await look(notes, watch, 2)
    lost = notes.deployment.plan.stages[1].devices[0]
    notes.there.remove(lost)
    await look(notes, watch, 3)
    ((planned, cause),) = notes.replaced
    assert lost not in planned.plan.devices
    assert "without" in cause


async def test_a_lost_device_is_waited_for_first() -> None:
    notes = Notes(deploy(TRUTH), TRUTH)
    watch = watch_over(notes)
    await look(notes, watch, 2)
    notes.there.remove(notes.deployment.plan.stages[1].devices[0])
    await look(notes, watch, 3)
    assert notes.replaced == []


async def test_a_device_that_came_back_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "REJOIN_S", 0.0)
    fewer = replace(TRUTH, excluded=frozenset({NODES[2]}))
    notes = Notes(deploy(fewer), TRUTH)
    watch = watch_over(notes)
    notes.there.remove(NODES[2])
    await look(notes, watch, 3)
    assert notes.replaced == []
    notes.there.add(NODES[2])
    await look(notes, watch, 3)
    ((planned, cause),) = notes.replaced
    assert NODES[2] in planned.plan.devices
    assert "every device back" in cause


async def test_cuts_that_cannot_be_proven_are_not_tried_again() -> None:
    """A model that runs whole because its cuts could not be proven; the coordinator has been restarted since."""
    praised = make_problem({NODES[0]: 1 / 3})
    found = solve(uncut(praised))
    assert isinstance(found, Plan)
    assert (found.devices, found.forced) == ((NODES[0],), False)
    notes = Notes(deploy(TRUTH, plan=found), praised, refusal=VerificationFailed("the parts differ"))
    watch = watch_over(notes)
    await look(notes, watch, 10)
    (text,) = [text for text in notes.told if "not tried again" in text]
    assert "the parts differ" in text


async def test_what_runs_whole_for_want_of_a_proof_moves_to_a_better_device() -> None:
    """One device was praised; the plan was made without cuts, and so is the one that replaces it."""
    wrong = uncut(make_problem({NODES[0]: 0.6, NODES[1]: 1 / 3}))
    notes = Notes(deploy(wrong), wrong)
    await look(notes, watch_over(notes))
    ((planned, cause),) = notes.replaced
    assert len(planned.plan.stages) == 1
    assert planned.plan.devices == (NODES[0],)
    assert "board-1 takes" in cause


async def test_what_cannot_be_put_in_force_is_told_and_left() -> None:
    wrong = make_problem({NODES[1]: 1 / 3})
    notes = Notes(deploy(wrong), wrong, refusal=NodeLost("it fell off the shelf"))
    await look(notes, watch_over(notes), 20)
    assert len([text for text in notes.told if "fell off the shelf" in text]) == 1


def filled_store(problem: Problem) -> CostStore:
    """What a coordinator measured before it was restarted."""
    store = CostStore()
    for node in NODES:
        prefix = problem.costs.device(node).prefix_seconds
        seconds = tuple(after - before for before, after in pairwise(prefix))
        store.put_model(MODEL.sha256, type_of(capabilities(node)), ModelCost(seconds, 1.0, True, 1.0))
    for pair, link in problem.costs.links.items():
        store.put_link(*pair, link, 1.0)
    return store


async def test_a_restarted_coordinator_reads_model_and_costs_again() -> None:
    wrong = make_problem({NODES[1]: 1 / 3})
    notes = Notes(deploy(wrong), wrong, forgets=True)
    await look(notes, watch_over(notes, filled_store(wrong)))
    ((_, cause),) = notes.replaced
    assert "board-1 takes" in cause


@pytest.mark.parametrize("objective", list(Objective)[:2])
async def test_a_restarted_coordinator_keeps_to_what_was_asked_for(objective: Objective) -> None:
    """The pin and the exclusion forbid what would be best: the third device, and the second one first."""
    limits = Limits(excluded=(NODES[2],), head=NODES[0])
    praised = make_problem({NODES[1]: 1 / 6, NODES[0]: 0.5, NODES[2]: 0.1})
    wrong = replace(praised, objective=objective, excluded=frozenset(limits.excluded), head=limits.head)
    before = deploy(wrong)
    assert (before.plan.limits, before.plan.objective) == (limits, objective)
    notes = Notes(before, wrong, forgets=True)
    watch = watch_over(notes, filled_store(praised))
    await look(notes, watch, 12)
    problem = watch._known[NAME].problem
    assert (problem.limits, problem.objective) == (limits, objective)
    assert any("costs corrected: board-" in text for text in notes.told)
    assert bool(notes.replaced) == (objective is Objective.THROUGHPUT), "alone on the pinned one is soonest answered"
    for planned, _ in notes.replaced:
        assert planned.plan.stages[0].devices == (NODES[0],)
        assert NODES[2] not in planned.plan.devices


@pytest.mark.parametrize(("holds", "why"), [(False, "no node holds the whole model"), (True, "is missing")])
async def test_what_it_cannot_know_it_says_once(holds: bool, why: str) -> None:
    notes = Notes(deploy(TRUTH), TRUTH, forgets=True, holds=holds)
    await look(notes, watch_over(notes))
    (text,) = notes.told
    assert why in text


async def test_it_looks_only_while_nothing_is_deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LOOK_INTERVAL_S", 0.0)
    notes = Notes(deploy(TRUTH), TRUTH, is_working=True)
    running = asyncio.ensure_future(watch_over(notes).run())
    for _ in range(10):
        await asyncio.sleep(0)
    assert notes.looks == 0
    notes.is_working = False
    async with asyncio.timeout(10):
        await notes.has_looked.wait()
    running.cancel()
    await asyncio.wait({running})
