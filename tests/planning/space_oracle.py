"""An independent planner for problems with every option: recursion from the inputs on, one stage at a time.

Written from the definition of the model (`mesh.planning.predict` and `mesh.planning.space`), in plain
Python over named devices, knowing nothing of types, tables or beams. A stage may be shared by equal
devices; the whole model by any. Slow on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from mesh.core.ids import NodeId
from mesh.core.plan import Objective
from mesh.planning.memory import FRAMES_HELD, RUNTIME_BYTES
from mesh.planning.predict import FRAMES_PER_LINK
from mesh.planning.problem import Problem
from tests.planning.oracle import memory
from tests.planning.space_instances import Instance

Team = tuple[NodeId, ...]
Front = tuple[tuple[float, float, float], ...]
"""Period in s, energy beyond idle power in J per frame, idle power in W: none is worse than another in all three."""


@dataclass(frozen=True)
class Station:
    """One stage: who, until where, how its output travels, and what one frame costs it."""

    team: Team
    end: int
    codec: str
    seconds: float
    """Of one device with one frame."""
    period: float


class Oracle:
    def __init__(self, instance: Instance) -> None:
        self.problem: Problem = instance.problem
        self.class_of = instance.class_of
        graph, problem = self.problem.graph, self.problem
        self.bytes_at = {cut.position: cut.bytes for cut in graph.cuts}
        self.last = len(graph.groups)
        self.positions = [
            cut.position
            for cut in graph.cuts
            if cut.position in (0, self.last) or problem.max_tensors is None or len(cut.tensors) <= problem.max_tensors
        ]
        trusted = problem.devices if problem.trusted is None else problem.trusted
        self.devices = [d for d in problem.devices if d not in problem.excluded and d in trusted]
        self.known: dict[tuple[object, ...], float] = {}
        self.fronts: dict[tuple[object, ...], Front] = {}
        self.station_lists: dict[tuple[object, ...], list[Station]] = {}

    def best(self, objective: Objective) -> float:
        """Least period, latency, number of devices or energy per frame; infinite if there is no plan."""
        stages = self.problem.stages
        if stages is not None:
            if stages > len(self.devices):
                return math.inf
            stages = min(stages, len(self.positions) - 1)
        if objective is Objective.ENERGY:
            front = self._front(0, frozenset(), (), "raw", stages)
            return min((active + idle * period for period, active, idle in front), default=math.inf)
        best = self._least(objective, 0, frozenset(), (), "raw", stages)
        if objective is Objective.THROUGHPUT:
            best = min([best, *self._copies()])
        return best

    def _least(
        self, objective: Objective, at: int, used: frozenset[NodeId], before: Team, codec: str, left: int | None
    ) -> float:
        """Of everything from position `at` on, behind the stage of `before`."""
        if at == self.last:
            pinned = self.problem.tail
            return 0.0 if left in (None, 0) and pinned in (None, *before) else math.inf
        key = (objective, at, used, before, codec, left)
        if key not in self.known:
            best = math.inf
            for station in self._stations(at, used, before, codec, left):
                rest = used | set(station.team)
                after = self._least(
                    objective, station.end, rest, station.team, station.codec, None if left is None else left - 1
                )
                if objective is Objective.THROUGHPUT:
                    best = min(best, max(station.period, self._link(before, station.team, at, codec)[0], after))
                elif objective is Objective.LATENCY:
                    best = min(best, station.seconds + self._link(before, station.team, at, codec)[1] + after)
                else:
                    best = min(best, len(station.team) + after)
            self.known[key] = best
        return self.known[key]

    def _front(self, at: int, used: frozenset[NodeId], before: Team, codec: str, left: int | None) -> Front:
        if at == self.last:
            return ((0.0, 0.0, 0.0),) if left in (None, 0) and self.problem.tail in (None, *before) else ()
        key = (at, used, before, codec, left)
        if key not in self.fronts:
            found = []
            for station in self._stations(at, used, before, codec, left):
                watts = self.problem.space.watts[station.team[0]]
                period = max(station.period, self._link(before, station.team, at, codec)[0])
                rest = used | set(station.team)
                for longest, active, idle in self._front(
                    station.end, rest, station.team, station.codec, None if left is None else left - 1
                ):
                    joules = active + (watts.busy - watts.idle) * station.seconds
                    found.append((max(period, longest), joules, idle + watts.idle * len(station.team)))
            self.fronts[key] = _undominated(found)
        return self.fronts[key]

    def _stations(
        self, at: int, used: frozenset[NodeId], before: Team, codec: str, left: int | None
    ) -> Iterator[Station]:
        if left == 0:
            return
        for team in self._teams(used, at, left):
            key = (team, at, codec, bool(before))
            if key not in self.station_lists:
                self.station_lists[key] = list(self._stations_of(team, at, codec, bool(before)))
            yield from self.station_lists[key]

    def _teams(self, used: frozenset[NodeId], at: int, left: int | None) -> Iterator[Team]:
        free = [device for device in self.devices if device not in used]
        most = 1 if left is not None else self.problem.space.max_replicas
        for size in range(1, most + 1):
            for team in combinations(free, size):
                if len({self.class_of[device] for device in team}) > 1:
                    continue
                if size > 1 and (self.problem.head in team or self.problem.tail in team):
                    continue
                if at == 0 and self.problem.head not in (None, *team):
                    continue
                yield team

    def _stations_of(self, team: Team, start: int, codec: str, linked: bool) -> Iterator[Station]:
        space = self.problem.space
        for end in self.positions:
            if end <= start:
                continue
            for outgoing in ["raw", *(c.name for c in space.codecs)] if end != self.last else ["raw"]:
                for variant in ["float", *(v.name for v in space.variants)]:
                    seconds = self._compute(team[0], start, end, variant)
                    seconds += self._take(team[0], codec, start) + self._give(team[0], outgoing, end)
                    if seconds == math.inf:
                        continue
                    nic = space.nics.get(team[0])
                    period = seconds
                    if nic is not None and linked:
                        period = max(period, self._wire(codec, start) / nic.down)
                    if nic is not None and end != self.last:
                        period = max(period, self._wire(outgoing, end) / nic.up)
                    yield Station(team, end, outgoing, seconds, period / len(team))

    def _compute(self, device: NodeId, start: int, end: int, variant: str) -> float:
        graph, costs = self.problem.graph, self.problem.costs.devices[device]
        prefix = costs.prefix_seconds
        need = memory(graph, start, end, costs.memory)
        for known_segment in costs.memory.known:
            if (known_segment.start, known_segment.end) == (start, end) and variant == "float":
                ends = sum(cut.bytes for cut in graph.cuts if cut.position in (start, end))
                need = RUNTIME_BYTES + known_segment.peak_bytes + FRAMES_HELD * ends
        if variant != "float":
            known = next(v for v in self.problem.space.variants if v.name == variant)
            if device not in known.prefix_seconds:
                return math.inf
            if known.cuts is not None and not {start, end} <= known.cuts:
                return math.inf
            prefix = known.prefix_seconds[device]
            if known.weight_bytes is not None:
                names = {name for group in graph.groups[start:end] for name in group.weights}
                less = sum(graph.weight_bytes[name] - known.weight_bytes[name] for name in names)
                need = memory(graph, start, end, costs.memory, less)
        return math.inf if need > costs.memory_bytes else prefix[end] - prefix[start]

    def _take(self, device: NodeId, codec: str, position: int) -> float:
        return self._handle(device, codec, position, self.problem.costs.devices[device].handling.byte_seconds, False)

    def _give(self, device: NodeId, codec: str, position: int) -> float:
        handling = self.problem.costs.devices[device].handling
        per_byte = handling.sent_byte_seconds
        return self._handle(device, codec, position, handling.byte_seconds if per_byte is None else per_byte, True)

    def _handle(self, device: NodeId, codec: str, position: int, per_byte: float, sent: bool) -> float:
        handling = self.problem.costs.devices[device].handling
        extra = 0.0
        if codec != "raw":
            known = next(c for c in self.problem.space.codecs if c.name == codec)
            if device not in known.byte_seconds or (known.factors is not None and position not in known.factors):
                return math.inf
            seconds = known.byte_seconds[device]
            if not sent and device in known.read_byte_seconds:
                seconds = known.read_byte_seconds[device]
            extra = seconds * self.bytes_at[position]
        return handling.message_seconds + per_byte * self._wire(codec, position) + extra

    def _wire(self, codec: str, position: int) -> int:
        if codec == "raw":
            return self.bytes_at[position]
        known = next(c for c in self.problem.space.codecs if c.name == codec)
        factor = known.bytes_factor if known.factors is None else known.factors.get(position, 1.0)
        return math.ceil(self.bytes_at[position] * factor)

    def _link(self, before: Team, team: Team, position: int, codec: str) -> tuple[float, float]:
        """Period and latency of the links between two stages; nothing before the first."""
        period = latency = 0.0
        for source in before:
            for target in team:
                link = self.problem.costs.links[source, target]
                rates = [link.bytes_per_second]
                if source in self.problem.space.nics:
                    rates += [self.problem.space.nics[source].up, self.problem.space.nics[target].down]
                moving = self._wire(codec, position) / min(rates)
                slow = max(moving, (link.latency_seconds + moving) / FRAMES_PER_LINK)
                period = max(period, slow / len(before) / len(team))
                latency = max(latency, link.latency_seconds + moving)
        return period, latency

    def _copies(self) -> Iterator[float]:
        """Periods of the whole model as it is on any devices that hold it."""
        problem = self.problem
        if problem.stages is not None or problem.head is not None or problem.tail is not None:
            return
        alone = {
            d: self._compute(d, 0, self.last, "float") + self._take(d, "raw", 0) + self._give(d, "raw", self.last)
            for d in self.devices
        }
        for size in range(2, problem.space.max_replicas + 1):
            for team in combinations(self.devices, size):
                if max(alone[d] for d in team) < math.inf:
                    yield 1 / sum(1 / alone[d] for d in team)


def _undominated(entries: list[tuple[float, float, float]]) -> Front:
    kept: list[tuple[float, float, float]] = []
    for entry in sorted(set(entries)):
        if not any(other[1] <= entry[1] and other[2] <= entry[2] for other in kept):
            kept.append(entry)
    return tuple(kept)
