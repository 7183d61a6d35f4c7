"""The deployments on one node, as a pure state machine: `step(state, event) -> (state, commands)`.

A node has no mode; each deployment on it has one, so an old and a new generation of one name
overlap during a swap. The node's runtime owns the state, feeds it events, and performs the
commands; each command that takes time answers with exactly one event.

    PREPARING ──ContentFound──► LOADING ──Loaded──► READY ──ActivateAsked──► ACTIVE
        │ContentMissing            │LoadFailed        │                        │
        ▼                          ▼                  └──────DrainAsked────────┤
      FAILED ◄─────────────────────┘ ◄──EngineGaveUp (or READY)────────────────▼
        └───────────────────────────DrainAsked──────────────► DRAINING ──Drained──► GONE

Fencing: the highest (term, generation) per name is kept, on disk before anything is acknowledged,
and whatever is lower is refused.

A deployment itself is on disk only from its first activation on. What was prepared and never activated
(whoever asked is gone, or took it back while this node could not hear it) does not survive a restart, and
the generation that it was to replace does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mesh.control.generations import DeploymentState as DeploymentState
from mesh.control.generations import Key as Key
from mesh.control.generations import key_of as key_of
from mesh.core.ids import DeploymentName
from mesh.core.plan import Deployment, Fence
from mesh.errors import DeploymentNotFound, MeshError, Overloaded, Refused, StaleGeneration

MAX_DEPLOYMENTS = 64
"""Generations held at once on one node: bounds state, far above what a small device can load."""


@dataclass(frozen=True, slots=True)
class Record:
    deployment: Deployment
    state: DeploymentState
    reason: str = ""
    is_kept: bool = False
    """True where the daemon stops but the deployment stays on disk, to be restored at its next start."""
    was_activated: bool = False
    """Has been in force, here or before a restart; else nobody may ever ask for it again."""


@dataclass(frozen=True, slots=True)
class Deployments:
    """Everything that a node knows of its deployments."""

    records: Mapping[Key, Record] = field(default_factory=dict)
    fences: Mapping[DeploymentName, Fence] = field(default_factory=dict)
    """The highest ever accepted, also of names that are gone."""
    is_stopping: bool = False
    """The daemon goes down: what is asked for from now on would never be drained."""

    @property
    def highest_term(self) -> int:
        return max((fence.term for fence in self.fences.values()), default=0)

    def active(self, name: DeploymentName) -> Record | None:
        """The newest generation of `name` that takes streams."""
        found = [r for k, r in self.records.items() if k.name == name and r.state is DeploymentState.ACTIVE]
        return max(found, key=lambda record: record.deployment.fence, default=None)


# Events -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PrepareAsked:
    deployment: Deployment


@dataclass(frozen=True, slots=True)
class ContentFound:
    key: Key


@dataclass(frozen=True, slots=True)
class ContentMissing:
    key: Key
    reason: str


@dataclass(frozen=True, slots=True)
class Loaded:
    key: Key


@dataclass(frozen=True, slots=True)
class LoadingFailed:
    key: Key
    reason: str


@dataclass(frozen=True, slots=True)
class EngineGaveUp:
    """The stage stays until it is drained, and answers what it gets with the reason."""

    key: Key
    reason: str


@dataclass(frozen=True, slots=True)
class ActivateAsked:
    key: Key


@dataclass(frozen=True, slots=True)
class ActivationOverdue:
    """Whoever had it prepared has had all the time to activate it."""

    key: Key


@dataclass(frozen=True, slots=True)
class DrainAsked:
    key: Key


@dataclass(frozen=True, slots=True)
class Drained:
    key: Key


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The daemon is going down: everything drains."""


Outcome = ContentFound | ContentMissing | Loaded | LoadingFailed | EngineGaveUp | Drained
Event = PrepareAsked | ActivateAsked | ActivationOverdue | DrainAsked | StopAsked | Outcome


# Commands -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RaiseFence:
    """Write the fence to disk, synced, before anything else is done or said."""

    key: Key


