"""Compares all planning strategies on synthetic fleets and given models, and times the planner.

usage: scripts/bench_planner [--fleets N] [MODEL.onnx...]    default: 72 fleets of a synthetic transformer and more

Each fleet has 4 types of 1 to 4 devices, up to 6 times apart in speed, interfaces of 5 to 40 MB/s, and memory for 1.6
models in all (every sixth fleet: 1.15). Chains have 48 or 96 cuts: like a vision transformer, with random work, with
one giant group, with one device on a bad interface. A model given as a file is put on four fleets scaled to it. A
strategy's figure is its period over the proven optimum. Fails where what is promised of the planner does not hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mesh.core.costs import Costs, DeviceCosts  # noqa: E402 - after the path to this clone
from mesh.core.fleet import Handling, Link  # noqa: E402
from mesh.core.graph import Graph  # noqa: E402
from mesh.core.ids import NodeId  # noqa: E402
from mesh.core.plan import Plan  # noqa: E402
from mesh.planning.contract import STRATEGIES, make_strategy  # noqa: E402
from mesh.planning.exact import plan  # noqa: E402
from mesh.planning.memory import RUNTIME_BYTES, WEIGHT_COPIES  # noqa: E402
from mesh.planning.problem import Infeasible, Problem  # noqa: E402
from mesh.planning.space import Space  # noqa: E402
from tests.planning.instances import chain_graph, node_ids  # noqa: E402

PROMISED_GAIN = 1.8
"""Of the planner over sharing by memory and evenly, geometric mean of the periods."""
PROMISED_GAP = 0.02
FEWEST_JUDGED = 20
"""Plans of a rule below which its mean says little."""
MOST_REPLICAS = 4
INTERPRETED = 5
"""Factor on the times that a compiled kernel would have to reach: there is none."""
TIMED = (("8 devices x 100 cuts", 8, 1, 100, 0.05), ("32 devices in 4 types x 200 cuts", 4, 8, 200, 1.0))
UNTIMED = (("12 devices x 100 cuts", 12, 1, 100, math.inf), ("16 devices x 100 cuts", 16, 1, 100, math.inf))
TIMED_FLEETS = 3
SHAPES = ("transformer", "random", "giant", "bad interface")


@dataclass(frozen=True)
class Case:
    name: str
    problem: Problem


def make_chain(rng: random.Random, shape: str, cuts: int) -> Graph:
    """A chain of `cuts - 1` groups: blocks of attention (in, mix, out) and two layers, or random ones."""
    count = cuts - 1
    if shape == "random":
        work = [rng.lognormvariate(0, 1) for _ in range(count)]
        wide = [rng.lognormvariate(0, 1) for _ in range(count + 1)]
    else:
        work = [(3.0, 0.6, 1.0, 4.0, 4.0)[index % 5] * rng.uniform(0.95, 1.05) for index in range(count)]
        wide = [(1.0, 3.0, 1.0, 1.0, 4.0)[index % 5] for index in range(count + 1)]
    if shape == "giant":
        work[rng.randrange(count)] = sum(work) / 8
    flops = [int(1e11 * share / sum(work)) for share in work]
    weights = [int(1e9 * share / sum(work)) for share in work]
    return chain_graph(flops, [int(8e5 * share) for share in wide], weights)


def make_fleet(rng: random.Random, graph: Graph, counts: Sequence[int], slack: float, bad: bool) -> Problem:
    """Types of `counts` devices in random order, with memory for `slack` models in all."""
    devices = list(node_ids(sum(counts)))
    rng.shuffle(devices)
    free = iter(devices)
    need = WEIGHT_COPIES * graph.total_weight_bytes + sum(group.activation_bytes for group in graph.groups) / 10
    parts = [rng.uniform(0.5, 1.5) for _ in counts]
    whole = sum(part * count for part, count in zip(parts, counts, strict=True))
    widest = max(cut.bytes for cut in graph.cuts)
    known: dict[NodeId, DeviceCosts] = {}
    rates: dict[NodeId, float] = {}
    for part, count in zip(parts, counts, strict=True):
        speed = 2e10 * 6 ** rng.random()
        seconds = [group.flops / speed * rng.uniform(0.9, 1.1) + 1e-6 for group in graph.groups]
        memory = RUNTIME_BYTES + 10 * widest + int(slack * need * part / whole)
        costs = DeviceCosts((0.0, *accumulate(seconds)), memory, True, Handling(1.5e-4, 3e-10, True))
        rate = 5e6 * 8 ** rng.random()
        for device in (next(free) for _ in range(count)):
            known[device], rates[device] = costs, rate
    if bad:
        rates[devices[0]] = 2e5
    links = {(a, b): Link(3e-4, min(rates[a], rates[b])) for a in devices for b in devices if a != b}
    return Problem(graph, Costs(known, links), tuple(sorted(devices)))


def synthetic_cases(count: int) -> Iterator[Case]:
    for seed in range(count):
        rng = random.Random(seed)
        shape = SHAPES[0] if seed % 2 else SHAPES[seed // 2 % len(SHAPES)]
        graph = make_chain(rng, shape, rng.choice((48, 96)))
        counts = [rng.randint(1, 4) for _ in range(4)]
        slack = 1.15 if seed % 6 == 5 else 1.6
        yield Case(f"{seed} {shape}", make_fleet(rng, graph, counts, slack, shape == "bad interface"))


def model_cases(paths: Sequence[Path]) -> Iterator[Case]:
    from mesh.model.read import read_model
    from mesh.model.summarise import summarise

    for path in paths:
        graph = summarise(read_model(path))
        for seed in range(4):
            rng = random.Random(seed)
            counts = [rng.randint(1, 3) for _ in range(3)]
            yield Case(f"{path.stem} {seed}", make_fleet(rng, graph, counts, 1.6, bad=False))


def plan_with_replicas(problem: Problem) -> Plan | Infeasible:
    """The planner where stages may be shared and copied, which it is not allowed by default."""
    return plan(dataclasses.replace(problem, space=Space(max_replicas=MOST_REPLICAS)))


def compare(cases: Sequence[Case]) -> list[str]:
    """Print a table of strategies; returns what is not as promised."""
    strategies = {**{name: make_strategy(name) for name in STRATEGIES}, "replicas": plan_with_replicas}
    ratios: dict[str, list[float]] = {name: [] for name in strategies}
    usual: dict[str, list[float]] = {name: [] for name in strategies}  # a bad interface flatters the planner
    missing = dict.fromkeys(strategies, 0)
    wrong = []
    considered = 0
    for case in cases:
        best = plan(case.problem)
        if not isinstance(best, Plan):
            print(f"{case.name}: no plan: {best.reasons}")
            continue
        if not best.certificate.startswith("exact"):
            wrong.append(f"{case.name}: not proven: {best.certificate}")
        considered += 1
        for name, strategy in strategies.items():
            answer = best if name == "exact" else strategy(case.problem)
            if isinstance(answer, Plan):
                ratio = best.predicted.throughput_per_s / answer.predicted.throughput_per_s
                ratios[name].append(ratio)
                if SHAPES[-1] not in case.name:
                    usual[name].append(ratio)
            else:
                missing[name] += 1
    print(
        f"\n{considered} problems; period over the optimum\n"
        f"{'strategy':<12}  geomean  (no bad interface)  worst   out of memory"
    )
    for name, values in ratios.items():
        figures = " " * 36
        if values:
            mean, mean_of_usual = statistics.geometric_mean(values), statistics.geometric_mean(usual[name] or values)
            figures = f"{mean:7.3f}  {mean_of_usual:18.3f}  {max(values):6.3f}"
        print(f"{name:<12}  {figures}  {missing[name]:>4}")
        if values and name not in ("copies", "replicas") and min(values) < 1 - 1e-9:
            wrong.append(f"{name} has a better plan than the optimum: {min(values)}")
        judged = name in ("memory", "uniform") and len(usual[name]) >= FEWEST_JUDGED
        if judged and statistics.geometric_mean(usual[name]) < PROMISED_GAIN:
            wrong.append(f"{name}: the planner is {statistics.geometric_mean(usual[name]):.2f} times better, not 1.8")
    return wrong


def time_planner() -> list[str]:
    """Print how long the planner takes; returns what is not as promised."""
    wrong = []
    print(f"\n{'planning':<34}  seconds (each of {TIMED_FLEETS} fleets)      largest gap")
    for name, types, each, cuts, limit in (*TIMED, *UNTIMED):
        seconds, gaps = [], []
        for seed in range(TIMED_FLEETS):
            rng = random.Random(seed)
            problem = make_fleet(rng, make_chain(rng, "transformer", cuts), [each] * types, 1.6, bad=False)
            started = time.perf_counter()
            answer = plan(problem)
            seconds.append(time.perf_counter() - started)
            if not isinstance(answer, Plan):
                wrong.append(f"{name}: no plan: {answer.reasons}")
                continue
            gaps.append(answer.bound_throughput_per_s / answer.predicted.throughput_per_s - 1)
        gap = max(gaps, default=math.inf)
        print(f"{name:<34}  {'  '.join(f'{value:7.3f}' for value in seconds)}    {gap:.2%}")
        if statistics.median(seconds) > limit * INTERPRETED:
            wrong.append(f"{name}: {statistics.median(seconds):.3f} s, at most {limit * INTERPRETED} s are promised")
        if limit < math.inf and gap > PROMISED_GAP:
            wrong.append(f"{name}: a gap of {gap:.1%}, at most {PROMISED_GAP:.0%} are promised")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fleets", type=int, default=72, help="number of synthetic fleets")
    parser.add_argument("models", nargs="*", type=Path, help="ONNX files to plan for as well")
    arguments = parser.parse_args()
    wrong = time_planner()
    wrong += compare(list(synthetic_cases(arguments.fleets)))
    if arguments.models:
        wrong += compare(list(model_cases(arguments.models)))
    for line in wrong:
        print(f"not as promised: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
