"""A simulated node: the shipped state machine of deployments, a disk that survives crashes, and stages.

Its owner is the scenario. It refuses what the state machine refuses; besides that it remembers, outside of the
disk and of every crash, the highest fence that it ever accepted, and nothing lower may be accepted after that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh.control import deployments as machine
from mesh.control.deployments import Deployments, DeploymentState, Key, key_of
from mesh.core.ids import DeploymentName, NodeId
from mesh.core.messages import Message, OpenEdge, OpenResults, ResultsAccepted
from mesh.core.plan import Deployment, Fence
from mesh.errors import DeploymentNotFound, LoadFailed, MeshError, Refused, StaleGeneration
from mesh.simulate.network import End, Network, Reply
from mesh.simulate.stage import EdgeIn, Stage
from mesh.simulate.world import Host, Violation

LOOK_SECONDS = 0.005
LOAD_SECONDS = 0.3
"""At most, for one segment."""


@dataclass
class Disk:
    """What is synced; there is nothing else, because the machine's owner writes before it says anything."""

    fences: dict[DeploymentName, Fence] = field(default_factory=dict)
    deployments: dict[DeploymentName, Deployment] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Told:
    """One deployment on a node, as it tells of it."""

    deployment: Deployment
    state: DeploymentState


class Node:
    def __init__(self, network: Network, host: Host, node_id: NodeId, peers: Mapping[NodeId, Node]) -> None:
        self.network = network
        self.host = host
        self.node_id = node_id
        self.peers = peers
        self.disk = Disk()
        self.mean_service_s = 0.004
        self._state = Deployments()
        self._stages: dict[Key, dict[int, Stage]] = {}
        self._asked: dict[Key, list[Reply]] = {}
        self._ever_accepted: dict[DeploymentName, Fence] = {}

    def service_seconds(self) -> float:
        return self.host.world.random.expovariate(1.0) * self.mean_service_s

    def put_in_force(self, deployment: Deployment) -> None:
        """As if it had been prepared and activated a while ago."""
        key = key_of(deployment)
        for event in (machine.PrepareAsked(deployment), machine.ContentFound(key)):
            self._apply(event)
        self._loaded(key)
        self._apply(machine.ActivateAsked(key))

    # Life -----------------------------------------------------------------------------------------

    def crash(self, is_dark: bool) -> None:
        """The process is gone; `is_dark` takes its kernel with it, so that nobody is told."""
        ends = self.network.ends_of(self.host)
        self.host.stop(is_dark)
        self._state, self._stages, self._asked = Deployments(), {}, {}
        for end in ends:
            if is_dark:
                end.is_closed = True
                self.network.ends.discard(end)
            else:
                end.reset()

    def start_again(self) -> None:
        self.host.start_again()
        self._state, commands = machine.restore(tuple(self.disk.deployments.values()), self.disk.fences)
        for name, fence in self._ever_accepted.items():
            if self._state.fences.get(name, Fence(0, 0)) < fence:
                raise Violation(f"{self.host.name} forgot the fence {fence} over a crash")
        restored = set(self._state.records)
        for command in commands:
            self._perform(command)
        self.host.after(LOOK_SECONDS + LOAD_SECONDS + 0.01, lambda: self._activate_restored(restored))

    def _activate_restored(self, restored: set[Key]) -> None:
        for key in restored:
            self._apply(machine.ActivateAsked(key))

    # Control calls --------------------------------------------------------------------------------

    def prepare(self, deployment: Deployment, reply: Reply) -> None:
        key = key_of(deployment)
        self._asked.setdefault(key, []).append(reply)
        error = self._apply(machine.PrepareAsked(deployment))
        if error is not None:
            reply(error)
            self._asked[key].remove(reply)
        self._tell_prepared(key)

    def activate(self, key: Key, reply: Reply) -> None:
        reply(self._apply(machine.ActivateAsked(key)))

    def drain(self, key: Key, reply: Reply) -> None:
        reply(self._apply(machine.DrainAsked(key)))

    def describe(self, reply: Reply) -> None:
        reply(tuple(Told(record.deployment, record.state) for record in self._state.records.values()))

    def _tell_prepared(self, key: Key) -> None:
        record = self._state.records.get(key)
        answer: MeshError | None = None
        if record is None or record.state is DeploymentState.DRAINING:
            answer = Refused(f"{key} was removed while it was loading")
        elif record.state is DeploymentState.FAILED:
            answer = LoadFailed(record.reason)
        elif record.state not in (DeploymentState.READY, DeploymentState.ACTIVE):
            return
        for reply in self._asked.pop(key, ()):
            reply(answer)

    # Deciding and performing ----------------------------------------------------------------------

    def _apply(self, event: machine.Event) -> MeshError | None:
        before = self._state
        self._state, commands = machine.step(before, event)
        if isinstance(event, machine.PrepareAsked):
            self._check_fence(before, key_of(event.deployment))
        error = None
        for command in commands:
            if isinstance(command, machine.Refuse):
                error = command.error
            else:
                self._perform(command)
        return error

    def _check_fence(self, before: Deployments, key: Key) -> None:
        if key in before.records or key not in self._state.records:
            return
        highest = self._ever_accepted.get(key.name)
        if highest is not None and key.fence <= highest:
            raise Violation(f"{self.host.name} accepted {key} after {highest}")
        self._ever_accepted[key.name] = key.fence

    def _perform(self, command: machine.Command) -> None:
        match command:
            case machine.RaiseFence(key):
                self.disk.fences[key.name] = key.fence
            case machine.StoreDeployment(deployment):
                self.disk.deployments[deployment.name] = deployment
            case machine.ForgetDeployment(key):
                self.disk.deployments.pop(key.name, None)
            case machine.CheckContent(key):
                self.host.after(LOOK_SECONDS, lambda: self._progress(machine.ContentFound(key)))
            case machine.LoadStage(key):
                seconds = LOAD_SECONDS * self.host.world.random.random()
                self.host.after(seconds, lambda: self._loaded(key))
            case machine.OpenStage(key):
                for stage in self._stages[key].values():
                    stage.is_accepting = True
            case machine.DrainStage(key):
                self._drain(key)
            case machine.UnloadStage(key):
                for stage in self._stages.pop(key, {}).values():
                    stage.close()

    def _progress(self, event: machine.ContentFound | machine.Loaded | machine.Drained) -> None:
        self._apply(event)
        self._tell_prepared(event.key)

    def _loaded(self, key: Key) -> None:
        record = self._state.records.get(key)
        if record is None or record.state is not DeploymentState.LOADING:
            return
        stages = record.deployment.plan.stages
        held = [index for index, stage in enumerate(stages) if self.node_id in stage.devices]
        self._stages[key] = {index: Stage(self, record.deployment, index) for index in held}
        self._progress(machine.Loaded(key))

    def _drain(self, key: Key) -> None:
        left = set(self._stages.get(key, {}))

        def drained(index: int) -> None:
            left.discard(index)
            if not left:
                self._progress(machine.Drained(key))

        if not left:
            self.host.after(0.0, lambda: self._progress(machine.Drained(key)))
        for index, stage in self._stages.get(key, {}).items():
            stage.drain(lambda index=index: drained(index))  # type: ignore[misc]

    # Streams --------------------------------------------------------------------------------------

    def accept(self, end: End) -> None:
        """Somebody connects; its first message says what for."""
        end.on_message = lambda message: self._opened(end, message)

    def _opened(self, end: End, message: Message) -> None:
        if not isinstance(message, OpenEdge | OpenResults):
            raise Violation(f"a connection began with {type(message).__name__}")
        try:
            stage = self._find_stage(message)
            if isinstance(message, OpenEdge):
                EdgeIn(stage, end)
            else:
                stage.attach_sink(message.stream, end)
                end.on_message = _ignore
                end.send(ResultsAccepted())
        except MeshError as error:
            end.close(error)

    def _find_stage(self, opening: OpenEdge | OpenResults) -> Stage:
        key = Key(opening.deployment, opening.fence)
        record = self._state.records.get(key)
        if record is None or record.state not in (DeploymentState.ACTIVE, DeploymentState.DRAINING):
            highest = self._state.fences.get(key.name)
            if highest is not None and key.fence < highest:
                raise StaleGeneration(f"{key} was replaced by {highest}")
            raise DeploymentNotFound(f"{key} is not active on {self.host.name}")
        stages = self._stages[key]
        index = opening.stage if isinstance(opening, OpenEdge) else len(record.deployment.plan.stages) - 1
        if index not in stages:
            raise Refused(f"stage {index} of {key} is not on {self.host.name}")
        return stages[index]


def _ignore(message: Message) -> None:
    """Acknowledgements change nothing here."""
