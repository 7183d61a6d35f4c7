"""How the time of a model is spread over its operator groups: beginnings of the model, timed on this machine.

Operations are a poor guide (a depthwise convolution does few of them slowly), and a balanced plan needs a good one.
So the model's first half is cut out, loaded and timed, then its first quarter, and so on, for as long as the budget
lasts; between two such marks time follows operations. Real segments are timed, with the fusions that they get and
lose, so nothing has to be attributed. A beginning takes turns with the whole model, and only their ratio counts: a
machine that is slower for some seconds, because of its other work or its heat, is slower for both.
Only the spread is taken from here: how fast a device is, it says itself.

Used by whoever plans, in a thread; nothing is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from mesh.core.graph import Graph
from mesh.core.segments import segment_between
from mesh.engines.contract import Engine, LoadOptions
from mesh.model.extract import extract
from mesh.model.read import SourceModel
from mesh.runtime.measure import blank_tensor

PROFILE_BUDGET_S = 5.0
"""A person waits for a plan. The first marks say most; those that the budget leaves out refine."""

MAX_MARKS = 15
"""Sixteenths of the work. A stage that is wrong by half of one is wrong by a tenth in a plan of three."""

MARK_BUDGET_S = 0.3
MIN_RUNS = 3


def measure_spread(engine: Engine, model: SourceModel, graph: Graph, budget_s: float = PROFILE_BUDGET_S) -> list[float]:
    """Relative work of each group of `graph`, in seconds of this machine on one thread.

    Raises `LoadFailed`, `RunFailed` or `ModelUnsupported` where the model cannot be timed here on blank inputs.
    """
    deadline = time.monotonic() + budget_s
    end = len(graph.groups)
    with _Timed(engine, model.data) as whole:
        whole_seconds = whole.run()
        times = {0: 0.0, end: whole_seconds}
        for position in _marks(graph):
            if time.monotonic() >= deadline:
                break
            with _Timed(engine, extract(model, graph, segment_between(graph, 0, position))) as beginning:
                times[position] = whole_seconds * compare_times(beginning.run, whole.run)
    return spread(graph, times)


def spread(graph: Graph, times: Mapping[int, float]) -> list[float]:
    """Share the seconds between neighbouring marks by operations; `times` are of the groups before each position."""
    work: list[float] = []
    reached = 0.0
    positions = sorted(times)
    for start, end in pairwise(positions):
        seconds = max(0.0, times[end] - reached)
        reached = max(reached, times[end])
        operations = [group.flops for group in graph.groups[start:end]]
        total = sum(operations)
        work.extend(seconds * (each / total if total else 1 / len(operations)) for each in operations)
    return work


def _marks(graph: Graph) -> Iterator[int]:
    """Positions of legal cuts near a half of the work, the quarters, the eighths, ..."""
    before = [0]
    for group in graph.groups:
        before.append(before[-1] + group.flops)
    legal = [cut.position for cut in graph.cuts if 0 < cut.position < len(graph.groups)]
    seen: set[int] = set()
    parts = 2
    while legal and parts <= MAX_MARKS + 1:
        for part in range(1, parts, 2):
            nearest = min(legal, key=lambda position: abs(before[position] - before[-1] * part / parts))
            if nearest not in seen:
                seen.add(nearest)
                yield nearest
        parts *= 2


def compare_times(part: Callable[[], float], whole: Callable[[], float]) -> float:
    """Time of `part` over that of `whole`, each the fastest of some runs: what disturbs a run only makes it longer."""
    parts: list[float] = []
    wholes: list[float] = []
    began = time.perf_counter()
    while len(parts) < MIN_RUNS or time.perf_counter() - began < MARK_BUDGET_S:
        parts.append(part())
        wholes.append(whole())
    return min(parts) / min(wholes)


class _Timed:
    """A loaded model that is run on blank inputs."""

    def __init__(self, engine: Engine, data: bytes) -> None:
        self._session = engine.load(data, LoadOptions())

    def __enter__(self) -> _Timed:
        try:
            self._feeds = [blank_tensor(spec) for spec in self._session.inputs]
            self._session.run(self._feeds)  # the first run allocates
        except BaseException:
            self._session.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._session.close()

    def run(self) -> float:
        """Seconds."""
        began = time.perf_counter()
        self._session.run(self._feeds)
        return time.perf_counter() - began
