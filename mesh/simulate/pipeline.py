"""One generation of a plan in virtual time: machines that compute, links that carry, replicas that are chosen from.

What things take comes from the plan's `Costs`; which replica gets a frame is decided by the shipped `Dispatch`. A
machine computes one frame at a time, whatever generation it is of. A link carries one frame's bytes at a time and has
at most `FRAMES_PER_LINK` under way, in order. Used by `mesh.simulate.rehearsal`, which owns the generations.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mesh.control.dispatch import Dispatch
from mesh.core.costs import Costs
from mesh.core.graph import Graph
from mesh.core.ids import NodeId
from mesh.core.plan import Stage
from mesh.core.report import StageReport
from mesh.planning.predict import FRAMES_PER_LINK, pass_seconds
from mesh.planning.space import Space
from mesh.simulate.network import RETRANSMISSION_S
from mesh.simulate.world import World

NEWEST_WEIGHT = 0.1
"""Of a frame in a stage's mean, as nodes report it."""


@dataclass(frozen=True, slots=True)
class Noise:
    compute: float = 0.0
    link_seconds: float = 0.0
    loss: float = 0.0

    def of_compute(self, world: World) -> float:
        """A factor with mean 1 that is never negative."""
        if not self.compute:
            return 1.0
        sigma = math.sqrt(math.log1p(self.compute**2))
        return math.exp(world.random.gauss(0.0, sigma) - sigma * sigma / 2)

    def of_link(self, world: World) -> float:
        seconds = world.random.random() * self.link_seconds if self.link_seconds else 0.0
        while self.loss and world.random.random() < self.loss:
            seconds += RETRANSMISSION_S
        return seconds


class Machine:
    """A device: one frame after the other. What it was doing when it went down never ends."""

    def __init__(self, world: World) -> None:
        self.is_up = True
        self.slowness = 1.0
        self._world = world
        self._queue: deque[tuple[float, Callable[[], None]]] = deque()
        self._is_busy = False
        self._incarnation = 0

    def compute(self, seconds: float, done: Callable[[], None]) -> None:
        if self.is_up:
            self._queue.append((seconds, done))
            self._begin()

    def go_down(self) -> None:
        self.is_up, self._is_busy = False, False
        self._incarnation += 1
        self._queue.clear()

    def come_back(self) -> None:
        self.is_up = True

    def _begin(self) -> None:
        if self._is_busy or not self._queue:
            return
        seconds, done = self._queue.popleft()
        self._is_busy = True
        incarnation = self._incarnation

        def end() -> None:
            if incarnation == self._incarnation:
                self._is_busy = False
                done()
                self._begin()

        self._world.after(seconds * self.slowness, end)


@dataclass(slots=True)
class _Link:
    free_at: float = 0.0
    flights: deque[float] = field(default_factory=lambda: deque(maxlen=FRAMES_PER_LINK))
    """When the latest of them arrive."""


@dataclass(slots=True)
class _Told:
    frames: int = 0
    compute_seconds: float = 0.0
    reported_frames: int = 0


class Pipeline:
    """`answered` is called with each frame's number, in whatever order they are done."""

    def __init__(
        self,
        world: World,
        machines: Mapping[NodeId, Machine],
        graph: Graph,
        stages: tuple[Stage, ...],
        costs: Costs,
        space: Space,
        noise: Noise,
        answered: Callable[[int], None],
    ) -> None:
        self.stages = stages
        self._world, self._machines = world, machines
        self._graph, self._costs, self._space, self._noise = graph, costs, space, noise
        self._answered = answered
        self._passes = [
            dict(zip(stage.devices, pass_seconds(graph, stages, index, costs, space), strict=True))
            for index, stage in enumerate(stages)
        ]
        self._dispatch = [
            Dispatch(len(stage.devices), max(passes.values()), world.now)
            for stage, passes in zip(stages, self._passes, strict=True)
        ]
        self._links: dict[tuple[int, NodeId, NodeId], _Link] = {}
        self._told: dict[tuple[int, NodeId], _Told] = {
            (index, device): _Told() for index, stage in enumerate(stages) for device in stage.devices
        }

    def enter(self, frame: int) -> None:
        self._go(frame, 0, None)

    def _go(self, frame: int, index: int, source: NodeId | None) -> None:
        """To stage `index`, from the device that computed the one before it."""
        devices, dispatch = self.stages[index].devices, self._dispatch[index]
        now = self._world.now
        replica = dispatch.choose(range(len(devices)), now) or 0
        dispatch.handed(replica, 1, now)
        target = devices[replica]
        if source is None or source == target:
            self._compute(frame, index, replica)
        else:
            arrives_at = self._send(index, source, target)
            self._world.after(arrives_at - now, lambda: self._compute(frame, index, replica))

    def _send(self, index: int, source: NodeId, target: NodeId) -> float:
        link = self._links.setdefault((index, source, target), _Link())
        codec = self.stages[index - 1].codec
        nbytes = self._space.wire_bytes(codec, self._graph.cut_at[self.stages[index].segment.start])
        start = max(self._world.now, link.free_at)
        if len(link.flights) == FRAMES_PER_LINK:
            start = max(start, link.flights[0])
        link.free_at = start + nbytes / self._space.link_bytes_per_second(self._costs, source, target)
        latency = self._costs.link(source, target).latency_seconds
        arrives_at = link.free_at + latency + self._noise.of_link(self._world)
        if link.flights:
            arrives_at = max(arrives_at, link.flights[-1])
        link.flights.append(arrives_at)
        return arrives_at

    def _compute(self, frame: int, index: int, replica: int) -> None:
        device = self.stages[index].devices[replica]
        segment = self.stages[index].segment
        factor = self._noise.of_compute(self._world)
        machine = self._machines[device]
        engine = self._costs.compute(device, segment.start, segment.end).seconds * factor * machine.slowness

        def done() -> None:
            self._dispatch[index].credited(replica, 1, self._world.now)
            told = self._told[index, device]
            weight = max(NEWEST_WEIGHT, 1 / (told.frames + 1))
            told.compute_seconds += weight * (engine - told.compute_seconds)
            told.frames += 1
            if index + 1 < len(self.stages):
                self._go(frame, index + 1, device)
            else:
                self._answered(frame)

        machine.compute(self._passes[index][device] * factor, done)

    def report(self, seconds: float) -> list[StageReport]:
        """As the nodes tell it: one for each device of each stage, rates over the last `seconds`."""
        reports = []
        for (index, device), told in self._told.items():
            rate = (told.frames - told.reported_frames) / seconds
            told.reported_frames = told.frames
            reports.append(StageReport(index, told.frames, told.compute_seconds, rate, 0, 0, device))
        return reports