@dataclass(frozen=True, slots=True)
class StoreDeployment:
    """Write the deployment to disk, synced, before anything else is done or said: it is what a restart restores."""

    deployment: Deployment


@dataclass(frozen=True, slots=True)
class CheckContent:
    """Answers with ContentFound or ContentMissing."""

    key: Key


@dataclass(frozen=True, slots=True)
class LoadStage:
    """Answers with Loaded or LoadingFailed."""

    key: Key


@dataclass(frozen=True, slots=True)
class OpenStage:
    """Accept streams."""

    key: Key


@dataclass(frozen=True, slots=True)
class DrainStage:
    """Refuse new streams, let those in flight finish. Answers with Drained."""

    key: Key


@dataclass(frozen=True, slots=True)
class UnloadStage:
    """Free the engine, its memory and the pins on its content."""

    key: Key


@dataclass(frozen=True, slots=True)
class ForgetDeployment:
    """Remove whatever generation of this name is on disk; the fence stays."""

    key: Key


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing changed; tell whoever asked why."""

    error: MeshError


Command = (
    RaiseFence
    | StoreDeployment
    | CheckContent
    | LoadStage
    | OpenStage
    | DrainStage
    | UnloadStage
    | ForgetDeployment
    | Refuse
)

Step = tuple[Deployments, tuple[Command, ...]]


def step(state: Deployments, event: Event) -> Step:
    """Apply one event. A refused request leaves the state as it was and yields one `Refuse`.

    Events about a key that is gone are ignored: its work was overtaken by a drain.
    """
    match event:
        case PrepareAsked(deployment):
            return _prepare(state, deployment)
        case ActivateAsked(key):
            return _activate(state, key)
        case ActivationOverdue(key):
            return _give_up(state, key)
        case DrainAsked(key):
            return _drain(state, key)
        case StopAsked():
            return _stop(state)
        case _:
            return _progress(state, event)


def _with(state: Deployments, key: Key, record: Record | None) -> Deployments:
    records = dict(state.records)
    if record is None:
        records.pop(key, None)
    else:
        records[key] = record
    return replace(state, records=records)


def _refuse(state: Deployments, error: MeshError) -> Step:
    return state, (Refuse(error),)


def _prepare(state: Deployments, deployment: Deployment) -> Step:
    key = key_of(deployment)
    if state.is_stopping:
        return _refuse(state, Refused(f"deployment {key} cannot be taken: this node is shutting down"))
    known = state.records.get(key)
    if known is not None:
        if known.deployment == deployment and known.state is not DeploymentState.FAILED:
            return state, ()  # asked again after a lost answer: the work is under way or done
        return _refuse(state, Refused(f"deployment {key} is already here with another content or has failed"))
    highest = state.fences.get(key.name)
    if highest is not None and key.fence <= highest:
        return _refuse(state, StaleGeneration(f"deployment {key} is older than {highest}, which is in force"))
    if len(state.records) >= MAX_DEPLOYMENTS:
        return _refuse(state, Overloaded(f"this node holds {MAX_DEPLOYMENTS} deployments, its limit"))
    fenced = replace(state, fences={**state.fences, key.name: key.fence})
    record = Record(deployment, DeploymentState.PREPARING)
    return _with(fenced, key, record), (RaiseFence(key), CheckContent(key))


def _activate(state: Deployments, key: Key) -> Step:
    record = state.records.get(key)
    if record is None:
        return _refuse(state, DeploymentNotFound(f"deployment {key} is not on this node"))
    if record.state is DeploymentState.ACTIVE:
        return state, ()
    if record.state is not DeploymentState.READY:
        return _refuse(state, Refused(f"deployment {key} is {record.state.value}, only a ready one can be activated"))
    after = _with(state, key, replace(record, state=DeploymentState.ACTIVE, was_activated=True))
    if record.was_activated or _newest_in_force(after, key.name) != record.deployment:
        return after, (OpenStage(key),)  # it is on disk already, or a newer one is
    return after, (StoreDeployment(record.deployment), OpenStage(key))


def _newest_in_force(state: Deployments, name: DeploymentName) -> Deployment | None:
    """The generation of `name` that a restart is to restore."""
    found = [
        record.deployment
        for key, record in state.records.items()
        if key.name == name
        and record.was_activated
        and (record.is_kept or record.state is not DeploymentState.DRAINING)
    ]
    return max(found, key=lambda deployment: deployment.fence, default=None)


def _give_up(state: Deployments, key: Key) -> Step:
    record = state.records.get(key)
    if record is None or record.was_activated or state.is_stopping:
        return state, ()
    return _drain(state, key)


def _drain(state: Deployments, key: Key) -> Step:
    record = state.records.get(key)
    if record is None:
        return _refuse(state, DeploymentNotFound(f"deployment {key} is not on this node"))
    if record.state is DeploymentState.DRAINING:
        return state, ()
    return _with(state, key, replace(record, state=DeploymentState.DRAINING)), (DrainStage(key),)


def _stop(state: Deployments) -> Step:
    commands: list[Command] = []
    for key, record in state.records.items():
        if record.state is not DeploymentState.DRAINING:
            state = _with(state, key, replace(record, state=DeploymentState.DRAINING, is_kept=True))
            commands.append(DrainStage(key))
    return replace(state, is_stopping=True), tuple(commands)


def restore(stored: tuple[Deployment, ...], fences: Mapping[DeploymentName, Fence]) -> Step:
    """The state after a restart: the newest stored generation of each name is loaded again.

    A higher fence does not keep it away: that generation was never in force here.
    """
    newest: dict[DeploymentName, Deployment] = {}
    highest = dict(fences)
    for deployment in stored:
        if deployment.name not in newest or newest[deployment.name].fence < deployment.fence:
            newest[deployment.name] = deployment
        highest[deployment.name] = max(highest.get(deployment.name, deployment.fence), deployment.fence)
    records = {key_of(d): Record(d, DeploymentState.PREPARING, was_activated=True) for d in newest.values()}
    return Deployments(records, highest), tuple(CheckContent(key) for key in records)


def _progress(state: Deployments, event: Outcome) -> Step:
    """Events that report the outcome of a command."""
    record = state.records.get(event.key)
    if record is None:
        return state, ()
    match record.state, event:
        case DeploymentState.PREPARING, ContentFound(key):
            return _with(state, key, replace(record, state=DeploymentState.LOADING)), (LoadStage(key),)
        case DeploymentState.LOADING, Loaded(key):
            return _with(state, key, replace(record, state=DeploymentState.READY)), ()
        case (DeploymentState.PREPARING, ContentMissing(key, reason)) | (
            DeploymentState.LOADING,
            LoadingFailed(key, reason),
        ):
            failed = replace(record, state=DeploymentState.FAILED, reason=reason)
            return _with(state, key, failed), (UnloadStage(key),)
        case ((DeploymentState.LOADING | DeploymentState.READY | DeploymentState.ACTIVE), EngineGaveUp(key, reason)):
            return _with(state, key, replace(record, state=DeploymentState.FAILED, reason=reason)), ()
        case DeploymentState.DRAINING, Drained(key):
            return _forget(state, key, record)
        case _:
            return state, ()  # overtaken by a drain, which unloads in any case


def _forget(state: Deployments, key: Key, record: Record) -> Step:
    """Unload, and let the disk hold what a restart is to restore from now on."""
    left = _with(state, key, None)
    remaining = _newest_in_force(left, key.name)
    if record.is_kept:
        return left, (UnloadStage(key),)
    if remaining is None:
        return left, (UnloadStage(key), ForgetDeployment(key))
    if record.was_activated and remaining.fence < key.fence:  # the one that it was to replace goes on
        return left, (StoreDeployment(remaining), UnloadStage(key))
    return left, (UnloadStage(key),)
