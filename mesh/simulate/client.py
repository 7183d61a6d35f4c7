"""A simulated client: the shipped stream machine over simulated paths, and a repairer for when they break.

It offers numbered frames, takes answers at its own pace, and checks every one: each sequence once, in order where
that was wanted, with its own number in it. When its path is lost it looks at the nodes, takes the generation in
force or repairs by the shipped `repair`, and opens a path there, for as long as it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mesh.control.answer_queue import Answer
from mesh.control.client_stream import ClientStream, StreamOptions
from mesh.control.deployments import DeploymentState, key_of
from mesh.control.repair import repair
from mesh.control.timing import DIAL_TIMEOUT_S
from mesh.core.frame import Frame, Outcome, StreamClass
from mesh.core.ids import NodeId
from mesh.core.messages import CloseStream, Draining, Message, OpenEdge, OpenResults, OpenStream, ResultsAccepted
from mesh.core.plan import Deployment, Fence
from mesh.core.tensor import DType, Tensor
from mesh.errors import MeshError, NodeLost, Refused
from mesh.simulate.edge import EdgeOut
from mesh.simulate.network import Network
from mesh.simulate.node import Node, Told
from mesh.simulate.world import Course, Host, Result, Violation

ASK_TIMEOUT_S = 0.7
PREPARE_TIMEOUT_S = 2.0
CALL_TIMEOUT_S = 1.0
DEADLINE_CHECK_S = 0.02
LINGER_S = 1.0
"""A lost path is hung up after up to so long, and its answers are taken until then: late ones must do no harm."""


class Path:
    """One edge and one results link, and what the client's machine calls them."""

    def __init__(self, client: Client, deployment: Deployment, stream: int) -> None:
        self.deployment = deployment
        self.stream = stream
        self.number: int | None = None
        """Once it is open."""
        self.opened = Result()
        self.is_lost = False
        self._client = client
        nodes, host, network = client.nodes, client.host, client.network
        stages = deployment.plan.stages
        options, window = client.stream.options, client.stream.window
        self._info = OpenStream(stream, options.stream_class, options.is_ordered, window)
        head = nodes[stages[0].devices[0]]
        self.edge = EdgeOut(network, host, head, OpenEdge(deployment.name, deployment.fence, 0), self)
        tail = nodes[stages[-1].devices[0]]
        self._tail_name = tail.host.name
        self._results, far = network.connect(host, tail.host)
        self._results.on_message = self._handle
        self._results.on_lost = self._results_lost
        if tail.host.is_up:
            tail.accept(far)
        first = client.stream.first_unanswered
        self._results.send(OpenResults(deployment.name, deployment.fence, stream, first, window))
        self._is_accepted = False
        host.after(DIAL_TIMEOUT_S, self._is_overdue)

    def _is_overdue(self) -> None:
        if not self._is_accepted:
            self._results.lose(NodeLost(f"{self._tail_name} did not answer"))

    def _handle(self, message: Message) -> None:
        match message:
            case ResultsAccepted():
                self._is_accepted = True
                self.edge.open_stream(self._info)
            case Frame():
                if self.number is None:
                    raise Violation("an answer came on a path that is not open")
                self._client.answered(self.number, message)
            case Draining():
                self._client.path_drains(self)
            case CloseStream(_, error):
                self._lose(error or NodeLost(f"{self._tail_name} ended the stream"))
            case _:
                raise Violation(f"{type(message).__name__} came among answers")

    def _results_lost(self, error: MeshError) -> None:
        if isinstance(error, NodeLost) and not error.address:
            error.address = self._tail_name
        self._lose(error)

    def stream_accepted(self, stream: int) -> None:
        self.opened.set(None)

    def stream_closed(self, stream: int, error: MeshError | None) -> None:
        self._lose(error or NodeLost("the head closed the stream"))

    def may_send_more(self) -> None:
        self._client.send_due()

    def _lose(self, error: MeshError) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        self.opened.set(error)
        if self.number is not None:
            self._client.path_lost(self, error)

    def doubt(self) -> None:
        self._lose(NodeLost("it seemed to be lost"))

    def close(self) -> None:
        self.is_lost = True
        self.edge.close_stream(self.stream, None)
        self.edge.close()
        self._results.close()


