"""The deployments of one node as a state machine: any order of events, every (state, event) pair, restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.control.deployments import (
    MAX_DEPLOYMENTS,
    ActivateAsked,
    ActivationOverdue,
    CheckContent,
    Command,
    ContentFound,
    ContentMissing,
    Deployments,
    DeploymentState,
    DrainAsked,
    Drained,
    DrainStage,
    EngineGaveUp,
    Event,
    ForgetDeployment,
    Key,
    Loaded,
    LoadingFailed,
    LoadStage,
    OpenStage,
    PrepareAsked,
    RaiseFence,
    StopAsked,
    StoreDeployment,
    UnloadStage,
    key_of,
    restore,
    step,
)
from mesh.core.ids import DeploymentName
from mesh.core.plan import Deployment, Fence
from mesh.errors import DeploymentNotFound, MeshError, Overloaded, Refused, StaleGeneration
from tests.control.deployment_values import DEPLOYMENT, KEY, PLAN, make_deployment, refusal, run, state_of

# --- any order of events --------------------------------------------------------------------------

keys = st.builds(
    Key,
    st.sampled_from([DeploymentName("a"), DeploymentName("b")]),
    st.builds(Fence, st.integers(1, 2), st.integers(1, 3)),
)

COMES_FROM = {
    DeploymentState.LOADING: {DeploymentState.PREPARING},
    DeploymentState.READY: {DeploymentState.LOADING},
    DeploymentState.ACTIVE: {DeploymentState.READY},
    DeploymentState.FAILED: {DeploymentState.PREPARING, DeploymentState.LOADING},
}


class AnyOrder(RuleBasedStateMachine):
    """Requests, outcomes and stray events in any order; the laws hold after each."""

    def __init__(self) -> None:
        super().__init__()
        self.state = Deployments()
        self.fenced: dict[DeploymentName, Fence] = {}
        self.disk: dict[DeploymentName, Deployment] = {}
        self.activated: set[Key] = set()
        self.loaded: set[Key] = set()

    def apply(self, event: Event) -> tuple[Command, ...]:
        before = self.state
        self.state, commands = step(before, event)
        error = refusal(commands)
        if error is not None:
            assert self.state is before, "a refusal changes nothing"
        for name, fence in before.fences.items():
            assert self.state.fences[name] >= fence, "a fence went down"
        for key, record in self.state.records.items():
            old = before.records.get(key)
            if old is not None and old.state is not record.state:
                assert old.state in COMES_FROM.get(record.state, set(DeploymentState)), f"{old.state} to {record.state}"
                assert old.state is not DeploymentState.DRAINING, "nothing comes back from draining"
        self.check_commands(event, commands)
        return commands

    def check_commands(self, event: Event, commands: tuple[Command, ...]) -> None:
        writes = [command for command in commands if isinstance(command, RaiseFence | StoreDeployment)]
        accepted = isinstance(event, PrepareAsked) and bool(commands) and refusal(commands) is None
        assert [isinstance(write, RaiseFence) for write in writes].count(True) == accepted
        assert list(commands[: len(writes)]) == writes, "nothing may come before it is on disk"
        for command in commands:
            match command:
                case RaiseFence(key):
                    assert self.fenced.get(key.name, Fence(0, 0)) < key.fence
                    self.fenced[key.name] = key.fence
                case StoreDeployment(deployment):
                    assert key_of(deployment) in self.activated | (
                        {event.key} if isinstance(event, ActivateAsked) else set()
                    )
                    assert self.disk.get(deployment.name) != deployment, "written twice"
                    self.disk[deployment.name] = deployment
                case LoadStage(key):
                    assert key not in self.loaded, "loaded twice"
                    self.loaded.add(key)
                case OpenStage(key):
                    assert key in self.loaded
                case UnloadStage(key):
                    self.loaded.discard(key)
                case ForgetDeployment(key):
                    assert key not in self.state.records
                    self.disk.pop(key.name, None)

    @rule(key=keys, window=st.sampled_from([4, 4, 5]))
    def prepare(self, key: Key, window: int) -> None:
        before = self.state
        deployment = replace(
            make_deployment(key.name, key.fence.term, key.fence.generation), plan=replace(PLAN, window=window)
        )
        error = refusal(self.apply(PrepareAsked(deployment)))
        highest = before.fences.get(key.name)
        if before.is_stopping:
            assert isinstance(error, Refused)
        elif key not in before.records and highest is not None and key.fence <= highest:
            assert isinstance(error, StaleGeneration)
        elif key not in before.records:
            assert error is None
            assert state_of(self.state, key) is DeploymentState.PREPARING

    @rule(key=keys)
    def activate(self, key: Key) -> None:
        before = state_of(self.state, key)
        error = refusal(self.apply(ActivateAsked(key)))
        assert (error is None) == (before in (DeploymentState.READY, DeploymentState.ACTIVE))
        if error is None:
            self.activated.add(key)

    @rule(key=keys)
    def drain(self, key: Key) -> None:
        is_here = key in self.state.records
        assert (refusal(self.apply(DrainAsked(key))) is None) == is_here

    @rule(key=keys)
    def give_up(self, key: Key) -> None:
        before = state_of(self.state, key)
        commands = self.apply(ActivationOverdue(key))
        is_removed = before not in (None, DeploymentState.DRAINING) and key not in self.activated
        assert commands == ((DrainStage(key),) if is_removed else ())

    @rule(
        key=keys,
        make=st.sampled_from(
            [
                ContentFound,
                Loaded,
                Drained,
                lambda key: ContentMissing(key, "not here"),
                lambda key: LoadingFailed(key, "broken"),
            ]
        ),
    )
    def report(self, key: Key, make: Callable[[Key], Event]) -> None:
        assert refusal(self.apply(make(key))) is None, "an outcome is never refused"

    @rule()
    def stop_and_start_again(self) -> None:
        kept = dict(self.disk)
        self.apply(StopAsked())
        for key in list(self.state.records):
            self.apply(Drained(key))
        assert not self.state.records, "something was left behind"
        assert self.disk == kept, "a stop keeps what is on disk"
        self.loaded.clear()
        self.state, commands = restore(tuple(kept.values()), self.state.fences)
        assert set(self.state.records) == {key_of(deployment) for deployment in kept.values()} <= self.activated
        assert all(isinstance(command, CheckContent) for command in commands)
        assert {command.key for command in commands if isinstance(command, CheckContent)} == set(self.state.records)

    @invariant()
    def fences_cover_records(self) -> None:
        for key in self.state.records:
            assert key.fence <= self.state.fences[key.name]
        assert self.state.highest_term == max((fence.term for fence in self.state.fences.values()), default=0)

    @invariant()
    def the_disk_holds_the_newest_that_was_in_force(self) -> None:
        for name in self.state.fences:
            here = [k for k in self.activated & set(self.state.records) if k.name == name]
            lasting = [k.fence for k in here if state_of(self.state, k) is not DeploymentState.DRAINING]
            if lasting:
                assert self.disk[name].fence >= max(lasting)
            if not here:
                assert name not in self.disk

    @invariant()
    def active_is_the_newest(self) -> None:
        for name in self.state.fences:
            active = [
                k.fence for k, r in self.state.records.items() if k.name == name and r.state is DeploymentState.ACTIVE
            ]
            found = self.state.active(name)
            assert (found.deployment.fence if found else None) == max(active, default=None)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

# --- every pair -----------------------------------------------------------------------------------

PATHS: dict[DeploymentState, tuple[Event, ...]] = {
    DeploymentState.PREPARING: (),
    DeploymentState.LOADING: (ContentFound(KEY),),
    DeploymentState.READY: (ContentFound(KEY), Loaded(KEY)),
    DeploymentState.ACTIVE: (ContentFound(KEY), Loaded(KEY), ActivateAsked(KEY)),
    DeploymentState.DRAINING: (ContentFound(KEY), Loaded(KEY), DrainAsked(KEY)),
    DeploymentState.FAILED: (ContentMissing(KEY, "gone"),),
    DeploymentState.GONE: (DrainAsked(KEY), Drained(KEY)),
}
SAME = "as it was"
GONE = None
EVENTS: dict[str, Event] = {
    "prepare": PrepareAsked(DEPLOYMENT),
    "other content": PrepareAsked(make_deployment(window=9)),
    "found": ContentFound(KEY),
    "missing": ContentMissing(KEY, "gone"),
    "loaded": Loaded(KEY),
    "load failed": LoadingFailed(KEY, "broken"),
    "gave up": EngineGaveUp(KEY, "it died too often"),
    "activate": ActivateAsked(KEY),
    "overdue": ActivationOverdue(KEY),
    "drain": DrainAsked(KEY),
    "drained": Drained(KEY),
    "stop": StopAsked(),
}
Outcome = tuple[object, tuple[Command, ...] | type[MeshError]]
IGNORED: Outcome = (SAME, ())
DRAINS: Outcome = (DeploymentState.DRAINING, (DrainStage(KEY),))
REFUSED: Outcome = (SAME, Refused)
UNKNOWN: Outcome = (SAME, DeploymentNotFound)
FAILS: Outcome = (DeploymentState.FAILED, (UnloadStage(KEY),))
S = DeploymentState
DEFAULTS: dict[str, Outcome] = {
    "prepare": IGNORED,
    "other content": REFUSED,
    "found": IGNORED,
    "missing": IGNORED,
    "loaded": IGNORED,
    "load failed": IGNORED,
    "gave up": IGNORED,
    "activate": REFUSED,
    "overdue": DRAINS,
    "drain": DRAINS,
    "drained": IGNORED,
    "stop": DRAINS,
}
TABLE: dict[tuple[DeploymentState, str], Outcome] = {
    (S.PREPARING, "found"): (S.LOADING, (LoadStage(KEY),)),
    (S.PREPARING, "missing"): FAILS,
    (S.LOADING, "loaded"): (S.READY, ()),
    (S.LOADING, "load failed"): FAILS,
    (S.LOADING, "gave up"): (S.FAILED, ()),
    (S.READY, "gave up"): (S.FAILED, ()),
    (S.ACTIVE, "gave up"): (S.FAILED, ()),
    (S.READY, "activate"): (S.ACTIVE, (StoreDeployment(DEPLOYMENT), OpenStage(KEY))),
    (S.ACTIVE, "overdue"): IGNORED,
    (S.DRAINING, "overdue"): IGNORED,
    (S.GONE, "overdue"): IGNORED,
    (S.ACTIVE, "activate"): IGNORED,
    (S.DRAINING, "drain"): IGNORED,
    (S.DRAINING, "stop"): IGNORED,
    (S.DRAINING, "drained"): (GONE, (UnloadStage(KEY), ForgetDeployment(KEY))),
    (S.FAILED, "prepare"): REFUSED,
    (S.GONE, "prepare"): (SAME, StaleGeneration),
    (S.GONE, "other content"): (SAME, StaleGeneration),
    (S.GONE, "activate"): UNKNOWN,
    (S.GONE, "drain"): UNKNOWN,
    (S.GONE, "stop"): IGNORED,
}


@pytest.mark.parametrize("asked", EVENTS)
@pytest.mark.parametrize("start", PATHS)
def test_every_pair_has_its_outcome(start: DeploymentState, asked: str) -> None:
    before, _ = run(Deployments(), PrepareAsked(DEPLOYMENT), *PATHS[start])
    assert state_of(before) is (None if start is S.GONE else start)
    becomes, expected = TABLE.get((start, asked), DEFAULTS[asked])
    after, commands = step(before, EVENTS[asked])
    assert state_of(after) is (state_of(before) if becomes == SAME else becomes)
    if isinstance(expected, type):
        assert type(refusal(commands)) is expected
        assert after is before
    else:
        assert commands == expected


# --- the rest -------------------------------------------------------------------------------------


def test_the_fence_of_an_accepted_deployment_is_stored_before_anything_else() -> None:
    _, commands = step(Deployments(), PrepareAsked(DEPLOYMENT))
    assert commands == (RaiseFence(KEY), CheckContent(KEY))


def test_what_is_taken_back_leaves_the_one_on_disk_that_it_was_to_replace() -> None:
    new = make_deployment(generation=2)
    active, _ = run(Deployments(), PrepareAsked(DEPLOYMENT), *PATHS[S.ACTIVE], PrepareAsked(new))
    _, commands = run(active, DrainAsked(key_of(new)), Drained(key_of(new)))
    assert commands == (UnloadStage(key_of(new)),), "the disk was never touched"
    swapped, commands = run(active, ContentFound(key_of(new)), Loaded(key_of(new)), ActivateAsked(key_of(new)))
    assert commands == (StoreDeployment(new), OpenStage(key_of(new)))
    _, commands = run(swapped, DrainAsked(key_of(new)), Drained(key_of(new)))
    assert commands == (StoreDeployment(DEPLOYMENT), UnloadStage(key_of(new)))
    _, commands = run(swapped, DrainAsked(KEY), Drained(KEY))
    assert commands == (UnloadStage(KEY),), "the disk holds the newer one"


@pytest.mark.parametrize(("term", "generation"), [(2, 2), (2, 1), (1, 9)])
def test_an_older_or_equal_fence_is_refused_also_after_removal(term: int, generation: int) -> None:
    newest = make_deployment(term=2, generation=2)
    state, _ = run(Deployments(), PrepareAsked(newest), DrainAsked(key_of(newest)), Drained(key_of(newest)))
    assert not state.records
    _, commands = step(state, PrepareAsked(make_deployment(term=term, generation=generation)))
    assert isinstance(refusal(commands), StaleGeneration)
    _, commands = step(state, PrepareAsked(make_deployment("other", term, generation)))
    assert refusal(commands) is None


def test_generations_overlap_during_a_swap() -> None:
    old, new = DEPLOYMENT, make_deployment(generation=2)
    state, _ = run(Deployments(), PrepareAsked(old), *PATHS[S.ACTIVE], PrepareAsked(new))
    assert state_of(state) is S.ACTIVE
    assert state.active(old.name) == state.records[KEY]
    state, _ = run(state, ContentFound(key_of(new)), Loaded(key_of(new)), ActivateAsked(key_of(new)))
    found = state.active(old.name)
    assert found is not None
    assert found.deployment == new


def test_a_node_holds_no_more_than_its_limit() -> None:
    state = Deployments()
    for number in range(MAX_DEPLOYMENTS):
        state, _ = step(state, PrepareAsked(make_deployment(generation=number + 1)))
    state, commands = step(state, PrepareAsked(make_deployment("one-more")))
    assert isinstance(refusal(commands), Overloaded)
    assert len(state.records) == MAX_DEPLOYMENTS


def test_a_stop_keeps_on_disk_what_was_here_but_not_what_was_being_removed() -> None:
    removed = make_deployment("removed")
    state, _ = run(Deployments(), PrepareAsked(DEPLOYMENT), PrepareAsked(removed), DrainAsked(key_of(removed)))
    state, commands = step(state, StopAsked())
    assert commands == (DrainStage(KEY),)
    state, commands = step(state, Drained(KEY))
    assert commands == (UnloadStage(KEY),)
    state, commands = step(state, Drained(key_of(removed)))
    assert commands == (UnloadStage(key_of(removed)), ForgetDeployment(key_of(removed)))
    assert not state.records


def test_nothing_is_taken_while_stopping() -> None:
    state, _ = step(Deployments(), StopAsked())
    state, commands = step(state, PrepareAsked(DEPLOYMENT))
    assert isinstance(refusal(commands), Refused)
    assert not state.records


def test_a_restart_loads_the_newest_of_each_name() -> None:
    old, new, other = make_deployment(generation=1), make_deployment(generation=2), make_deployment("b", 7, 1)
    state, commands = restore((new, old, other), {})
    assert set(state.records) == {key_of(new), key_of(other)}
    assert commands == (CheckContent(key_of(new)), CheckContent(key_of(other)))
    assert state.fences == {new.name: new.fence, other.name: other.fence}
    assert state.highest_term == 7


def test_a_restart_loads_what_was_in_force_although_a_newer_one_was_prepared() -> None:
    state, commands = restore((DEPLOYMENT,), {DEPLOYMENT.name: Fence(3, 1)})
    assert (set(state.records), commands) == ({KEY}, (CheckContent(KEY),))
    _, commands = step(state, PrepareAsked(make_deployment(term=2)))
    assert isinstance(refusal(commands), StaleGeneration)
    _, commands = run(state, *PATHS[S.ACTIVE])
    assert commands == (OpenStage(KEY),), "it is on disk already"
