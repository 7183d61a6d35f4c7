"""One seed, one history: a deployment on a few nodes, clients that stream through it, faults, and what must hold.

The seed decides everything: how many stages, nodes and clients there are, what the streams are like, which faults
happen when, and every delay. After the last fault is mended everything must be answered within `SETTLE_S`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from mesh.control.client_stream import StreamOptions
from mesh.control.repair import choose_standbys
from mesh.core.frame import StreamClass
from mesh.core.ids import DeploymentName, NodeId, Sha256
from mesh.core.plan import Deployment, Fence, Objective, Plan, Prediction, Segment, Stage
from mesh.simulate.client import Client
from mesh.simulate.faults import arrange_faults
from mesh.simulate.network import Network
from mesh.simulate.node import Node
from mesh.simulate.world import Course, Host, Violation, World

SETTLE_S = 60.0
"""Virtual seconds from the last fault's end to the last answer: detection, a repair that had to be tried again a few
times, and the rest of the frames."""

NAME = DeploymentName("model")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a history was like, for statistics; a broken promise is raised instead."""

    seconds: float
    """Virtual time."""
    answers: int
    duplicates: int
    replays: int
    recoveries: int
    replacements: int
    generation: int


class Scenario:
    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.world = World(seed, trace)
        self.network = Network(self.world)
        random = self.world.random
        stages = random.randint(1, 3)
        self.nodes: dict[NodeId, Node] = {}
        for index in range(stages + random.randint(1, 2)):
            node_id = NodeId(f"{index:032x}")
            self.nodes[node_id] = Node(self.network, Host(self.world, f"n{index}"), node_id, self.nodes)
        for node in self.nodes.values():
            node.mean_service_s = random.choice((0.002, 0.02, 0.06))
        self.first = make_deployment(list(self.nodes)[:stages], list(self.nodes), Fence(1, 1))
        self.in_force: dict[Fence, Deployment] = {}
        self.network.jitter_s = random.choice((0.0005, 0.005, 0.05))
        self.network.detours = random.choice((0.0, 0.4))
        self.network.duplication = random.choice((0.0, 0.3))
        self.clients: list[Client] = []
        self._deploy()
        self.clients = [self._make_client(index, random) for index in range(random.choice((1, 1, 2)))]
        self.world.checks = [client.check for client in self.clients]
        self.mended_at = arrange_faults(self)

    def _deploy(self) -> None:
        """Put the first generation in force before anything else happens."""
        for node in self.nodes.values():
            if node.node_id in self.first.plan.devices:
                node.put_in_force(self.first)
        self.in_force[self.first.fence] = self.first

    def _make_client(self, index: int, random: Random) -> Client:
        stream_class = random.choice((StreamClass.LOSSLESS, StreamClass.LOSSLESS, StreamClass.LIVE))
        deadline_s = random.choice((None, 0.3, 3.0)) if stream_class is StreamClass.LIVE else None
        options = StreamOptions(stream_class, random.random() < 0.7, random.randint(2, 6), deadline_s)
        host = Host(self.world, f"c{index}")
        client = Client(self.network, host, self.nodes, self.first, options, self.in_force)
        host.start(client.feed(random.randint(20, 50), random.choice((0.03, 0.1))))
        host.start(client.take(random.choice((0.005, 0.05))))
        return client

    def replan(self) -> Course[None]:
        """A planner moves the model to other nodes, beside the old generation, and drains that."""
        client, random = self.clients[0], self.world.random
        newest = max(self.in_force)
        nodes = random.sample(list(self.nodes), len(self.first.plan.stages))
        newer = make_deployment(nodes, list(self.nodes), replace(newest, generation=newest.generation + 1))
        done = yield from client.put_in_force(newer, set())
        if done:
            self.world.note(f"a planner has put {newer.fence} in force")
            yield from client.retire_before(newer)

    def offer_stale(self) -> Course[None]:
        """Somebody who was away puts an old plan on a node, which must refuse it."""
        node = self.world.random.choice(list(self.nodes.values()))
        stale = make_deployment([node.node_id], list(self.nodes), self.first.fence)
        yield self.network.call(self.clients[0].host, node.host, lambda reply: node.prepare(stale, reply), 1.0)

    def run(self) -> Outcome:
        """Raises `Violation`, or what shipped code raises against an honest peer."""
        world = self.world
        world.run(self.mended_at + SETTLE_S, lambda: all(client.stream.is_over for client in self.clients))
        for client in self.clients:
            stream = client.stream
            if not stream.is_over:
                raise Violation(
                    f"{client.host.name} still waits {SETTLE_S:g} s after the last fault: {client.taken} answers were "
                    f"taken, {stream.unanswered} frames are unanswered, path {stream.current_path}, {stream.counters}"
                )
            if client.taken != stream.counters.offered:
                raise Violation(f"{client.host.name} took {client.taken} answers to {stream.counters.offered} frames")
        counters = [client.stream.counters for client in self.clients]
        return Outcome(
            world.now,
            sum(client.taken for client in self.clients),
            sum(each.duplicates for each in counters),
            sum(each.replays for each in counters),
            sum(each.recoveries for each in counters),
            sum(each.replacements for each in counters),
            max(self.in_force).generation,
        )


def make_deployment(on: list[NodeId], everyone: list[NodeId], fence: Fence) -> Deployment:
    """One stage per entry of `on`; everyone may stand in for everyone."""
    stages = tuple(
        Stage(Segment(index, index + 1, (), (), (), 0, 0, Sha256(f"{index:064x}")), (node,), 0.004)
        for index, node in enumerate(on)
    )
    plan = Plan(Sha256("0" * 64), Objective.THROUGHPUT, False, stages, Prediction(1.0, 1.0), 1.0, "", (), 4)
    addresses = {node: f"n{int(node, 16)}" for node in everyone}
    standbys = choose_standbys(plan, [everyone] * len(on))
    return Deployment(NAME, fence, plan, (), (), ((),) * (len(on) + 1), addresses, standbys)


def simulate(seed: int, trace: Callable[[str], None] | None = None) -> Outcome:
    """Run one seed; raises `Violation` with the seed and how to see it again."""
    try:
        return Scenario(seed, trace).run()
    except Exception as error:
        raise Violation(
            f"seed {seed}: {type(error).__name__}: {error}; see it with: python -m mesh.simulate --seed {seed} --trace"
        ) from error
