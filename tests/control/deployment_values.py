"""Deployments of one small plan, and what tests ask of the state machine."""

from __future__ import annotations

from dataclasses import replace

from mesh.control.deployments import Command, Deployments, DeploymentState, Event, Key, Refuse, key_of, step
from mesh.core.ids import DeploymentName, NodeId, Sha256
from mesh.core.plan import Deployment, Fence, Objective, Plan, Prediction, Segment, Stage
from mesh.errors import MeshError

PLAN = Plan(
    model_sha256=Sha256("0" * 64),
    objective=Objective.THROUGHPUT,
    forced=False,
    stages=(Stage(Segment(0, 1, ("x",), ("y",), (), 0, 0, Sha256("1" * 64)), (NodeId("2" * 32),), 0.1),),
    predicted=Prediction(1.0, 1.0),
    bound_throughput_per_s=1.0,
    certificate="",
    alternatives=(),
    window=4,
)


def make_deployment(name: str = "a", term: int = 1, generation: int = 1, window: int = 4) -> Deployment:
    return Deployment(DeploymentName(name), Fence(term, generation), replace(PLAN, window=window), (), (), ((), ()), {})


DEPLOYMENT = make_deployment()
KEY = key_of(DEPLOYMENT)


def run(state: Deployments, *events: Event) -> tuple[Deployments, tuple[Command, ...]]:
    commands: tuple[Command, ...] = ()
    for event in events:
        state, commands = step(state, event)
    return state, commands


def state_of(state: Deployments, key: Key = KEY) -> DeploymentState | None:
    record = state.records.get(key)
    return record.state if record else None


def refusal(commands: tuple[Command, ...]) -> MeshError | None:
    refused = [command.error for command in commands if isinstance(command, Refuse)]
    assert not refused or len(commands) == 1, "a refusal comes alone"
    return refused[0] if refused else None
