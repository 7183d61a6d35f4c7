"""Random small problems with everything that a plan may choose: replicas, variants, codecs, interfaces, power, pins."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import TypeVar

from mesh.core.costs import Costs, DeviceCosts
from mesh.core.fleet import Handling, Link, Watts
from mesh.core.graph import Graph
from mesh.core.ids import NodeId
from mesh.core.memory import ESTIMATED, MeasuredGrowth, MemoryModel
from mesh.core.plan import Objective
from mesh.planning.memory import RUNTIME_BYTES, fit_memory
from mesh.planning.problem import Problem
from mesh.planning.space import Codec, Nic, Space, Variant
from tests.planning.instances import PLENTY, node_ids, random_graph

MOST_INNER_CUTS = 7
Figure = TypeVar("Figure")


@dataclasses.dataclass(frozen=True)
class Instance:
    problem: Problem
    class_of: dict[NodeId, int]
    """Devices of one class have equal figures."""


def random_instance(seed: int) -> Instance:
    """A problem for throughput; every option is on in about half of the instances."""
    rng = random.Random(seed)
    on = {name: rng.random() < 0.5 for name in ("replicas", "handling", "memory", "nics", "variants", "codecs")}
    devices = node_ids(rng.choice((1, 2, 3, 3, 4, 4, 5, 6)))
    classes = rng.randint(1, len(devices))
    class_of = {device: rng.randrange(classes) for device in devices}
    graph = random_graph(rng, most_groups=10, most_inner_cuts=MOST_INNER_CUTS if len(devices) < 5 else 4)
    kinds = [_device(rng, graph, on) for _ in range(classes)]
    costs = Costs({device: kinds[class_of[device]] for device in devices}, _links(rng, class_of))
    space = Space(
        max_replicas=rng.randint(2, 3) if on["replicas"] else 1,
        variants=tuple(_variant(rng, graph, number, kinds, class_of) for number in range(on["variants"])),
        codecs=tuple(_codec(rng, graph, number, classes, class_of) for number in range(on["codecs"])),
        nics=_spread([Nic(*_rates(rng)) for _ in range(classes)], class_of) if on["nics"] else {},
        watts=_spread([_watts(rng) for _ in range(classes)], class_of),
    )
    problem = Problem(
        graph=graph,
        costs=costs,
        devices=devices,
        stages=rng.randint(1, len(devices)) if rng.random() < 0.1 else None,
        max_tensors=rng.choice((None, None, None, 2)),
        excluded=frozenset(rng.sample(devices, 1)) if rng.random() < 0.1 else frozenset(),
        head=rng.choice(devices) if rng.random() < 0.15 else None,
        tail=rng.choice(devices) if rng.random() < 0.1 else None,
        trusted=frozenset(rng.sample(devices, rng.randint(0, len(devices)))) if rng.random() < 0.1 else None,
        space=space,
    )
    return Instance(problem, class_of)


def for_objective(instance: Instance, objective: Objective) -> Instance:
    return dataclasses.replace(instance, problem=dataclasses.replace(instance.problem, objective=objective))


def _device(rng: random.Random, graph: Graph, on: dict[str, bool]) -> DeviceCosts:
    total = sum(graph.weight_bytes.values())
    prefix = _prefix(rng, graph, 10 ** rng.uniform(8, 10))
    memory_bytes = RUNTIME_BYTES + int(total * rng.uniform(0.3, 2.5)) + 5_000_000 if on["memory"] else PLENTY
    return DeviceCosts(
        prefix_seconds=prefix,
        memory_bytes=memory_bytes,
        memory=_measured_memory(random.Random(memory_bytes), graph) if on["memory"] else ESTIMATED,
        measured=rng.random() < 0.5,
        handling=_handling(rng) if on["handling"] else Handling(0.0, 0.0, True),
    )


def _measured_memory(rng: random.Random, graph: Graph) -> MemoryModel:
    """What some segments took, on half of the devices. Numbers of its own: the rest of the instance stays as it is."""
    if rng.random() < 0.5:
        return ESTIMATED
    positions = [cut.position for cut in graph.cuts]
    ends = [sorted(rng.sample(positions, 2)) for _ in range(rng.randint(1, 4))]
    total = sum(graph.weight_bytes.values())
    measured = [MeasuredGrowth(start, end, int(total * rng.uniform(0.1, 4.0)) + 1) for start, end in ends]
    return fit_memory(graph, measured)


def _prefix(rng: random.Random, graph: Graph, speed: float) -> tuple[float, ...]:
    seconds = [0.0]
    for group in graph.groups:
        seconds.append(seconds[-1] + group.flops / speed * rng.uniform(0.5, 2.0) + 1e-6)
    return tuple(seconds)


def _handling(rng: random.Random) -> Handling:
    return Handling(10 ** rng.uniform(-5, -3), 10 ** rng.uniform(-10, -8), True, rng.choice([None, 1e-9]))


def _links(rng: random.Random, class_of: dict[NodeId, int]) -> dict[tuple[NodeId, NodeId], Link]:
    between: dict[tuple[int, int], Link] = {}
    for source in set(class_of.values()):
        for target in set(class_of.values()):
            between[source, target] = Link(10 ** rng.uniform(-5, -1.5), 10 ** rng.uniform(5.5, 9), True)
    return {(a, b): between[class_of[a], class_of[b]] for a in class_of for b in class_of if a != b}


def _variant(
    rng: random.Random, graph: Graph, number: int, kinds: Sequence[DeviceCosts], class_of: dict[NodeId, int]
) -> Variant:
    runs = {index: _prefix(rng, graph, 10 ** rng.uniform(8.5, 10)) for index in range(len(kinds)) if rng.random() < 0.7}
    inner = [cut.position for cut in graph.cuts[1:-1]]
    kept = {0, len(graph.groups), *(position for position in inner if rng.random() < 0.6)}
    return Variant(
        name=f"int8-{number}",
        prefix_seconds={device: runs[index] for device, index in class_of.items() if index in runs},
        weight_bytes={name: nbytes // 4 for name, nbytes in graph.weight_bytes.items()} if rng.random() < 0.8 else None,
        cuts=frozenset(kept) if rng.random() < 0.5 else None,
    )


def _codec(rng: random.Random, graph: Graph, number: int, classes: int, class_of: dict[NodeId, int]) -> Codec:
    speaks = {index: 10 ** rng.uniform(-10, -8) for index in range(classes) if rng.random() < 0.8}
    spoken = {device: speaks[index] for device, index in class_of.items() if index in speaks}
    factors = {cut.position: rng.uniform(0.05, 1) for cut in graph.cuts[1:-1] if rng.random() < 0.7}
    reading = {device: seconds / 3 for device, seconds in spoken.items()} if rng.random() < 0.5 else {}
    return Codec(f"half-{number}", rng.choice((0.25, 0.5)), spoken, factors if rng.random() < 0.5 else None, reading)


def _rates(rng: random.Random) -> tuple[float, float]:
    return 10 ** rng.uniform(5.5, 8), 10 ** rng.uniform(5.5, 8)


def _watts(rng: random.Random) -> Watts:
    idle = rng.choice((0.0, rng.uniform(0.5, 5)))
    return Watts(idle + rng.choice((0.0, rng.uniform(0.5, 10))), idle)


def _spread(figures: Sequence[Figure], class_of: dict[NodeId, int]) -> dict[NodeId, Figure]:
    return {device: figures[index] for device, index in class_of.items()}