class Client:
    def __init__(
        self,
        network: Network,
        host: Host,
        nodes: Mapping[NodeId, Node],
        deployment: Deployment,
        options: StreamOptions,
        in_force: dict[Fence, Deployment],
    ) -> None:
        self.network = network
        self.host = host
        self.nodes = nodes
        self.deployment = deployment
        self.stream = ClientStream(options, options.window or 4)
        self.taken = 0
        self._in_force = in_force
        self._world = host.world
        self._paths: dict[int, Path] = {}
        self._held: Frame | None = None
        """Waits for the credit of the current path's edge."""
        self._seen: set[int] = set()
        self._lost: MeshError | None = NodeLost("no path was opened yet")
        self._is_seeking = False
        self._blamed: dict[str, Fence] = {}
        if options.deadline_s is not None:
            host.after(DEADLINE_CHECK_S, self._tick)
        self._seek()

    # Frames and answers ---------------------------------------------------------------------------

    def feed(self, count: int, interval_s: float) -> Course[None]:
        """Offer `count` frames; a lossless stream waits for room."""
        random = self._world.random
        for number in range(count):
            while not self.stream.may_offer:
                yield 0.002
            data = number.to_bytes(8, "little") + bytes(random.choice((0, 56, 192, 692)))
            self.stream.offer((Tensor.from_bytes(DType.UINT8, (len(data),), data),), self._world.now)
            self.send_due()
            yield interval_s * 2 * random.random()
        self.stream.finish()

    def take(self, interval_s: float) -> Course[None]:
        """Be the consumer."""
        while not self.stream.is_over:
            while (answer := self.stream.take()) is not None:
                self._check_answer(answer)
                self.send_due()
            yield interval_s * 2 * self._world.random.random()

    def _check_answer(self, answer: Answer) -> None:
        sequence = answer.sequence
        if sequence in self._seen:
            raise Violation(f"{self.host.name} took frame {sequence} twice")
        if self.stream.options.is_ordered and sequence != self.taken:
            raise Violation(f"{self.host.name} took frame {sequence} where {self.taken} is due")
        if answer.outcome is Outcome.OK and answer.tensors[0].data[:8] != sequence.to_bytes(8, "little"):
            raise Violation(f"{self.host.name} took another frame's answer for {sequence}")
        if self.stream.options.stream_class is StreamClass.LOSSLESS and answer.outcome in _NOT_LOSSLESS:
            raise Violation(f"{self.host.name} lost frame {sequence} of a lossless stream: {answer.outcome.name}")
        self._seen.add(sequence)
        self.taken += 1

    def answered(self, path: int, frame: Frame) -> None:
        self.stream.answer(path, frame, self._world.now)
        self._hang_up_retired()
        self.send_due()

    def send_due(self) -> None:
        """Write what is due as far as the edge has credit."""
        while True:
            path = self._paths.get(self.stream.current_path or 0)
            held, self._held = self._held, None
            if held is None or path is None or held.stream != path.stream:
                due = self.stream.next_frame(self._world.now)
                if due is None or path is None:
                    return
                held = due[1]
            if not path.edge.may_send(held):
                self._held = held
                return
            path.edge.send(held)

    def _tick(self) -> None:
        self.stream.tick(self._world.now)
        self._hang_up_retired()
        self.host.after(DEADLINE_CHECK_S, self._tick)

    def check(self) -> None:
        """What must hold after every step."""
        stream, counters = self.stream, self.stream.counters
        if counters.offered != sum(counters.outcomes.values()) + stream.unanswered:
            raise Violation(f"the accounts of {self.host.name} do not add up: {counters}")
        if stream.in_flight > stream.window or stream.ready_runs > 6 * stream.window + 2:
            raise Violation(f"{self.host.name} holds more than its window allows")

    # Paths ----------------------------------------------------------------------------------------

    def path_drains(self, path: Path) -> None:
        if path.number is not None and path.number == self.stream.current_path:
            self._seek()

    def path_lost(self, path: Path, error: MeshError) -> None:
        if path.number is None or self._paths.pop(path.number, None) is None:
            return
        if self._world.is_traced:
            self._world.note(f"{self.host.name} loses its path of {path.deployment.fence}: {error}")
        self.stream.lose_path(path.number, error)
        self.host.after(LINGER_S * self._world.random.random(), path.close)
        if self.stream.current_path is None:
            self._lost = error
            self._seek()
        self.send_due()

    def doubt(self) -> None:
        """Take a path that works for lost, as a watcher that was itself late does. Its answers still come."""
        path = self._paths.get(self.stream.current_path or 0)
        if path is not None:
            path.doubt()

    def _hang_up_retired(self) -> None:
        if len(self._paths) > 1:
            for number in self.stream.take_retired():
                self._paths.pop(number).close()

    def _seek(self) -> None:
        if not self._is_seeking:
            self._is_seeking = True
            self.host.start(self._seek_path())

    def _seek_path(self) -> Course[None]:
        failure = self._lost
        while not self.stream.is_answered:
            deployment = yield from self._recover(failure)
            if self._lost is None and deployment.fence <= self.deployment.fence:
                break
            path = Path(self, deployment, self._world.random.getrandbits(63))
            failure = yield path.opened
            if failure is None and not path.is_lost and deployment.fence >= self.deployment.fence:
                path.number = self.stream.open_path(deployment.fence, path.stream)
                self._paths[path.number] = path
                self.deployment, self._lost = deployment, None
                if self._world.is_traced:
                    self._world.note(f"{self.host.name} goes on with generation {deployment.fence}")
                self._hang_up_retired()
                self.send_due()
                break
            path.close()
            yield 0.05 + 0.2 * self._world.random.random()
        self._is_seeking = False

    def _blame(self, error: MeshError | None) -> set[NodeId]:
        """Nodes that were told to be lost twice in one generation."""
        address = error.address if isinstance(error, NodeLost) else ""
        blamed = address != "" and self._blamed.get(address) == self.deployment.fence
        if address:
            self._blamed[address] = self.deployment.fence
        return {node for node, known in self.deployment.addresses.items() if known == address and blamed}

    def _recover(self, error: MeshError | None) -> Course[Deployment]:
        """The generation to use: the newest that is in force, or the repair of it."""
        excluded, tried = self._blame(error), self.deployment.fence
        while True:
            told = yield from self._look()
            known = [each.deployment for reports in told.values() for each in reports]
            newest = max([self.deployment, *known], key=lambda deployment: deployment.fence)
            active = {node for node, reports in told.items() if _is_active(newest, reports)}
            missing = set(newest.plan.devices) - active
            if not missing and not excluded.intersection(newest.plan.devices):
                return newest
            repaired = repair(newest, excluded | missing | (set(newest.addresses) - set(told)))
            if repaired is not None:
                tried = max(tried, repaired.fence)
                repaired = replace(repaired, fence=tried)
                tried = Fence(tried.term, tried.generation + 1)
                if (yield from self.put_in_force(repaired, excluded)):
                    self.host.start(self.retire_before(repaired))
                    return repaired
            else:
                excluded.clear()  # nobody is left: whoever comes back is welcome
            yield 0.1 + 0.3 * self._world.random.random()

    def _look(self) -> Course[dict[NodeId, tuple[Told, ...]]]:
        asked = {node_id: self._call(node, "describe", timeout_s=ASK_TIMEOUT_S) for node_id, node in self.nodes.items()}
        told: dict[NodeId, tuple[Told, ...]] = {}
        for node_id, result in asked.items():
            answer = yield result
            if not isinstance(answer, MeshError):
                told[node_id] = answer
        return told

    def put_in_force(self, deployment: Deployment, excluded: set[NodeId]) -> Course[bool]:
        """Prepare on all nodes, activate from the tail on; false where somebody was faster or a node could not."""
        nodes = {node: self.nodes[node] for node in deployment.plan.devices}
        asked = {n: self._call(node, "prepare", deployment, PREPARE_TIMEOUT_S) for n, node in nodes.items()}
        failed: dict[NodeId, MeshError] = {}
        for node_id, result in asked.items():
            if (error := (yield result)) is not None:
                failed[node_id] = error
        for stage in reversed(deployment.plan.stages) if not failed else ():
            for node_id in stage.devices:
                if (error := (yield self._call(nodes[node_id], "activate", key_of(deployment)))) is not None:
                    failed[node_id] = error
        if not failed:
            other = self._in_force.setdefault(deployment.fence, deployment).plan
            if other != deployment.plan and set(other.devices) & set(deployment.plan.devices):
                # Without a node in common nothing keeps two repairers apart, and nothing harms either.
                raise Violation(f"two plans are in force as generation {deployment.fence}")
            return True
        refused = {node for node, error in failed.items() if isinstance(error, Refused)}
        if not refused:
            excluded.update(failed)
        for node_id, node in nodes.items():
            if node_id not in refused:
                yield self._call(node, "drain", key_of(deployment))
        return False

    def retire_before(self, deployment: Deployment) -> Course[None]:
        """Drain what it replaces, wherever that still is."""
        told = yield from self._look()
        for node_id, reports in told.items():
            for each in reports:
                if each.deployment.fence < deployment.fence:
                    yield self._call(self.nodes[node_id], "drain", key_of(each.deployment))

    def _call(self, node: Node, method: str, argument: object = None, timeout_s: float = CALL_TIMEOUT_S) -> Result:
        handle = getattr(node, method)
        bound = handle if argument is None else lambda reply: handle(argument, reply)
        return self.network.call(self.host, node.host, bound, timeout_s)


_NOT_LOSSLESS = (Outcome.DROPPED, Outcome.UNKNOWN)


def _is_active(deployment: Deployment, reports: tuple[Told, ...]) -> bool:
    return any(each.deployment == deployment and each.state is DeploymentState.ACTIVE for each in reports)
