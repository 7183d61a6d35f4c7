"""Random small planning problems: a branching graph with consistent tensor names, and a fleet."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from mesh.core.costs import Costs, DeviceCosts
from mesh.core.fleet import Handling, Link
from mesh.core.graph import Cut, Graph, OperatorGroup
from mesh.core.ids import NodeId, Sha256
from mesh.core.plan import Objective
from mesh.core.tensor import DType, TensorSpec
from mesh.planning.memory import RUNTIME_BYTES
from mesh.planning.problem import Problem

MODEL = Sha256("5a" * 32)
PLENTY = 1 << 40


def node_ids(count: int) -> tuple[NodeId, ...]:
    return tuple(NodeId(f"{index:032x}") for index in range(count))


def make_graph(
    flops: Sequence[int],
    reads: Sequence[Sequence[int]],
    sizes: Sequence[int],
    weights: Sequence[Sequence[str]],
    weight_bytes: Mapping[str, int],
    legal: Sequence[int] | None = None,
) -> Graph:
    """Group `i` makes tensor `i + 1` and reads tensors `reads[i]`; 0 is the input; unread tensors are outputs."""
    count = len(flops)
    read_by_someone = {tensor for group in reads for tensor in group}
    outputs = {tensor for tensor in range(1, count + 1) if tensor not in read_by_someone}
    groups = tuple(
        OperatorGroup(
            index=index,
            name=f"group{index}",
            kinds=("Conv",),
            nodes=(index,),
            flops=flops[index],
            weights=tuple(weights[index]),
            activation_bytes=sizes[index + 1],
            reads=tuple(f"t{tensor}" for tensor in reads[index]),
            makes=(f"t{index + 1}",),
        )
        for index in range(count)
    )
    cuts = []
    for position in range(count + 1):
        if position not in (0, count) and legal is not None and position not in legal:
            continue
        needed = {tensor for group in reads[position:] for tensor in group} | outputs
        live = [tensor for tensor in range(position + 1) if tensor in needed]
        if position == 0:
            live = [0]
        cuts.append(Cut(position, tuple(f"t{tensor}" for tensor in live), sum(sizes[tensor] for tensor in live)))
    specs = {f"t{tensor}": TensorSpec(f"t{tensor}", DType.UINT8, (sizes[tensor],)) for tensor in range(count + 1)}
    return Graph(
        model_sha256=MODEL,
        model_bytes=sum(weight_bytes.values()),
        inputs=(specs["t0"],),
        outputs=tuple(specs[f"t{tensor}"] for tensor in sorted(outputs)),
        groups=groups,
        cuts=tuple(cuts),
        specs=specs,
        weight_bytes=dict(weight_bytes),
    )


def chain_graph(
    flops: Sequence[int], sizes: Sequence[int] | None = None, weights: Sequence[int] | None = None
) -> Graph:
    """A chain: group `i` reads tensor `i` of `sizes[i]` bytes and owns `weights[i]` bytes."""
    count = len(flops)
    return make_graph(
        flops,
        [[index] for index in range(count)],
        sizes or [1000] * (count + 1),
        [[f"w{index}"] for index in range(count)],
        {f"w{index}": (weights or [1000] * count)[index] for index in range(count)},
    )


def random_graph(rng: random.Random, most_groups: int = 12, most_inner_cuts: int = 7) -> Graph:
    count = rng.randint(1, most_groups)
    reads = []
    for index in range(count):
        wanted = {index} if rng.random() < 0.9 or index == 0 else {rng.randint(0, index)}
        if rng.random() < 0.25:
            wanted.add(rng.randint(0, index))
        reads.append(sorted(wanted))
    weight_bytes = {f"w{index}": rng.choice((0, rng.randint(1, 40_000_000))) for index in range(count)}
    weights = [
        [f"w{index}"] + ([f"w{rng.randint(0, count - 1)}"] if rng.random() < 0.2 else []) for index in range(count)
    ]
    inner = list(range(1, count))
    legal = sorted(rng.sample(inner, min(len(inner), rng.randint(0, most_inner_cuts))))
    flops = [0 if rng.random() < 0.15 else rng.randint(1, 10**8) for _ in range(count)]
    sizes = [rng.choice((0, rng.randint(1, 1_000_000))) for _ in range(count + 1)]
    return make_graph(flops, reads, sizes, weights, weight_bytes, legal)


def random_costs(rng: random.Random, graph: Graph, devices: Sequence[NodeId], memory_limits: bool) -> Costs:
    known = {}
    total = sum(graph.weight_bytes.values())
    for device in devices:
        speed = 10 ** rng.uniform(8, 10)
        seconds = [0.0]
        for group in graph.groups:
            seconds.append(seconds[-1] + group.flops / speed * rng.uniform(0.5, 2.0) + 1e-6)
        known[device] = DeviceCosts(
            prefix_seconds=tuple(seconds),
            memory_bytes=RUNTIME_BYTES + int(total * rng.uniform(0.3, 2.5)) + 5_000_000 if memory_limits else PLENTY,
            measured=rng.random() < 0.5,
            handling=Handling(10 ** rng.uniform(-5, -3), 10 ** rng.uniform(-10, -8), True, rng.choice([None, 1e-9])),
        )
    links = {
        (source, target): Link(10 ** rng.uniform(-5, -1.5), 10 ** rng.uniform(5.5, 9), True)
        for source in devices
        for target in devices
        if source != target
    }
    return Costs(known, links)


def random_problem(seed: int, objective: Objective) -> Problem:
    rng = random.Random(seed)
    graph = random_graph(rng)
    devices = node_ids(rng.randint(1, 4))
    costs = random_costs(rng, graph, devices, memory_limits=rng.random() < 0.5)
    return Problem(
        graph=graph,
        costs=costs,
        devices=devices,
        objective=objective,
        stages=rng.randint(1, len(devices)) if rng.random() < 0.2 else None,
        max_tensors=rng.choice((None, None, 1, 2)),
        head=rng.choice(devices) if rng.random() < 0.1 else None,
        tail=rng.choice(devices) if rng.random() < 0.1 else None,
    )
